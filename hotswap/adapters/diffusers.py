"""A LoRA file of diffusers: its components, each with a config from the metadata or from the tensors."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotswap.adapters.config import CONFIG, parse_config
from hotswap.adapters.header import WEIGHTS as PEFT_WEIGHTS
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.spec import MAGNITUDE
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
COMPONENTS = (
    "transformer",
    "transformer_2",
    "unet",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
)
Part = tuple[dict[str, Any], dict[str, TensorInfo]]


def weights_of(path: Path) -> Path | None:
    """The file of a diffusers adapter, given itself or its folder; None if it is PEFT's or not there."""
    folder, file = (path, path / WEIGHTS) if os.path.isdir(path) else (path.parent, path)
    if file.suffix != ".safetensors" or file.name == PEFT_WEIGHTS:
        return None
    if os.path.exists(os.path.join(folder, CONFIG)) or not file.exists():
        return None
    return file


def components(
    where: str, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> dict[str, Part]:
    """Config and tensors of each component; the only one of a pipeline, or that of a model, is named "".

    Without metadata alpha is the rank, as in diffusers. Raises UnreadableAdapterError (HSW003/004/005).
    """
    if not tensors:
        text, remedy = "the adapter has no LoRA weights", "save the adapter after it was trained"
        raise UnreadableAdapterError([Finding(where, "HSW004", text, remedy)])
    if not all(".lora_" in name for name in tensors):
        text = "has tensors with names other than PEFT's"
        remedy = "load it with the pipeline's load_lora_weights and save it again"
        raise UnreadableAdapterError([Finding(where, "HSW005", text, remedy)])
    fields = parse_config(where, metadata[METADATA]) if METADATA in metadata else None
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        first, _, rest = name.partition(".")
        component = first if first in COMPONENTS else ""
        found.setdefault(component, {})[rest if component else name] = info
    alone = len(found) == 1
    return {
        "" if alone else name: (_config(_below(fields, name), own), own)
        for name, own in found.items()
    }


def _below(fields: Mapping[str, Any] | None, component: str) -> dict[str, Any] | None:
    if fields is None:
        return None
    prefix = f"{component}." if component else ""
    return {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}


def _config(fields: dict[str, Any] | None, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    if fields:
        return {"peft_type": "LORA", **fields}
    ranks = {
        name.removesuffix(".lora_A.weight"): info.shape[0]
        for name, info in tensors.items()
        if name.endswith(".lora_A.weight") and info.shape and info.shape[0]
    }
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    other = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": other,
        "alpha_pattern": other,
        "use_dora": any(MAGNITUDE in name for name in tensors),
        "lora_bias": any(name.endswith(".lora_B.bias") for name in tensors),
    }
