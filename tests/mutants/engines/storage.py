"""Engines that move what compiled code is guarded on: addresses, shapes, types, flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tests.mutants.registry import breaks
from tests.mutants.subject import Engine


@breaks("swap-in-place")
class StorageMoved(Engine):
    """Tensors are replaced through .data."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for slot in self.slots(model):
            slot.tensor.data = slot.tensor.data.clone()


@breaks("swap-in-place")
class OnePointerMoved(Engine):
    """One tensor of many is replaced through .data."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        last = list(self.slots(model))[-1].tensor
        last.data = last.data.clone()


@breaks("swap-in-place", own=True)
class ParameterReplaced(Engine):
    """A new Parameter takes the place of the old one."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        lora_b = self.layers(model)["first"].lora_B[self.adapter_name]
        lora_b.weight = nn.Parameter(lora_b.weight.detach().clone())


@breaks("swap-in-place", own=True)
class RequiresGradChanged(Engine):
    """The swapped weights become trainable."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        next(self.slots(model)).tensor.requires_grad_(True)


@breaks("swap-in-place", own=True)
class StrideChanged(Engine):
    """A weight is stored transposed."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        weight = self.layers(model)["first"].lora_B[self.adapter_name].weight
        weight.data = weight.data.t().contiguous().t()


@breaks("swap-in-place", own=True)
class ScalingReplaced(Engine):
    """The scaling is a new tensor after each swap."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in self.layers(model).values():
            layer.scaling.put(self.adapter_name, layer.scaling[self.adapter_name].clone())
