"""A LoRA file of diffusers: its components, each with a config from the metadata or from the tensors."""

from __future__ import annotations

import re
from functools import lru_cache

from hotswap.adapters.config import parse_config
from hotswap.adapters.files import unreadable
from hotswap.adapters.formats.component import (
    COMPONENTS,
    METADATA,
    Component,
    config_for,
    split,
)
from hotswap.adapters.header import FileLayout, for_names
from hotswap.adapters.texts import Texts

__all__ = ["COMPONENTS", "METADATA", "components", "without_config"]
_TENSOR = re.compile(r"(.+)\.lora_([AB]\.(weight|bias)|magnitude_vector(\.weight)?)")
_PREFIXES = (
    "base_model.",
    "diffusion_model.",
    "module.",
    "lora_",
    "lycoris_",
    "text_model.",
    "encoder.",
)
_ORIGINAL = re.compile(r"(double|single|joint)_blocks\.\d|^blocks\.\d+\.(self|cross)_attn\.")
"""Of the code that a model was first published with; diffusers has other names for these."""
_BLOCKS = re.compile(
    r"(^|\.)(\w*blocks?|\w*_embed\w*|\w*embedder|noise_refiner|context_refiner|layers\.\d+\.attention)\."
)


@lru_cache(maxsize=32)
def current(names: tuple[str, ...]) -> bool:
    """Whether all tensors have the names that diffusers writes today."""
    return all(
        _TENSOR.fullmatch(name) and not name.startswith(_PREFIXES) and not _ORIGINAL.search(name)
        for name in names
    )


def components(texts: Texts, layout: FileLayout) -> dict[str, Component] | None:
    """Config and tensors of each component, where no config stands beside tensors with PEFT's names.

    Without metadata alpha is the rank, as in diffusers. Raises UnreadableAdapterError (HSW002/003/004).
    """
    if texts.config is not None or not for_names(current, tuple(layout.tensors)):
        return None
    if not layout.tensors:
        text, remedy = "the adapter has no LoRA weights", "save the adapter after it was trained"
        raise unreadable(texts.weights, "HSW004", text, remedy)
    parts = split(layout.tensors)
    told = layout.metadata.get(METADATA)
    if told is None and not all(_BLOCKS.search(name) for name in parts.get("", ())):
        raise without_config(texts)
    fields = None if told is None else parse_config(texts.weights, told)
    return {
        name: Component(config_for(texts.weights, name, own, fields), own)
        for name, own in parts.items()
    }


def without_config(texts: Texts) -> Exception:
    """The error for weights of PEFT that stand alone (HSW002): their alpha is in the config."""
    text = "the weights are PEFT's and no adapter_config.json is beside them, so alpha is unknown"
    remedy = "put adapter_config.json beside the file, as save_pretrained(folder) writes it"
    return unreadable(texts.weights, "HSW002", text, remedy)
