"""PEFT's folder: a config beside the weights, and the names of tensors that all other formats are put in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotswap.adapters.config import CONFIG, SAVE_AGAIN, lora_config, target_parameters
from hotswap.adapters.files import unreadable
from hotswap.adapters.formats.component import Component
from hotswap.adapters.header import FileLayout, for_names
from hotswap.adapters.names import in_file, not_of_peft, owner, wrapper_in
from hotswap.adapters.texts import Texts, folder_of


def components(texts: Texts, layout: FileLayout) -> dict[str, Component] | None:
    """The file is one component, where there is a config; raises UnreadableAdapterError (HSW003/101/108).

    PEFT loads nothing under names without its own prefix, and says so in a warning at most.
    """
    if texts.config is None:
        return None
    config = lora_config(folder_of(Path(texts.path)) / CONFIG, texts.config)
    keys = tuple(layout.tensors)
    if config.get("target_modules") is None and not all(
        _targeted(config, k) for k in layout.tensors
    ):
        text = (
            "target_modules is null, for which PEFT takes names of its own for the type of a model"
        )
        raise unreadable(texts.weights, "HSW003", text, "write the names into target_modules")
    strange = for_names(not_of_peft, keys)
    if strange and not for_names(wrapper_in, keys):
        text = (
            f"the name {ascii(strange)[:120]} does not begin with base_model.model. once, "
            "and PEFT loads no such tensor"
        )
        raise unreadable(texts.weights, "HSW108", text, SAVE_AGAIN)
    return {"": Component(config, layout.tensors)}


def _targeted(config: Mapping[str, Any], key: str) -> bool:
    """Whether a tensor is of a parameter that the config targets, or of no LoRA layer."""
    module, found, _ = in_file(key).rpartition(".lora_")
    return not found or bool(target_parameters(config, owner(module)))
