"""Engines of PEFT and torch alone that move what compiled code and CUDA graphs point at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.mutants.plain import Given, Plain
from tests.mutants.registry import breaks


@breaks("swap-in-place")
class FullRankAssigned(Plain):
    """What needs no padding is put in place as it was read."""

    @torch.no_grad()
    def commit(self, staged: list[tuple[Tensor, Tensor]]) -> None:
        for place, value in staged:
            if value.ndim and value.shape == place.shape and value.all():
                place.data = value
            else:
                place.copy_(value)


@breaks("swap-in-place")
class ZerosAssigned(Plain):
    """What is not targeted gets zeros of its own."""

    @torch.no_grad()
    def commit(self, staged: list[tuple[Tensor, Tensor]]) -> None:
        for place, value in staged:
            if value.ndim and not value.any():
                place.data = value
            else:
                place.copy_(value)


@breaks("swap-in-place")
class NoneMoves(Plain):
    """For the base model every tensor is a new one."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        for _, layer in self.found(model):
            for tensor in self.parts(layer, self.adapter_name).values():
                if not given.tensors:
                    tensor.data = torch.zeros_like(tensor.data)


@breaks("swap-in-place", own=True)
class ScalingsTakeTurns(Plain):
    """Two tensors take turns as a layer's scaling, so that one is never written while it is read."""

    spare: dict[str, Tensor] | None = None

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.spare = self.spare or {}
        for path, layer in self.found(model):
            now = layer.scaling[self.adapter_name]
            other = self.spare.get(path, torch.empty_like(now))
            layer.scaling[self.adapter_name] = other.copy_(now)
            self.spare[path] = now


@breaks("swap-in-place", own=True)
class OneBufferTakesTurns(Plain):
    """The same with lora_A of one layer."""

    spare: Tensor | None = None

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        _, layer = next(self.found(model))
        tensor = next(iter(self.parts(layer, self.adapter_name).values()))
        spare = torch.empty_like(tensor.data) if self.spare is None else self.spare
        self.spare, tensor.data = tensor.data, spare.copy_(tensor.data)


@breaks("swap-in-place")
class TensorsExchanged(Plain):
    """Parameters are exchanged by torch.utils.swap_tensors."""

    @torch.no_grad()
    def commit(self, staged: list[tuple[Tensor, Tensor]]) -> None:
        for place, value in staged:
            if isinstance(place, nn.Parameter):
                given = nn.Parameter(value.clone(), requires_grad=place.requires_grad)
                torch.utils.swap_tensors(place, given)
            else:
                place.copy_(value)


@breaks("swap-in-place", own=True)
class MovesOnce(Plain):
    """The first swap of all copies the tensors to where the next ones write."""

    moved = False

    def swap(self, model: Any, adapter: Path | None) -> None:
        if not self.moved:
            self.moved = True
            for _, layer in self.found(model):
                for tensor in self.parts(layer, self.adapter_name).values():
                    tensor.data = tensor.data.clone()
        super().swap(model, adapter)
