"""What the laws look at in a model, and what their controls touch."""

from __future__ import annotations

from typing import Any

import torch

from hotswap.engine.layout.slots import lora_layers, slots
from pytest_hotswap.contract.deployment import Deployment

_BYSTANDER = "default2"  # contains the slot's name


def lora_b(deployment: Deployment, model: Any) -> Any:
    """The weight of the first layer's lora_B."""
    name = deployment.subject.adapter_name
    layer = next(iter(lora_layers(model, name).values()))
    return slots(layer, name)[1].tensor


def poke(deployment: Deployment, model: Any) -> None:
    """Change that weight in place."""
    with torch.no_grad():
        lora_b(deployment, model).add_(1.0)


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


def foreign_changes(deployment: Deployment, *, swap: bool) -> list[str]:
    """What a swap (or, without, a poke) changes in the base weights and in another adapter."""
    subject = deployment.subject
    model = deployment.loaded()
    subject.add(model, deployment.first, _BYSTANDER)
    subject.prepare(model, deployment.plan)
    snapshot = deployment.fingerprint(model)
    if swap:
        # the one with the fewest modules: a swap that clears by name clears the most
        fewest = min(deployment.paths, key=lambda path: len(deployment.specs[path].modules))
        subject.swap(model, fewest)
    else:
        layer = next(iter(lora_layers(model, _BYSTANDER).values()))
        with torch.no_grad():
            slots(layer, _BYSTANDER)[0].tensor.add_(1.0)
    own = subject.adapter_name
    mine = (f".{own}.", f".{own} ", f"peft_config['{own}']")
    return [c for c in snapshot.changes() if _is_tensor_change(c) and not any(m in c for m in mine)]


def _is_tensor_change(change: str) -> bool:
    return any(word in change.split(" ", 1)[1] for word in ("values", "its ", "became", "tensor"))
