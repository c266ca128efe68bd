"""A LoRA file of diffusers: its components, each with a config from the metadata or from the tensors."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotswap.adapters.config import CONFIG, parse_config
from hotswap.adapters.files import WEIGHTS as PEFT_WEIGHTS
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.names import MAGNITUDE
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
    folder = path if os.path.isdir(path) else path.parent
    if os.path.exists(os.path.join(folder, CONFIG)):  # as most have
        return None
    file = path / WEIGHTS if folder is path else path
    if file.suffix != ".safetensors" or file.name == PEFT_WEIGHTS or not file.exists():
        return None
    return file


def components(
    where: str, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> dict[str, Part]:
    """Config and tensors of each component; that of a model which was saved by itself is named "".

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
    return {name: (_config(_below(fields, name), own), own) for name, own in found.items()}


def _below(fields: Mapping[str, Any] | None, component: str) -> dict[str, Any] | None:
    if fields is None:
        return None
    prefix = f"{component}." if component else ""
    return {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}


def implied_config(
    shapes: Mapping[str, tuple[int, ...]], alphas: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The config that the tensors of a file imply, with its alphas of modules or of their lora_A.

    As in diffusers, alpha is the rank where the file has none. Rank 1 without a lora_A.
    """
    ranks = {
        name.removesuffix(".lora_A.weight"): shape[0]
        for name, shape in shapes.items()
        if name.endswith(".lora_A.weight") and shape and shape[0]
    }
    own = {re.sub(r"\.(lora_A\..*|alpha)$", "", key): float(a) for key, a in (alphas or {}).items()}
    factors = {module: own.get(module, rank) for module, rank in ranks.items()}
    return {
        "peft_type": "LORA",
        "r": _usual(ranks),
        "lora_alpha": _usual(factors),
        "target_modules": list(ranks),
        "rank_pattern": _pattern(ranks),
        "alpha_pattern": _pattern(factors),
        "use_dora": any(MAGNITUDE in name for name in shapes),
        "lora_bias": any(name.endswith(".lora_B.bias") for name in shapes),
    }


def _usual(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0] if values else 1


def _pattern(values: Mapping[str, Any]) -> dict[str, Any]:
    usual = _usual(values)
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}


def _config(fields: dict[str, Any] | None, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    if fields:
        return {"peft_type": "LORA", **fields}
    return implied_config({name: info.shape for name, info in tensors.items()})
