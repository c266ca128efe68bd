"""load: a prepared PeftModel over the union of a plan's target modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hotswap.adapters.config import read_config
from hotswap.adapters.plan import SwapPlan
from hotswap.engine.prepare import prepare
from hotswap.engine.swap import swap
from hotswap.errors import HotswapError


def load(
    base_model: nn.Module,
    plan: SwapPlan,
    adapter: str | Path | Mapping[str, Tensor] | None = None,
    *,
    adapter_name: str = "default",
    config: LoraConfig | None = None,
) -> Any:
    """Put LoRA layers into ``base_model`` (in place) for every module of the plan, and prepare them.

    So adapters with different target modules can be swapped: the ones that an adapter does not target
    are zero. The result is a PeftModel in evaluation mode, prepared, not compiled, with ``adapter``
    swapped in (None: the base model). Raises HotswapError when the base model lacks a module.
    """
    present = {name for name, _ in base_model.named_modules()}
    missing = [name for name in plan.modules if name not in present]
    if missing:
        raise HotswapError(
            f"the base model has no module {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; "
            "the plan was made for adapters of another base model"
        )
    task = read_config(adapter).get("task_type") if isinstance(adapter, str | Path) else None
    union = LoraConfig(
        task_type=task if config is None else config.task_type,
        r=plan.target_rank,
        lora_alpha=plan.target_rank,
        target_modules="|".join(re.escape(name) for name in plan.modules),
        rank_pattern={
            f"^{re.escape(name)}$": module.rank
            for name, module in plan.modules.items()
            if module.rank != plan.target_rank
        },
        lora_bias=any(module.bias for module in plan.modules.values()),
        inference_mode=True,
    )
    model = get_peft_model(base_model, union, adapter_name=adapter_name)
    model.eval()
    prepare(model, plan=plan)
    swap(model, adapter, adapter_name=adapter_name, config=config)
    return model
