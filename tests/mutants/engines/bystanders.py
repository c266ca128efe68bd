"""Engines that touch something else: base weights, or another adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hotswap.engine.layout.slots import lora_layers, slots
from tests.mutants.registry import breaks
from tests.mutants.subject import Engine


@breaks("swap-isolated")
class OtherAdapterZeroed(Engine):
    """Names are matched by substring: "default" is in "default2"."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in lora_layers(model).values():
            for name in layer.scaling:
                if self.adapter_name in name and name != self.adapter_name:
                    slots(layer, name)[0].tensor.data.zero_()


@breaks("swap-isolated")
class OtherScalingWritten(Engine):
    """The scaling of every adapter of a layer is written."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in lora_layers(model).values():
            for name in layer.scaling:
                layer.scaling[name] = 0.123


@breaks("swap-isolated")
class BaseWeightMerged(Engine):
    """The adapter leaks into a base weight."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        next(iter(self.layers(model).values())).get_base_layer().weight.data.mul_(1.5)


@breaks("swap-isolated")
class BaseBiasCleared(Engine):
    """Everything named bias is cleared, that of the base layer too."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.layers(model)["first"].get_base_layer().bias.data.zero_()
