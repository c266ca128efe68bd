"""Engines whose preparation leaves out something, or changes too much."""

from __future__ import annotations

from typing import Any

import hotswap
from tests.mutants.registry import breaks, scale_all
from tests.mutants.subject import Engine


@breaks("preparation-covers", own=True)
class OneFloatScaling(Engine):
    """One layer keeps a number as its scaling."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        layer = list(self.layers(model).values())[-1]
        number = float(layer.scaling[self.adapter_name])
        del layer.scaling
        layer.scaling = {self.adapter_name: number}


@breaks("preparation-covers", own=True)
class OnlyLoraAPadded(Engine):
    """lora_B keeps its rank."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        old = {id(slot.tensor): slot.tensor.data for slot in self.slots(model)}
        super().prepare(model, plan)
        for slot in self.slots(model):
            if slot.axis == 1:
                slot.tensor.data = old[id(slot.tensor)]


@breaks("preparation-covers", own=True)
class EmbeddingNotPadded(Engine):
    """A list of layer kinds lacks embeddings."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        old = {id(slot.tensor): slot.tensor.data for slot in self.slots(model)}
        super().prepare(model, plan)
        for slot in self.slots(model):
            if "embedding" in slot.key:
                slot.tensor.data = old[id(slot.tensor)]


@breaks("preparation-covers", own=True)
class NotPrepared(Engine):
    """prepare() is a no-op."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        pass


@breaks("preparation-preserves", own=True)
class ScalingOverTargetRank(Engine):
    """Preparation rescales by the target rank."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        scale_all(self, model, lambda layer, name: float(layer.scaling[name]) * 0.5)


@breaks("preparation-preserves", own=True)
class PaddedWithOnes(Engine):
    """The padding is not zero on either side."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        old = {id(slot.tensor): slot.tensor.numel() for slot in self.slots(model)}
        super().prepare(model, plan)
        for slot in self.slots(model):
            if slot.tensor.numel() > old.get(id(slot.tensor), 0):
                slot.tensor.data[slot.tensor == 0] = 1.0


@breaks("preparation-idempotent", own=True)
class ScaledAtEachPreparation(Engine):
    """Preparing twice scales twice."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        scale_all(self, model, lambda layer, name: float(layer.scaling[name]) * 0.999)


@breaks("preparation-idempotent", own=True)
class NewStorageAtEachPreparation(Engine):
    """Preparing twice moves everything."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        for slot in self.slots(model):
            slot.tensor.data = slot.tensor.data.clone()
