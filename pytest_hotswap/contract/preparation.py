"""Laws of the preparation: whichever adapter is loaded, and whatever stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from hotswap import SwapPlan
from hotswap.checks.equivalence import compare
from hotswap.engine.layout.slots import lora_layers
from pytest_hotswap.contract.deployment import BYSTANDER, Deployment, brief
from pytest_hotswap.contract.placed import blame
from pytest_hotswap.contract.probes import active, few, uncovered, with_another


class PreparationLaws:
    """What prepare() keeps as it was, and what it refuses before it changes anything."""

    def test_preparation_preserves__any_first(self, deployment: Deployment, adapter: Path) -> None:
        """Whichever adapter is loaded first, it is prepared, or refused before anything changes."""
        wrong = _loaded_first(deployment, adapter).wrong
        assert not wrong, f"preparation-preserves: {adapter.name} loaded first: {wrong}"

    def test_preparation_covers__any_first(self, deployment: Deployment, adapter: Path) -> None:
        missed = _loaded_first(deployment, adapter).missed
        assert not missed, f"preparation-covers: {adapter.name} loaded first: {few(missed)}"

    def test_swap_equals_load__any_first(self, deployment: Deployment, adapter: Path) -> None:
        """Whichever adapter is loaded first, another one is then taken whole, or refused."""
        wrong = _loaded_first(deployment, adapter).dropped
        assert not wrong, f"swap-equals-load: {adapter.name} loaded first: {wrong}"

    def test_swap_equals_load__companion_first(self, deployment: Deployment) -> None:
        found = {w: _loaded_first(deployment, a).dropped for w, a in deployment.companions.items()}
        wrong = [f"{what}: {fault}" for what, fault in found.items() if fault]
        assert not wrong, f"swap-equals-load: of the companions loaded first, {few(wrong)}"

    def test_preparation_covers__odd_layer(self, deployment: Deployment, odd: str) -> None:
        """A layer that is not what or where others are is prepared, or refused by name, never skipped."""
        model = deployment.loaded()
        module, own = deployment.module_of(model), deployment.subject.adapter_name
        if not (layers := lora_layers(module, own)):
            pytest.skip(NO_LAYERS)
        name, layer = next(iter(layers.items()))
        ODD[odd](module, layer)
        try:
            deployment.subject.prepare(model, deployment.plan)
        except Exception:  # refused
            return
        missed = uncovered(deployment, model)
        assert not missed, f"preparation-covers: {name} is {odd}, and was skipped: {few(missed)}"

    def test_preparation_preserves__companion_first(self, deployment: Deployment) -> None:
        wrong = []
        for what, adapter in deployment.companions.items():
            found = _loaded_first(deployment, adapter)
            wrong += [f"{what}: {fault}" for fault in (found.wrong, *found.missed[:1]) if fault]
        assert not wrong, f"preparation-preserves: of the companions loaded first, {few(wrong)}"

    def test_preparation_preserves__smaller_plan(self, deployment: Deployment) -> None:
        """A plan that has no room for what is loaded is refused before anything changes."""
        plan, spec = deployment.plan, deployment.specs[deployment.first]
        own = {n: m for n, m in spec.modules.items() if m.rank > m.groups and n in plan.modules}
        if not own:
            pytest.skip("not run: the adapter that is loaded first has rank 1 throughout")
        name, module = [*own.items()][-1]
        less = replace(plan.modules[name], rank=module.rank - module.groups)
        smaller = replace(plan, modules={**plan.modules, name: less})
        wrong, _ = _prepared(deployment, deployment.first, deployment.loaded(), smaller)
        assert not wrong, (
            f"preparation-preserves: for a plan of rank {less.rank} in {name}, where "
            f"{deployment.first.name} has {module.rank}: {wrong}"
        )

    def test_preparation_preserves__beside_another(self, deployment: Deployment) -> None:
        """An adapter that is loaded beside the one to swap computes what it did, or both are refused."""
        subject = deployment.subject
        model, other = with_another(deployment)  # a narrow one, which has to be padded
        with active(model, BYSTANDER, subject):
            before = deployment.run(model)
        wrong, _ = _prepared(deployment, deployment.first, model)
        assert not wrong, f"preparation-preserves: {other.name} is loaded too: {wrong}"
        with active(model, BYSTANDER, subject):
            found = compare(deployment.run(model), before)
        assert found.equal, (
            f"preparation-preserves: {other.name}, loaded beside the one that is prepared: "
            f"{found.detail}"
        )

    def test_prepare_before_compile(self, deployment: Deployment, style: str) -> None:
        model, backend = deployment.loaded(), deployment.subject.backend
        if style in OF_A_LAYER and not lora_layers(deployment.module_of(model)):
            pytest.skip(NO_LAYERS)
        if isinstance(model, nn.Module):
            model = STYLES[style](model, backend)
        elif STYLES[style] is _wrapped:
            pytest.skip("not applicable: load() gives no module, which could be wrapped")
        else:
            STYLES[style](deployment.module_of(model), backend)
        snapshot = deployment.fingerprint(model)
        try:
            deployment.subject.prepare(model, deployment.plan)
        except Exception:  # whatever the subject raises is a refusal
            changes = snapshot.changes()
            assert not changes, (
                f"prepare-before-compile: a model with {style} is refused, but {few(changes)}"
            )
            return
        pytest.fail(f"prepare-before-compile: prepare() accepted a model with {style}")

    def test_control_of_prepare_before_compile(self, deployment: Deployment) -> None:
        deployment.subject.prepare(deployment.loaded(), deployment.plan)


class _LoadedFirst(NamedTuple):
    """What is wrong with a model that was prepared with an adapter, and what the next swap drops."""

    wrong: str = ""
    missed: Sequence[str] = ()
    dropped: str = ""


def _loaded_first(deployment: Deployment, adapter: Path) -> _LoadedFirst:
    """Load, prepare and swap once for all laws that look at one of these."""
    subject, found = vars(deployment).get("loaded first", (None, {}))
    if subject is not deployment.subject:  # one that a bench exchanges
        found = {}
        vars(deployment)["loaded first"] = deployment.subject, found
    if adapter not in found:
        found[adapter] = _looked_at(deployment, adapter)
    known: _LoadedFirst = found[adapter]
    return known


def _looked_at(deployment: Deployment, adapter: Path) -> _LoadedFirst:
    _ = deployment.first_swaps  # they are watched, so no other swap comes before them
    subject = deployment.subject
    try:
        model = subject.load(deployment.copied_base(), adapter)
    except Exception:  # a deployment may know its own adapters only
        if adapter in deployment.paths:
            raise
        return _LoadedFirst()
    wrong, refused = _prepared(deployment, adapter, model)
    if refused:
        return _LoadedFirst(wrong)
    missed, first = uncovered(deployment, model), deployment.first
    target = first if adapter != first else deployment.other(first)
    try:
        subject.swap(model, target)
    except Exception:  # whatever the subject raises is a refusal
        return _LoadedFirst(wrong, missed)
    found, dropped = deployment.compare(target, model=model), ""
    if not found.equal:
        blamed = blame(deployment, target, model=model)
        dropped = f"{target.name}, swapped in then: {found.detail}{blamed}"
    return _LoadedFirst(wrong, missed, dropped)


def _prepared(
    deployment: Deployment, adapter: Path, model: Any, plan: SwapPlan | None = None
) -> tuple[str, bool]:
    """Prepare a model; say what is wrong then, or what a refusal has changed, and whether it is refused."""
    before, snapshot = deployment.run(model), deployment.fingerprint(model)
    try:
        deployment.subject.prepare(model, plan or deployment.plan)
    except Exception as error:  # whatever the subject raises is a refusal
        changes = snapshot.changes()
        return f"it is refused ({brief(error)}), but {few(changes)}" if changes else "", True
    found = compare(deployment.run(model), before)
    return "" if found.equal else f"{found.detail}{blame(deployment, adapter, model=model)}", False


class _Wrapper(nn.Module):
    """What frameworks put around a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


