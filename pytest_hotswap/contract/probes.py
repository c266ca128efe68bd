"""What the laws look at in a model, and what their controls touch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from hotswap.checks.equivalence import Comparison, compare
from hotswap.checks.snapshot import Snapshot
from hotswap.compiler.shards import local_of
from hotswap.engine.layout.slots import lora_layers, slots
from pytest_hotswap.contract.deployment import BYSTANDER, Deployment, brief
from pytest_hotswap.contract.reading import is_read
from pytest_hotswap.subjects.base import Subject


def lora_b(deployment: Deployment, model: Any) -> Any:
    """The weight of the first layer's lora_B, or the part of it that is on this rank."""
    return local_of(_writable(deployment, model)[0])


def poke(deployment: Deployment, model: Any) -> None:
    """Change every layer's lora_B in place: one alone hardly shows in some models, as that of a query."""
    with torch.no_grad():
        for tensor in _writable(deployment, model):
            tensor.add_(1.0)


def _writable(deployment: Deployment, model: Any) -> list[torch.Tensor]:
    """Each layer's lora_B; every weight of a model that reads its adapter from no LoRA layer of PEFT's."""
    name = deployment.subject.adapter_name
    module = deployment.module_of(model)
    layers = lora_layers(module, name).values()
    found = [slots(layer, name)[1].tensor for layer in layers]
    if found and is_read(deployment, model):
        return found
    every = (*module.parameters(), *module.buffers())
    return [tensor for tensor in every if tensor.is_floating_point()]


@contextmanager
def active(model: Any, name: str, subject: Subject) -> Iterator[None]:
    """Make another adapter the active one, as PEFT's set_adapter does; the flags of its weights stay."""
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    modules = [module for part in subject.models(model) for module in part.modules()]
    layers = [m for m in modules if isinstance(m, LoraLayer | AuxiliaryTrainingWrapper)]
    parameters = [p for part in subject.models(model) for p in part.parameters()]
    flags = [parameter.requires_grad for parameter in parameters]

    def activate(names: list[list[str]]) -> None:
        for layer, wanted in zip(layers, names, strict=True):
            known = getattr(
                layer, "_adapters", wanted
            )  # what a wrapped module has not, it passes over
            layer.set_adapter([each for each in wanted if each in known])
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)

    before = [list(layer.active_adapters) for layer in layers]
    # a wrapper that lacks the adapter has none active then, as PEFT's own set_adapter does
    activate([[name] if name in getattr(m, "_adapters", (name,)) else [] for m in layers])
    try:
        yield
    finally:
        activate(before)


def with_another(deployment: Deployment, *, prepared: bool = False) -> tuple[Any, Path]:
    """The loaded model with another adapter beside the first: the narrowest of the next ones that goes.

    Not any two go: PEFT does not load an adapter without token rows beside one that has some, and a
    preparation may refuse one that lacks a head of the other. At the last a rescaled copy of the first is
    tried; where not even that goes, the test does not apply.
    """
    first, specs = deployment.first, deployment.specs
    others = [path for path in deployment.neighbours(first) if path != first]
    for path in [*sorted(others, key=lambda path: specs[path].rank), deployment.rescaled]:
        model = deployment.loaded()
        try:
            deployment.subject.add(model, path, BYSTANDER)
            if prepared:
                deployment.subject.prepare(model, deployment.plan)
        except Exception as error:  # whatever the subject raises
            refusal = brief(error)
            continue
        return model, path
    pytest.skip(f"not applicable: no other adapter can be loaded beside {first.name}: {refusal}")


def uncovered(deployment: Deployment, model: Any) -> list[str]:
    """Say which tensors that a call reads are below their planned rank, and which scalings are no tensors."""
    name = deployment.subject.adapter_name
    found = []
    for module, layer in lora_layers(deployment.module_of(model), name).items():
        wanted = deployment.plan.modules[module].rank if module in deployment.plan.modules else 0
        found += [
            f"{module}.{slot.key} has rank {slot.rank}, planned {wanted}"
            for slot in slots(layer, name)
            if slot.rank is not None and slot.rank < wanted
        ]
        if not isinstance(layer.scaling[name], torch.Tensor):
            found.append(f"{module}.scaling is a {type(layer.scaling[name]).__name__}")
    return found if found and is_read(deployment, model) else []


