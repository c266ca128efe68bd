"""Deployments that are right in another way than hotswap's own engine, and pass every law all the same."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file
from torch.nn import functional

import hotswap
from hotswap.adapters.fit import fits
from hotswap.adapters.names import canonical
from hotswap.compiler.compiled import compiled_parts
from hotswap.engine.layout.slots import lora_layers, slots
from hotswap.report.laws import LAWS
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from tests.mutants.plain import Given, Plain, write
from tests.mutants.subject import Engine, Whole, write_fleets
from tests.support.depot import Depot
from tests.support.handed import Handed, TwoSlots


class SkipsWhatIsInPlace(Engine):
    """It notes on the model what is in place, and does nothing when that is asked for."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        (inner,) = self.models(model)
        if adapter is None or getattr(inner, "in_place", None) != adapter:
            super().swap(model, adapter)
            inner.in_place = adapter


class RemembersElsewhere(Engine):
    """It notes the same in a place of its own, of which nobody tells it that it is out of date."""

    companions = "none"  # it is brought up anew for each
    in_place: Path | None = None

    def load(self, base: Any, adapter: Path) -> Any:
        self.in_place = None
        return super().load(base, adapter)

    def swap(self, model: Any, adapter: Path | None) -> None:
        if adapter is None or self.in_place != adapter:
            super().swap(model, adapter)
            self.in_place = adapter


class ToldOfRestoring(RemembersElsewhere):
    """The same, and it is told."""

    companions = "few"

    def restored(self, model: Any) -> None:
        self.in_place = None


class Uniform(Engine):
    """Every module is prepared at the fleet's largest rank."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        hotswap.prepare(model, target_rank=plan.target_rank)


class TensorByTensor(Engine):
    """It pads by hand and copies tensor by tensor; what fails or is interrupted is undone."""

    plan: Any = None
    in_place: Path | None = None

    def load(self, base: Any, adapter: Path) -> Any:
        self.in_place = adapter
        return PeftModel.from_pretrained(base, adapter).eval()

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        if found := compiled_parts(model):
            raise ValueError(f"compiled already: {found[0]}")
        if lacking := sorted(plan.modules.keys() - lora_layers(model, "default").keys()):
            raise ValueError(f"the adapter that is loaded first has no {', '.join(lacking)}")
        for module, layer in lora_layers(model, "default").items():
            if any((s.rank or 0) > plan.modules[module].rank for s in slots(layer, "default")):
                raise ValueError(f"the plan has no room for the rank of {module}")
        for name in model.peft_config:
            for module, layer in lora_layers(model, name).items():
                for slot in slots(layer, name):
                    if slot.rank == plan.modules[module].rank:
                        continue
                    wide = torch.zeros(slot.shape(plan.modules[module].rank))
                    part = slot.part(wide, slot.tensor.shape[slot.axis or 0])
                    part.copy_(slot.tensor.detach().reshape(part.shape))
                    slot.tensor.data = wide
                    if slot.owner is not None:
                        setattr(slot.owner, slot.size_attribute, wide.shape[slot.axis or 0])
                self.prepare_scaling(layer, name)

    def prepare_scaling(self, layer: Any, name: str) -> None:
        if not isinstance(layer.scaling[name], torch.Tensor):
            layer.scaling[name] = torch.tensor(float(layer.scaling[name]))

    def swap(self, model: Any, adapter: Path | None) -> None:
        (inner,) = self.models(model)
        envelope = hotswap.plan(self.adapter_paths())
        spec = hotswap.AdapterSpec.read(adapter) if adapter is not None else None
        if spec is not None and (findings := fits(envelope, spec)):
            raise ValueError(str(findings[0]))
        given = load_file(adapter / "adapter_model.safetensors") if adapter is not None else {}
        if not all(tensor.float().isfinite().all() for tensor in given.values()):
            raise ValueError("not a number")
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for module, layer in lora_layers(inner, "default").items():
            targeted = spec.modules.get(module) if spec is not None else None
            for slot in slots(layer, "default"):
                new = torch.zeros_like(slot.tensor)
                if targeted is not None:
                    value = given[f"base_model.model.{module}.{slot.key}"]
                    part = slot.part(new, value.shape[slot.axis or 0])
                    part.copy_(value.reshape(part.shape))
                found.append((slot.tensor, new))
            scaling = targeted.scaling if targeted is not None else 0.0
            found.append((layer.scaling["default"], torch.tensor(scaling)))
        old = [tensor.detach().clone() for tensor, _ in found]
        try:
            with torch.no_grad():
                for tensor, new in found:
                    tensor.copy_(new)
        except BaseException:
            with torch.no_grad():
                for (tensor, _), value in zip(found, old, strict=True):
                    tensor.copy_(value)
            raise
        self.in_place = adapter

    def set_scale(self, model: Any, scale: float) -> None:
        if self.in_place is not None:
            spec = hotswap.AdapterSpec.read(self.in_place)
            for module, layer in lora_layers(self.models(model)[0], "default").items():
                if module in spec.modules:
                    layer.scaling["default"].fill_(spec.modules[module].scaling * scale)

    def save(self, model: Any, folder: Path) -> None:
        assert self.in_place is not None
        shutil.copytree(self.in_place, folder)


class ScalingInAModule(TensorByTensor):
    """Its scalings are PEFT's BufferDict."""

    def prepare_scaling(self, layer: Any, name: str) -> None:
        if isinstance(layer.scaling, dict):
            scaling = {key: torch.tensor(float(value)) for key, value in layer.scaling.items()}
            del layer.scaling
            layer.scaling = BufferDict(scaling)


