"""How transformers cuts a model over several devices, from its config alone, and what a rank then holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hotswap.adapters.plan import Cut
from hotswap.checks.base_model import build
from hotswap.errors import HotswapError

_CUTS: dict[str, Cut] = {"colwise": "outputs", "rowwise": "inputs"}
_HEADS = ("num_attention_heads", "num_key_value_heads")


def cuts_of(base: str | Path, size: int) -> dict[str, Cut]:
    """Say of each module that ``size`` devices share along which of its axes it is cut.

    It is the parallel plan of the model's class in transformers, as PEFT follows it for LoRA. Raises
    HotswapError for a model without one, and for one that so many devices do not divide.
    """
    model: Any = build(base)
    styles = getattr(model, "tp_plan", None) or {}
    found: dict[str, Cut] = {}
    for name, module in model.named_modules():
        style = styles.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        if style not in _CUTS:
            continue
        found[name] = _CUTS[style]
        width = module.out_features if style == "colwise" else module.in_features
        if width % size:
            raise HotswapError(
                f"--tp {size}: {name} has {width} {found[name]}, which {size} does not divide; "
                "give a number of ranks that does"
            )
    if not found:
        raise HotswapError(
            f"--tp {size}: transformers has no parallel plan for a {type(model).__name__}; leave --tp out"
        )
    for heads in _HEADS:
        count = getattr(model.config, heads, None) or size
        if count % size:
            raise HotswapError(
                f"--tp {size}: the model has {heads}={count}, which {size} does not divide; give a "
                "number of ranks that does"
            )
    return found
