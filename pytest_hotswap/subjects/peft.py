"""PeftSubject: PEFT's own functions for hot-swapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hotswap
from pytest_hotswap.subjects.base import Subject


class PeftSubject(Subject):
    """Prepare and swap with ``peft.utils.hotswap``."""

    unsupported = {"swap-has-effect[none]": "PEFT cannot swap to the base model"}  # noqa: RUF012

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        from peft.utils.hotswap import prepare_model_for_compiled_hotswap

        prepare_model_for_compiled_hotswap(model, target_rank=plan.target_rank)

    def swap(self, model: Any, adapter: Path | None) -> None:
        from peft.utils.hotswap import hotswap_adapter

        hotswap_adapter(model, str(adapter), adapter_name=self.adapter_name, torch_device="cpu")
