"""Which tensors of a model a call reads: what others hold is no part of what is served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hotswap.checks.equivalence import compare
from hotswap.checks.snapshot import Snapshot
from hotswap.engine.layout.auxiliary import auxiliary_slots
from hotswap.engine.layout.slots import lora_layers, slots
from pytest_hotswap.contract.deployment import Deployment


def is_read(deployment: Deployment, model: Any = None) -> bool:
    """Whether a call reads what hangs in LoRA layers under the name of the adapter, if there are any.

    It may be given other weights, or another adapter of the layers may be the one that is in use. What a
    model that does not run reads is not known: it counts.
    """
    if not deployment.runs_alone:
        return True
    model = deployment.compiled if model is None else model
    tensors = _of_layers(deployment, deployment.module_of(model))
    try:
        return not tensors or _shows(deployment, model, [(t, torch.ones_like(t)) for t in tensors])
    except Exception:  # whatever the model raises
        return True


def traces(deployment: Deployment, snapshot: Snapshot) -> list[str]:
    """What is not as in a snapshot, without values that no call reads: places of a bank that do not serve.

    What hangs in LoRA layers that serve counts bit for bit, whatever it does to the outputs now.
    """
    changes = snapshot.changes(storage=False)
    served = deployment.served
    layers = _of_layers(deployment, served) if changes and is_read(deployment) else []
    strict = {tensor.data_ptr() for tensor in layers}
    strict |= {s.local.data_ptr() for s in auxiliary_slots(served, deployment.subject.adapter_name)}
    others = {
        name: (tensor, _moved_on(tensor, then))
        for name, (tensor, then) in snapshot.other_values().items()
        if tensor.is_floating_point() and tensor.data_ptr() not in strict
    }
    if (
        others
        and deployment.runs_alone
        and not _shows(deployment, deployment.compiled, [*others.values()])
    ):
        changes = [c for c in changes if c.removesuffix(" changed its values") not in others]
    return changes


def _moved_on(tensor: Tensor, then: Tensor) -> Tensor:
    """The tensor with other numbers still where it is not what it was."""
    return torch.where(tensor == then, tensor, tensor + 1)


def _of_layers(deployment: Deployment, model: Any) -> list[Tensor]:
    """What of the adapter hangs in LoRA layers; of a mesh, on this rank."""
    name = deployment.subject.adapter_name
    layers = lora_layers(model, name).values()
    found = [slot.local for layer in layers for slot in slots(layer, name)]
    return found + [s for layer in layers if torch.is_tensor(s := layer.scaling[name])]


def _shows(deployment: Deployment, model: Any, others: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether the outputs are others while these tensors have other values."""
    before = deployment.run(model)
    with _holding(others):
        return compare(deployment.run(model), before).max_error != 0.0


@contextmanager
def _holding(others: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    kept = [tensor.detach().clone() for tensor, _ in others]
    with torch.no_grad():
        for tensor, value in others:
            tensor.copy_(value)
        try:
            yield
        finally:
            for (tensor, _), value in zip(others, kept, strict=True):
                tensor.copy_(value)
