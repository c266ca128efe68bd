"""Engines in which the adapter, or its absence, has no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.mutants.registry import breaks, scale_all
from tests.mutants.subject import Engine


@breaks("swap-has-effect")
class BaseModelServed(Engine):
    """Every scaling becomes zero."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        scale_all(self, model, lambda *_: 0.0)


@breaks("swap-has-effect")
class NoneKeepsTheAdapter(Engine):
    """Swapping to the base model does nothing."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, self.adapter_paths()[0] if adapter is None else adapter)


@breaks("swap-has-effect")
class NoneZeroesTheFirstLayer(Engine):
    """Swapping to the base model clears one layer only."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        if adapter is not None:
            return super().swap(model, adapter)
        super().swap(model, self.adapter_paths()[0])
        next(iter(self.layers(model).values())).scaling[self.adapter_name] = 0.0
        return None


@breaks("swap-has-effect")
class PrefixLost(Engine):
    """No name of the file matches a module, and nobody minds: lora_B becomes zero."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for slot in self.slots(model):
            if "B" in slot.key:
                slot.tensor.data.zero_()