class ReplacesModules(TensorByTensor):
    """It puts the layers of a fresh load in place of the others, which is no swap in place."""

    unsupported = dict.fromkeys(
        ["swap-in-place", "swap-isolated", "zero-recompiles", "knobs-follow"],
        "the layers are replaced, with every adapter in them",
    )

    def swap(self, model: Any, adapter: Path | None) -> None:
        (inner,) = self.models(model)
        spec = hotswap.AdapterSpec.read(adapter or self.adapter_paths()[0])
        if findings := fits(hotswap.plan(self.adapter_paths()), spec):
            raise ValueError(str(findings[0]))
        fresh = PeftModel.from_pretrained(self.base_model(), adapter or self.adapter_paths()[0])
        if not all(tensor.isfinite().all() for tensor in fresh.parameters()):
            raise ValueError("not a number")
        layers = {
            canonical(name): layer for name, layer in fresh.eval().base_model.model.named_children()
        }
        for layer in lora_layers(fresh).values():
            self.prepare_scaling(layer, "default")
            if adapter is None:
                layer.scaling["default"].zero_()
        for name, config in fresh.peft_config.items():
            inner.peft_config[name] = copy.deepcopy(config)
        inner.base_model.model._modules.update(layers)


class Folded(Plain):
    """The scaling is multiplied into lora_B, and the layer's own is a user's factor."""

    def prepare_layer(self, layer: Any, rank: int) -> None:
        name = self.adapter_name
        first = not isinstance(layer.scaling[name], torch.Tensor)
        scaling = float(layer.scaling[name])
        super().prepare_layer(layer, rank)
        if first:
            [*self.parts(layer, name).values()][1].data.mul_(scaling)
            layer.scaling[name].fill_(1.0)

    def staged(self, model: Any, given: Given) -> list[tuple[torch.Tensor, torch.Tensor]]:
        each = iter(super().staged(model, given))
        found = []
        for a, (b, value), (scaling, number) in zip(each, each, each, strict=True):
            found += [a, (b, value * number), (scaling, torch.ones(()))]
        return found

    def set_scale(self, model: Any, scale: float) -> None:
        for _, layer in self.found(model):
            layer.scaling[self.adapter_name].fill_(scale)

    def save(self, model: Any, folder: Path) -> None:
        given = self.in_place(model)
        write(folder, given.tensors, given.config)


