"""TransformersSubject: transformers' own adapter methods, without a PeftModel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hotswap
from pytest_hotswap.subjects.base import Subject


class TransformersSubject(Subject):
    """``enable_peft_hotswap`` and ``load_adapter(hotswap=True)`` of a transformers model."""

    unsupported = {  # noqa: RUF012
        "swap-has-effect[none]": "transformers cannot swap to the base model",
        "preparation-idempotent": "enable_peft_hotswap() is called before the first adapter is loaded",
        "prepare-before-compile": "enable_peft_hotswap() is called before the first adapter is loaded",
        "preparation-preserves": "enable_peft_hotswap() is called before the first adapter is loaded",
    }

    def load(self, base: Any, adapter: Path) -> Any:
        base.enable_peft_hotswap(target_rank=hotswap.plan(self.adapter_paths()).target_rank)
        base.load_adapter(str(adapter), adapter_name=self.adapter_name)
        return base.eval()

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        """Nothing is left to do: the first load_adapter() has prepared the model, or should have."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        inner = self.models(model)[0]
        inner.load_adapter(str(adapter), adapter_name=self.adapter_name, hotswap=True)

    def add(self, model: Any, adapter: Path, name: str) -> None:
        inner = self.models(model)[0]
        inner.load_adapter(str(adapter), adapter_name=name, hotswap=False)
        inner.set_adapter(self.adapter_name)

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        inner = self.models(model)[0]
        inner.disable_adapters()
        try:
            yield
        finally:
            inner.enable_adapters()

    def save(self, model: Any, folder: Path) -> None:
        self.models(model)[0].save_pretrained(folder)
