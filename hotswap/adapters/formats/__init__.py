"""The formats of adapter files, one a file: is this header of it, and what is each tensor."""

from __future__ import annotations

from typing import Protocol

from hotswap.adapters.files import damaged
from hotswap.adapters.formats import diffusers, peft, refused, trainers
from hotswap.adapters.formats.component import Component
from hotswap.adapters.header import FileLayout
from hotswap.adapters.texts import Texts


class Format(Protocol):
    """What a file of this folder offers."""

    def matches(self, texts: Texts, layout: FileLayout) -> bool:
        """Tell whether an adapter is of this format, and say nothing of what is wrong with it."""

    def components(self, texts: Texts, layout: FileLayout) -> dict[str, Component]:
        """Config and tensors of each component of a pipeline, in PEFT's names; "" is a model by itself.

        Raises UnreadableAdapterError (HSW003/004/005/101).
        """


FORMATS: tuple[Format, ...] = (peft, diffusers, trainers, refused)
"""The first that matches is taken."""


def components_of(texts: Texts, layout: FileLayout) -> dict[str, Component]:
    """Config and tensors of each component of an adapter; raises UnreadableAdapterError."""
    for form in FORMATS:
        if form.matches(texts, layout):
            return form.components(texts, layout)
    remedy = "load it with the pipeline's load_lora_weights and save it again"
    raise damaged(texts.weights, "has tensors with names other than PEFT's", remedy)
