"""What the laws look at in a model, and what their controls touch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hotswap.checks.equivalence import compare
from hotswap.checks.snapshot import Snapshot
from hotswap.compiler.shards import local_of
from hotswap.engine.layout.slots import lora_layers, slots
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.subjects.base import Subject

BYSTANDER = "default2"
"""The name of another adapter: it contains that of the one that is swapped."""


def lora_b(deployment: Deployment, model: Any) -> Any:
    """The weight of the first layer's lora_B, or the part of it that is on this rank."""
    name = deployment.subject.adapter_name
    layer = next(iter(lora_layers(model, name).values()))
    return local_of(slots(layer, name)[1].tensor)


def poke(deployment: Deployment, model: Any) -> None:
    """Change that weight in place."""
    with torch.no_grad():
        lora_b(deployment, model).add_(1.0)


@contextmanager
def active(model: Any, name: str, subject: Subject) -> Iterator[None]:
    """Make another adapter the active one of each LoRA layer; the flags of its weights stay."""
    layers = [layer for part in subject.models(model) for layer in lora_layers(part).values()]
    parameters = [p for part in subject.models(model) for p in part.parameters()]
    flags = [parameter.requires_grad for parameter in parameters]

    def activate(names: list[list[str]]) -> None:
        for layer, wanted in zip(layers, names, strict=True):
            layer.set_adapter(wanted)
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)

    before = [list(layer.active_adapters) for layer in layers]
    activate([[name]] * len(layers))
    try:
        yield
    finally:
        activate(before)


def uncovered(deployment: Deployment, model: Any) -> list[str]:
    """Say which tensors are below their planned rank, and which scalings are no tensors."""
    name = deployment.subject.adapter_name
    found = []
    for module, layer in lora_layers(model, name).items():
        wanted = deployment.plan.modules[module].rank if module in deployment.plan.modules else 0
        found += [
            f"{module}.{slot.key} has rank {slot.rank}, planned {wanted}"
            for slot in slots(layer, name)
            if slot.rank is not None and slot.rank < wanted
        ]
        if not isinstance(layer.scaling[name], torch.Tensor):
            found.append(f"{module}.scaling is a {type(layer.scaling[name]).__name__}")
    return found


def foreign_changes(deployment: Deployment, adapter: Path | None) -> list[str]:
    """What a swap (or, without an adapter, a poke) changes in anything that is not the adapter swapped.

    Another adapter of the fleet stands beside it, under a name that contains its own.
    """
    subject = deployment.subject
    model = deployment.loaded()
    beside = deployment.other(deployment.first)
    subject.add(model, beside, BYSTANDER)
    subject.prepare(model, deployment.plan)
    snapshot, before = deployment.fingerprint(model), records(deployment, model)
    if adapter is not None:
        subject.swap(model, adapter)
    else:
        layer = next(iter(lora_layers(model, BYSTANDER).values()))
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


def changes_of_an_active_one(deployment: Deployment) -> list[str]:
    """What a swap changes while another adapter is the active one: its outputs, and that it is."""
    subject, model = deployment.subject, deployment.loaded()
    subject.add(model, deployment.other(deployment.first), BYSTANDER)
    subject.prepare(model, deployment.plan)
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
