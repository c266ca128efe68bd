"""PEFT's folder: a config beside the weights, and the names of tensors that all other formats are put in."""

from __future__ import annotations

from pathlib import Path

from hotswap.adapters.config import CONFIG, lora_config
from hotswap.adapters.formats.component import Component
from hotswap.adapters.header import FileLayout
from hotswap.adapters.texts import Texts, folder_of


def components(texts: Texts, layout: FileLayout) -> dict[str, Component] | None:
    """The file is one component, where there is a config; raises UnreadableAdapterError (HSW003/101)."""
    if texts.config is None:
        return None
    config = lora_config(folder_of(Path(texts.path)) / CONFIG, texts.config)
    return {"": Component(config, layout.tensors)}
