"""Write adapter folders by hand: a JSON header and zero bytes, without torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotswap.adapters.header import BITS

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor name → (safetensors dtype, shape)."""


def safetensors_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """A safetensors file of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return raw_safetensors(json.dumps(header).encode(), position)


def raw_safetensors(header: bytes, size: int = 0) -> bytes:
    """A file with this header, whatever it is, and ``size`` zero bytes of data."""
    return len(header).to_bytes(8, "little") + header + bytes(size)


def lora_tensors(
    modules: Mapping[str, tuple[int, int]],
    *,
    rank: int = 8,
    rank_pattern: Mapping[str, int] | None = None,
    dtype: str = "F32",
    bias: bool = False,
) -> Tensors:
    """The tensors of linear LoRA layers, module name → (in_features, out_features)."""
    tensors: Tensors = {}
    for name, (in_features, out_features) in modules.items():
        own = next(
            (r for k, r in (rank_pattern or {}).items() if re.match(rf"(.*\.)?({k})$", name)), rank
        )
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = (dtype, (own, in_features))
        tensors[f"{key}.lora_B.weight"] = (dtype, (out_features, own))
        if bias:
            tensors[f"{key}.lora_B.bias"] = (dtype, (out_features,))
    return tensors


def _owner(tensor: str) -> str:
    """The last part of the name of the module that a LoRA tensor belongs to."""
    return tensor.rpartition(".lora_")[0].rpartition(".")[2]


def write_adapter(
    folder: Path,
    *,
    modules: Mapping[str, tuple[int, int]] | None = None,
    rank: int = 8,
    alpha: float = 16,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    dtype: str = "F32",
    bias: bool = False,
    tensors: Tensors | None = None,
    extra: Tensors | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a PEFT folder; ``tensors`` replaces weights, ``extra`` adds, ``config`` adds keys."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = {"q_proj": (32, 16)} if modules is None else modules
    if tensors is None:
        tensors = lora_tensors(
            modules, rank=rank, rank_pattern=rank_pattern, dtype=dtype, bias=bias
        )
    direct = (config or {}).get("target_parameters")
    named = [f"{name}.lora_" for name in modules] if direct else tensors
    document = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
        "target_modules": sorted({_owner(name) for name in named if ".lora_" in name}),
        "lora_bias": bias,
        "bias": "none",
        "inference_mode": True,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        **(config or {}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(
        safetensors_bytes({**tensors, **(extra or {})})
    )
    return folder