def _wrapped(model: Any, backend: str) -> Any:
    return torch.compile(model, backend=backend)


def _in_place(model: Any, backend: str) -> Any:
    model.compile(backend=backend)
    return model


def _submodule(model: Any, backend: str) -> Any:
    next(iter(lora_layers(model).values())).compile(backend=backend)
    return model


def _forward(model: Any, backend: str) -> Any:
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def _block(model: Any, backend: str) -> Any:
    """Put the compiled wrapper of a block in its place: of one in a list, or else of a LoRA layer."""
    layers = {id(layer) for layer in lora_layers(model).values()}
    children = [
        (parent, key, child)
        for parent in model.modules()
        for key, child in parent.named_children()
        if any(id(part) in layers for part in child.modules())
    ]
    listed = [found for found in children if isinstance(found[0], nn.ModuleList | nn.Sequential)]
    parent, key, block = listed[0] if listed else children[-1]
    parent._modules[key] = torch.compile(block, backend=backend)
    return model


def _of_another_class(_: Any, layer: Any) -> None:
    layer.__class__ = type(f"Another{type(layer).__name__}", (type(layer),), {})


def _below_a_wrapper(model: Any, layer: Any) -> None:
    path = next(path for path, module in model.named_modules() if module is layer)
    parent, _, key = path.rpartition(".")
    model.get_submodule(parent)._modules[key] = _Wrapper(layer)


ODD = {"of a class of its own": _of_another_class, "below a wrapper": _below_a_wrapper}
OF_A_LAYER = ("a compiled submodule", "a block replaced by its compiled wrapper")
NO_LAYERS = "not applicable: what load() gives has no LoRA layer of PEFT's"
STYLES = {
    "a torch.compile wrapper": _wrapped,
    "compile() in place": _in_place,
    "a compiled submodule": _submodule,
    "a compiled forward": _forward,
    "a block replaced by its compiled wrapper": _block,
}
