"""Two more engines that are right: one hands weights to each call, one has two adapters loaded."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call

import hotswap
from tests.mutants.plain import Given, Plain

_PREFIX = "base_model.model."


class Caller:
    """A model, and the weights that each call is given instead of its own."""

    def __init__(self, inner: Any, first: Path) -> None:
        self.inner, self.first, self.weights = inner, first, dict[str, Tensor]()
        self.given, self.on = Given({}, {}, {}, {}), True

    def call(self, weights: dict[str, Tensor], inputs: dict[str, Any]) -> Any:
        return functional_call(self.inner, weights, kwargs=inputs)


class Handed(Plain):
    """Every call gets the adapter's weights, scaled already; those of the model stay as they were loaded."""

    def load(self, base: Any, adapter: Path) -> Any:
        return Caller(super().load(base, adapter), adapter)

    def models(self, model: Any) -> list[Any]:
        return super().models(model.inner)

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        if self.is_compiled(model.inner) or "call" in vars(model):
            raise ValueError("prepare the model before torch.compile")
        found = {self.name_of(path): layer for path, layer in self.found(model)}
        if plan.modules.keys() - found.keys():
            raise ValueError("the adapter that is loaded first has too few modules")
        if not all(layer.scaling[self.adapter_name] for layer in found.values()):
            raise ValueError("the adapter that is loaded first has a scaling of zero")
        self.check_ranks(found, plan)
        self.room = plan.ranks
        self.restored(model)

    def restored(self, model: Any) -> None:
        model.given, model.on = self.read(model.first), True
        model.weights = self.weights(model, model.given)
        model.without = {name: torch.zeros_like(each) for name, each in model.weights.items()}

    def weights(self, model: Any, given: Given, scale: float = 1.0) -> dict[str, Tensor]:
        """What a call is given, by the names of the model's own parameters."""
        found = {}
        for path, layer in self.found(model):
            name = self.name_of(path)
            factor = given.scalings.get(name, 0.0) * scale / layer.scaling[self.adapter_name]
            for part, own in self.parts(layer, self.adapter_name).items():
                value = given.tensors.get(name, {}).get(part, torch.zeros_like(own))
                wide = self.padded(layer, part, value.detach(), self.room[name])
                key, _, weight = part.partition(".")
                key = ".".join(filter(None, [path, key, self.adapter_name, weight]))
                found[key] = wide * factor if "B" in part else wide
        return found

    def compile(self, model: Any) -> Any:
        model.call = torch.compile(model.call, backend=self.backend)
        return model

    def run(self, model: Any, inputs: Any) -> Any:
        if not isinstance(model, Caller):
            return super().run(model, inputs)
        with torch.no_grad():
            return model.call(model.weights if model.on else model.without, dict(inputs))

    def swap(self, model: Any, adapter: Path | None) -> None:
        given = self.read(adapter) if adapter is not None else Given({}, {}, {}, {})
        self.check(model, given)
        weights = self.weights(model, given)
        model.weights, model.given = weights, given

    def check_tensor(self, layer: Any, name: str, value: Tensor, place: Tensor, rank: int) -> None:
        module, _, part = name.partition(".lora_")
        wide = self.padded(layer, f"lora_{part}", place.detach(), self.room[module])
        super().check_tensor(layer, name, value, wide, rank)

    def set_scale(self, model: Any, scale: float) -> None:
        model.weights = self.weights(model, model.given, scale)

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:  # type: ignore[override]
        before, model.on = model.on, False
        try:
            yield
        finally:
            model.on = before

    def save(self, model: Any, folder: Path) -> None:
        given: Given = model.given
        tensors = {
            f"{_PREFIX}{module}.{part}": value
            for module, parts in given.tensors.items()
            for part, value in parts.items()
        }
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(given.config))


class TwoSlots(Plain):
    """Two adapters are loaded: a swap fills the one that is idle, and makes it the active one."""

    unsupported = dict.fromkeys(
        ["swap-forgets", "swap-isolated"],
        "the adapter before stays loaded, and is overwritten next",
    )

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        if "spare" not in model.peft_config:
            model.add_adapter("spare", copy.deepcopy(model.peft_config[self.adapter_name]))
            super().prepare(model, plan)
            model.set_adapter(self.adapter_name, inference_mode=True)

    def compile(self, model: Any) -> Any:
        compiled = torch.compile(model, backend=self.backend)
        for name in reversed(model.peft_config):  # torch guards on which one is active
            model.set_adapter(name, inference_mode=True)
            self.run(compiled, self.inputs())
        return compiled

    @contextlib.contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """What is done to the adapter of this name."""
        self.adapter_name = name
        try:
            yield
        finally:
            del self.adapter_name

    def swap(self, model: Any, adapter: Path | None) -> None:
        given = self.read(adapter) if adapter is not None else Given({}, {}, {}, {})
        self.check(model, given)
        (inner,) = self.models(model)
        active, noted = str(inner.active_adapter), inner.in_place
        idle = "spare" if active == self.adapter_name else self.adapter_name
        with self.slot(idle):
            staged = self.staged(model, given)
        self.commit(staged)
        try:
            inner.set_adapter(idle, inference_mode=True)
            self.record(model, given)
        except BaseException:
            inner.set_adapter(active, inference_mode=True)
            inner.in_place = noted
            raise

    def set_scale(self, model: Any, scale: float) -> None:
        with self.slot(str(self.models(model)[0].active_adapter)):
            super().set_scale(model, scale)

    def save(self, model: Any, folder: Path) -> None:
        with self.slot(str(self.models(model)[0].active_adapter)):
            super().save(model, folder)
