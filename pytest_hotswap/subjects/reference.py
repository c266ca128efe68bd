"""ReferenceSubject: hotswap's own engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hotswap
from pytest_hotswap.subjects.base import Subject


class ReferenceSubject(Subject):
    """Prepare and swap with hotswap."""

    def load(self, base: Any, adapter: Path) -> Any:
        """PEFT's load, or over the fleet's union of modules and token rows where it has more."""
        plan = self.plan or hotswap.plan(self.adapter_paths())
        spec = hotswap.AdapterSpec.read(adapter)
        mine, planned = (
            {
                *s.modules,
                *s.saved,
                *((name, row) for name, t in s.tokens.items() for row in t.indices),
            }
            for s in (spec, plan)
        )
        if mine >= planned:
            return super().load(base, adapter)
        return hotswap.load(base, plan, adapter, adapter_name=self.adapter_name)

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        hotswap.prepare(model, plan=plan)

    def swap(self, model: Any, adapter: Path | None) -> None:
        hotswap.swap(model, adapter, adapter_name=self.adapter_name)

    def set_scale(self, model: Any, scale: float) -> None:
        hotswap.set_scale(model, scale, adapter_name=self.adapter_name)
