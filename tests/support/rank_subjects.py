"""Deployments over ranks: one that is sound, and faulty twins whose defect is on one rank only."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import hotswap
from hotswap.compiler.shards import local_of
from hotswap.engine.layout.slots import lora_layers, slots
from pytest_hotswap import TensorParallelSubject
from pytest_hotswap.subjects.reference import ReferenceSubject
from tests.support import rank_models as at
from tests.support.models import seeded


class Counting(at.Net):
    """Its forward reads a number, which compiled code is guarded on."""

    def __init__(self) -> None:
        super().__init__()
        self.swaps = 0

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return super().forward(value) + 0 * self.swaps


class Cut(TensorParallelSubject):
    """A model that torch's parallelize_module cuts, adapter and all."""

    patience = 60.0
    companions = "none"

    def base_model(self) -> Any:
        return seeded(Counting)

    def inputs(self) -> Mapping[str, Any]:
        return {"value": at.X}

    def load(self, base: Any, adapter: Path) -> Any:
        model = ReferenceSubject.load(self, base, adapter)
        at.cut(model)
        return model

    def add(self, model: Any, adapter: Path, name: str) -> None:
        super().add(model, adapter, name)
        at.cut(self.models(model)[0], name=name)

    @property
    def faulty(self) -> bool:
        """Whether this is the rank with the defect."""
        return torch.distributed.get_rank() == 1


class FeedsEachAnother(Cut):
    """Each rank has inputs of its own."""

    def inputs(self) -> Mapping[str, Any]:
        return {"value": at.X + (1.0 if self.faulty else 0.0)}


class Replicas(Cut):
    """A model that every rank has whole: the ranks swap together, as workers of a server do."""

    unsupported = {"swap-forgets[memory]": "takes seconds, and is as without ranks"}  # noqa: RUF012

    def add(self, model: Any, adapter: Path, name: str) -> None:
        ReferenceSubject.add(self, model, adapter, name)

    def load(self, base: Any, adapter: Path) -> Any:
        return ReferenceSubject.load(self, base, adapter)

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        hotswap.swap_together(model)


def factors(subject: Any, model: Any) -> list[torch.Tensor]:
    """What this rank has of the adapter's weights."""
    name = subject.adapter_name
    layers = lora_layers(subject.models(model)[0], name).values()
    return [local_of(slot.tensor) for layer in layers for slot in slots(layer, name)]


@torch.no_grad()
def write(tensors: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


class KeepsItsShard(Cut):
    """One rank goes on with the old adapter's part."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = [tensor.detach().clone() for tensor in factors(self, model)]
        super().swap(model, adapter)
        if self.faulty:
            write(factors(self, model), old)


class ScalesAlone(Cut):
    """The scale is set on one rank only."""

    def set_scale(self, model: Any, scale: float) -> None:
        if self.faulty:
            return
        for layer in lora_layers(self.models(model)[0], self.adapter_name).values():
            layer.set_scale(self.adapter_name, scale)


class Recompiles(Cut):
    """On one rank each swap changes a number that compiled code is guarded on."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if self.faulty:
            self.models(model)[0].base_model.model.swaps += 1


class Moves(Cut):
    """On one rank each swap leaves a weight at another address."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if self.faulty:
            tensor = factors(self, model)[-1]
            tensor.data = tensor.data.clone()


class WritesBeforeItRefuses(Cut):
    """On one rank a refused adapter leaves a trace."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        try:
            super().swap(model, adapter)
        except hotswap.HotswapError:
            if self.faulty:
                tensors = factors(self, model)
                write(tensors[-1:], [tensors[-1] + 1.0])
            raise


class ChangesItsBase(Cut):
    """On one rank a swap changes a base weight."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if self.faulty:
            base = self.models(model)[0].base_model.model
            write([base.last.base_layer.bias], [base.last.base_layer.bias + 1e-7])


class KeepsItsAdapter(Cut):
    """On one rank a swap to no adapter does nothing."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = [tensor.detach().clone() for tensor in factors(self, model)]
        scalings = [layer.scaling for layer in lora_layers(self.models(model)[0]).values()]
        before = [float(each[self.adapter_name]) for each in scalings]
        super().swap(model, adapter)
        if self.faulty and adapter is None:
            write(factors(self, model), old)
            for each, value in zip(scalings, before, strict=True):
                each[self.adapter_name] = value


class KeepsWhatWasBefore(Cut):
    """On one rank a trace of the adapter before is left in the last layer."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        trace = factors(self, model)[-1].detach().abs().mean()
        super().swap(model, adapter)
        if self.faulty:
            tensors = factors(self, model)
            write(tensors[-1:], [tensors[-1] + trace * 1e-3])


class KeepsANumber(Cut):
    """On one rank the scaling of one layer is a number."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        if self.faulty:
            layer: Any = list(lora_layers(self.models(model)[0]).values())[-1]
            scaling = {name: float(value) for name, value in layer.scaling.items()}
            del layer.scaling
            layer.scaling = scaling


class FailsOnce(Cut):
    """While a file is there one rank fails at its next swap, in the way that the file says."""

    patience = 15.0

    def __init__(self, *, file: str, **given: Any) -> None:
        super().__init__(**given)
        self.file = Path(file)

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        hotswap.swap_together(model, timeout=0.5)

    def swap(self, model: Any, adapter: Path | None) -> None:
        if self.faulty and self.file.exists():
            how = self.file.read_text()
            self.file.unlink()
            if how == "dies":
                os._exit(3)
            if how == "hangs":
                time.sleep(600)
            adapter = Path("gone")
        super().swap(model, adapter)


TWINS: dict[str, type[Cut]] = {
    "preparation-covers": KeepsANumber,
    "swap-equals-load": KeepsItsShard,
    "swap-forgets": KeepsWhatWasBefore,
    "swap-has-effect": KeepsItsAdapter,
    "swap-isolated": ChangesItsBase,
    "swap-atomic": WritesBeforeItRefuses,
    "swap-in-place": Moves,
    "zero-recompiles": Recompiles,
    "knobs-follow": ScalesAlone,
}
"""Law → the twin that it has to find."""
