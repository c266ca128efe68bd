"""Engines in which a trace of the last adapter remains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hotswap.engine.layout.slots import slots
from tests.mutants.registry import breaks, scale_all
from tests.mutants.subject import Engine


@breaks("swap-forgets")
class StaleRows(Engine):
    """Rows beyond the new rank keep the last adapter's values."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        super().swap(model, adapter)
        ranks = [
            layer.r[self.adapter_name]
            for layer in self.layers(model).values()
            for _ in slots(layer, self.adapter_name)
        ]
        for slot, tensor, rank in zip(self.slots(model), old, ranks, strict=True):
            if slot.axis == 0 and slot.blocks == 1:
                slot.tensor.data[rank:] = tensor[rank:]


@breaks("swap-forgets")
class ScaleDrifts(Engine):
    """Each swap multiplies the scalings once more."""

    swaps = 0

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.swaps += 1
        factor = 1 + 1e-6 * self.swaps
        scale_all(self, model, lambda layer, name: float(layer.scaling[name]) * factor)


@breaks("swap-forgets")
class AddsTheDifference(Engine):
    """Weights are moved by new - old, which rounds, instead of being overwritten."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        super().swap(model, adapter)
        for slot, tensor in zip(self.slots(model), old, strict=True):
            slot.tensor.data.copy_(tensor + (slot.tensor.detach() - tensor) * (1 - 2**-22))


@breaks("swap-equals-load", fleet="features")
class BiasKept(Engine):
    """An adapter without a lora_B bias keeps the last one's."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        super().swap(model, adapter)
        for slot, tensor in zip(self.slots(model), old, strict=True):
            if slot.role == "bias" and not slot.tensor.any():
                slot.tensor.data.copy_(tensor)


@breaks("swap-equals-load", fleet="features")
class MagnitudeKept(Engine):
    """The first DoRA magnitude is never replaced."""

    first: list[torch.Tensor] | None = None

    def swap(self, model: Any, adapter: Path | None) -> None:
        self.first = self.first or self.kept(model)
        super().swap(model, adapter)
        for slot, tensor in zip(self.slots(model), self.first, strict=True):
            if slot.role == "magnitude":
                slot.tensor.data.copy_(tensor)


@breaks("swap-forgets")
class AlphaRecordAppends(Engine):
    """The record of alphas is only ever raised."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        name = self.adapter_name
        old = {key: layer.lora_alpha[name] for key, layer in self.layers(model).items()}
        super().swap(model, adapter)
        for key, layer in self.layers(model).items():
            state = layer.scaling.states[name]
            layer.scaling.states[name] = state._replace(alpha=max(state.alpha, old[key]))