class OneTensor(Plain):
    """What is swapped are views of one tensor, written by one copy; a view of it is kept for undoing."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        if hasattr(self.models(model)[0], "flat"):
            return
        places = [t for _, layer in self.found(model) for t in self.tensors(layer)]
        flat = torch.cat([place.detach().reshape(-1) for place in places])
        parts = flat.split([place.numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            place.data = part.view(place.shape)
        self.models(model)[0].flat = flat

    def tensors(self, layer: Any) -> list[torch.Tensor]:
        return [*self.parts(layer, self.adapter_name).values(), layer.scaling[self.adapter_name]]

    def swap(self, model: Any, adapter: Path | None) -> None:
        (inner,) = self.models(model)
        given = self.read(adapter) if adapter is not None else Given({}, {}, {}, {})
        self.check(model, given)
        new = torch.cat([value.reshape(-1) for _, value in self.staged(model, given)])
        old, noted = inner.flat.clone(), inner.in_place
        try:
            inner.flat.copy_(new)
            self.record(model, given)
        except BaseException:
            inner.flat.copy_(old)
            inner.in_place = noted
            raise


class Hot(torch.nn.Module):
    """A layer of our own in the place of PEFT's: the base layer, lora_A, lora_B and a scaling as buffers."""

    def __init__(self, layer: Any, parts: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.base, self.names, self._disable_adapters = layer.get_base_layer(), [*parts], False
        for name, tensor in zip("ab", parts.values(), strict=True):
            self.register_buffer(name, tensor.detach().clone())
        self.register_buffer("factor", layer.scaling["default"].clone())

    @property
    def scaling(self) -> dict[str, torch.Tensor]:
        return {"default": self.factor}

    def get_base_layer(self) -> Any:
        return self.base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._disable_adapters:
            return self.base(x)
        if isinstance(self.base, torch.nn.Embedding):
            added = functional.embedding(x, self.a.T) @ self.b.T
        elif self.a.ndim == 2:
            added = x @ self.a.T @ self.b.T
        else:
            rows = functional.conv2d(x, self.a, padding=self.base.padding, groups=1)
            added = functional.conv2d(rows, self.b, groups=self.base.groups)
        return self.base(x) + added * self.factor


class Server:
    """An object around the model, which is no module."""

    def __init__(self, model: Any) -> None:
        self.inner = model


class OwnLayers(Plain):
    """What is served is in an object, has no LoRA layer of PEFT's, and is compiled with dynamic shapes."""

    def load(self, base: Any, adapter: Path) -> Any:
        return Server(super().load(base, adapter))

    def models(self, model: Any) -> list[Any]:
        return super().models(model.inner)

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        if self.is_compiled(model.inner):
            raise ValueError("prepare the model before torch.compile")
        layers = dict(self.found(model))
        if any(len(layer.scaling) > 1 for layer in layers.values()):
            raise ValueError("one adapter at a time")
        if plan.modules.keys() - {self.name_of(path) for path in layers}:
            raise ValueError("the adapter that is loaded first has too few modules")
        self.check_ranks({self.name_of(path): each for path, each in layers.items()}, plan)
        for path, layer in layers.items():
            if not isinstance(layer, Hot):
                self.prepare_layer(layer, plan.modules[self.name_of(path)].rank)
                parent, _, name = path.rpartition(".")
                hot = Hot(layer, super().parts(layer, "default")).eval()
                model.inner.get_submodule(parent)._modules[name] = hot

    def compile(self, model: Any) -> Any:
        model.inner = torch.compile(model.inner, backend=self.backend, dynamic=True)
        return model

    def run(self, model: Any, inputs: Any) -> Any:
        return super().run(model.inner if isinstance(model, Server) else model, inputs)

    def found(self, model: Any) -> Iterator[tuple[str, Any]]:
        for path, module in self.models(model)[0].named_modules():
            if isinstance(module, LoraLayer | Hot):
                yield path, module

    def parts(self, layer: Any, name: str) -> dict[str, torch.Tensor]:
        if isinstance(layer, Hot):
            return dict(zip(layer.names, (layer.a, layer.b), strict=True))
        return super().parts(layer, name)


class DepotOfWholes(Whole, Depot):
    """A depot on a model of which a head and token rows are trained as well."""

    def __init__(self, folder: Path) -> None:
        Depot.__init__(self, folder)


RIGHT = [
    Depot,
    DepotOfWholes,
    Handed,
    TwoSlots,
    OneTensor,
    Folded,
    OwnLayers,
    SkipsWhatIsInPlace,
    RemembersElsewhere,
    ToldOfRestoring,
    Uniform,
    TensorByTensor,
    ScalingInAModule,
    ReplacesModules,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("right")
    write_fleets(found)
    return found


@pytest.fixture(scope="module", params=RIGHT, ids=lambda engine: engine.__name__)
def deployment(request: pytest.FixtureRequest, folder: Path) -> Iterator[Deployment]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Deployment(request.param(folder), folder / request.param.__name__)
    torch._dynamo.reset()


@pytest.mark.parametrize("law", LAWS)
def test_a_deployment_that_is_right_in_its_own_way_passes(deployment: Deployment, law: str) -> None:
    assert list(violations(deployment, law)) == []
    assert list(violations(deployment, law, controls=True)) == []


def test_only_one_that_remembers_and_is_not_told_is_brought_up_anew(folder: Path) -> None:
    found = {}
    for engine in (SkipsWhatIsInPlace, ToldOfRestoring, RemembersElsewhere):
        deployment = Deployment(engine(folder), folder / f"anew-{engine.__name__}")
        deployment.restore()
        found[engine.__name__] = deployment.disturbed
    assert found == {
        "SkipsWhatIsInPlace": False,
        "ToldOfRestoring": False,
        "RemembersElsewhere": True,
    }