def foreign_changes(deployment: Deployment, adapter: Path | None) -> list[str]:
    """What a swap (or, without an adapter, a poke) changes in anything that is not the adapter swapped.

    Another adapter of the fleet stands beside it, under a name that contains its own.
    """
    _ = deployment.first_swaps  # they are watched, so no other swap comes before them
    subject = deployment.subject
    model, _ = with_another(deployment, prepared=True)
    snapshot, before = deployment.fingerprint(model), records(deployment, model)
    if adapter is not None:
        subject.swap(model, adapter)
    else:
        layer = next(iter(lora_layers(deployment.module_of(model), BYSTANDER).values()))
        with torch.no_grad():
            local_of(slots(layer, BYSTANDER)[0].tensor).add_(1.0)
    found = _foreign(snapshot, subject.adapter_name)
    after = records(deployment, model)
    found += [
        f"{key} changed: {then} to {after.get(key)}"
        for key, then in before.items()
        if after.get(key) != then
    ]
    return found


def added_beside(deployment: Deployment) -> tuple[Path, Comparison]:
    """Add another adapter to a prepared model, where that is taken: it is not to serve."""
    _ = deployment.first_swaps  # they are watched, so nothing else comes before them
    model, other = deployment.prepared(), deployment.other(deployment.first)
    before = deployment.run(model)
    with suppress(Exception):  # refused, whatever the subject raises
        deployment.subject.add(model, other, BYSTANDER)
        return other, compare(deployment.run(model), before)
    return other, compare(before, before)


def changes_of_an_active_one(deployment: Deployment) -> list[str]:
    """What a swap changes while another adapter is the active one: its outputs, and that it is."""
    _ = deployment.first_swaps
    subject = deployment.subject
    model, _ = with_another(deployment, prepared=True)
    with active(model, BYSTANDER, subject):
        output, snapshot = deployment.run(model), deployment.fingerprint(model)
        layers = {
            path: (layer, list(layer.active_adapters))
            for part in subject.models(model)
            for path, layer in lora_layers(part).items()
        }
        try:
            subject.swap(model, deployment.other(deployment.first))
        except Exception:  # refused, whatever the subject raises
            return []
        found = _foreign(snapshot, subject.adapter_name)
        found += [
            f"{path} has {list(layer.active_adapters)} active, not {then}"
            for path, (layer, then) in layers.items()
            if list(layer.active_adapters) != then
        ]
        if not found and compare(deployment.run(model), output).max_error != 0.0:
            found.append("the active adapter computes something else")
        return found


_FLAGS = ("r", "lora_alpha", "use_rslora", "lora_bias", "use_dora")


def records(deployment: Deployment, model: Any) -> dict[str, Any]:
    """What layers and configs say of adapters that are not swapped, which are active, and which train."""
    own = deployment.subject.adapter_name
    found: dict[str, Any] = {}
    for module in deployment.subject.models(model):
        for path, part in module.named_modules():
            found[f"{path}.training"] = part.training
            for name, config in getattr(part, "peft_config", {}).items():
                if name != own:
                    found[f"{path}.peft_config[{name!r}]"] = copy.deepcopy(vars(config))
        for path, layer in lora_layers(module).items():
            found[f"{path}'s active adapters"] = list(layer.active_adapters)
            for flag in _FLAGS:
                value = getattr(layer, flag, None)
                if isinstance(value, Mapping):
                    found |= {f"{path}.{flag}[{n!r}]": v for n, v in value.items() if n != own}
    return found


def _foreign(snapshot: Snapshot, own: str) -> list[str]:
    """What has changed of tensors that are not those of the adapter of this name."""
    mine = (f".{own}.", f".{own} ", f"peft_config['{own}']")
    changes = [change for change in snapshot.changes() if _is_tensor_change(change)]
    return [change for change in changes if not any(word in change for word in mine)]


def _is_tensor_change(change: str) -> bool:
    said = change.split(" ", 1)[1]
    if said.endswith("of the same storage"):  # PEFT's MultiheadAttention does this at each call
        return False
    return any(
        word in said for word in ("values", "its ", "became", "tensor", "added", "gone", "replaced")
    )


def few(texts: Iterable[str]) -> str:
    """The first three of some sentences, and how many more there are."""
    shown = list(texts)
    more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""
    return "; ".join(shown[:3]) + more
