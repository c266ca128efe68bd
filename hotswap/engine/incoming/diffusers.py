"""What a LoRA file of diffusers says: ``pytorch_lora_weights.safetensors`` and the metadata in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor

from hotswap.adapters.formats.component import implied_config
from hotswap.adapters.formats.diffusers import METADATA
from hotswap.adapters.header import read_header
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

_COMPONENTS = ("transformer.", "unet.")
_SAVE_AGAIN = "save the adapter again with diffusers' save_lora_adapter or save_lora_weights"


def read_model_file(file: Path) -> tuple[dict[str, Tensor], LoraConfig]:
    """Read the adapter of one model, saved by itself or as the only component of a pipeline's file.

    Raises UnreadableAdapterError for a file that is damaged or older than PEFT's names of tensors.
    """
    names = read_header(file)
    prefix = next((p for p in _COMPONENTS if all(name.startswith(p) for name in names)), "")
    if not all(".lora_" in name for name in names):
        text = "has tensors with names other than PEFT's"
        remedy = "load it with the pipeline's load_lora_weights and save it again"
        raise UnreadableAdapterError([Finding(str(file), "HSW005", text, remedy)])
    with safe_open(file, "pt") as opened:
        tensors = {name.removeprefix(prefix): opened.get_tensor(name) for name in names}
        metadata = (opened.metadata() or {}).get(METADATA)
    fields = None
    if metadata is not None:
        try:
            fields = dict(json.loads(metadata))
        except (ValueError, TypeError) as error:
            text = f"the metadata {METADATA} is no JSON object: {error}"
            raise UnreadableAdapterError(
                [Finding(str(file), "HSW003", text, _SAVE_AGAIN)]
            ) from error
        fields = {key.removeprefix(prefix): value for key, value in fields.items()}
    return tensors, config_of(str(file), tensors, fields, {})


def config_of(
    label: str,
    tensors: Mapping[str, Tensor],
    fields: Mapping[str, Any] | None,
    alphas: Mapping[str, float],
) -> LoraConfig:
    """The config in a file's metadata; without it, the ranks of the tensors and the alphas of the file.

    As in diffusers, alpha is the rank where the file has none. Raises UnreadableAdapterError.
    """
    if fields is not None:
        try:
            return LoraConfig(**fields)
        except (TypeError, ValueError) as error:
            text = f"the metadata {METADATA} is no LoRA config: {error}"
            raise UnreadableAdapterError([Finding(label, "HSW003", text, _SAVE_AGAIN)]) from error
    implied = implied_config({name: tuple(v.shape) for name, v in tensors.items()}, alphas)
    if not implied["target_modules"]:
        text = "the adapter has no LoRA weights"
        raise UnreadableAdapterError([Finding(label, "HSW004", text, _SAVE_AGAIN)])
    return LoraConfig(**implied)
