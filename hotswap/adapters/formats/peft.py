"""PEFT's folder: a config beside the weights, and the names of tensors that all other formats are put in."""

from __future__ import annotations

from pathlib import Path

from hotswap.adapters.config import CONFIG, lora_config
from hotswap.adapters.formats.component import Component
from hotswap.adapters.header import FileLayout
from hotswap.adapters.texts import Texts, folder_of


def matches(texts: Texts, layout: FileLayout) -> bool:
    """Tell whether there is a config."""
    return texts.config is not None


def components(texts: Texts, layout: FileLayout) -> dict[str, Component]:
    """The whole file is one component; raises UnreadableAdapterError (HSW003/101)."""
    where = folder_of(Path(texts.path)) / CONFIG
    return {"": Component(lora_config(where, texts.config or b""), layout.tensors)}
