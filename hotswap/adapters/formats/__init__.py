"""The formats of adapter files, one a file: is this header of it, and what is each tensor."""

from __future__ import annotations

from collections.abc import Callable

from hotswap.adapters.files import damaged
from hotswap.adapters.formats import diffusers, peft, refused, trainers
from hotswap.adapters.formats.component import Component
from hotswap.adapters.header import FileLayout, for_names
from hotswap.adapters.texts import Texts

FORMATS: tuple[Callable[[Texts, FileLayout], dict[str, Component] | None], ...] = (
    peft.components,
    diffusers.components,
    trainers.components,
    refused.components,
)
"""Config and tensors in PEFT's names of each component of a pipeline ("" for a model by itself).

Each gives None for an adapter of another format, and raises UnreadableAdapterError for a damaged one
of its own. The first that knows an adapter is taken.
"""


def told_by_texts(texts: Texts, layout: FileLayout) -> bool:
    """Whether config and header tell what an adapter is; of trainers' files values do, too: their alphas."""
    return texts.config is not None or for_names(diffusers.current, tuple(layout.tensors))


def components_of(texts: Texts, layout: FileLayout) -> dict[str, Component]:
    """Config and tensors of each component of an adapter; raises UnreadableAdapterError."""
    for components in FORMATS:
        found = components(texts, layout)
        if found is not None:
            return found
    remedy = "load it with the pipeline's load_lora_weights and save it again"
    raise damaged(texts.weights, "has tensors with names other than PEFT's", remedy)
