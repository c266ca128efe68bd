"""Component: config and tensors of one model in PEFT's terms, whatever format they came in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from hotswap.adapters.header import TensorInfo
from hotswap.adapters.names import BIAS, LINEAR, MAGNITUDE


class Component(NamedTuple):
    """The fields of a config, and tensors by their names in a file of PEFT."""

    config: dict[str, Any]
    tensors: dict[str, TensorInfo]


def implied_config(
    shapes: Mapping[str, tuple[int, ...]], alphas: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The config that the tensors of a file imply, with its alphas of modules or of their lora_A.

    As in diffusers, alpha is the rank where the file has none. Rank 1 without a lora_A.
    """
    ranks = {
        name.removesuffix(f".{LINEAR[0]}"): shape[0]
        for name, shape in shapes.items()
        if name.endswith(f".{LINEAR[0]}") and shape and shape[0]
    }
    own = {re.sub(r"\.(lora_A\..*|alpha)$", "", key): float(a) for key, a in (alphas or {}).items()}
    factors = {module: own.get(module, rank) for module, rank in ranks.items()}
    rank, rank_pattern = _usual(ranks)
    alpha, alpha_pattern = _usual(factors)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ranks),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "use_dora": any(MAGNITUDE in name for name in shapes),
        "lora_bias": any(name.endswith(f".{BIAS}") for name in shapes),
    }


def _usual(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The value of most modules, and a pattern for each module with another one."""
    usual = Counter(values.values()).most_common(1)[0][0] if values else 1
    others = {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}
    return usual, others
