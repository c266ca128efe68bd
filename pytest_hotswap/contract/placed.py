"""What of an adapter is in place, bit for bit, whether a forward reads it or not; and what is at fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hotswap.adapters.names import canonical
from hotswap.checks.equivalence import TOLERANCES, compare
from hotswap.compiler.regions import unwrap
from hotswap.compiler.shards import local_of
from hotswap.engine.layout.auxiliary import auxiliary_slots
from hotswap.engine.layout.slots import Slot, lora_layers, slots
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.reading import is_read


def misplaced(deployment: Deployment, adapter: Path, scale: float = 1.0) -> list[str]:
    """Say which layers that a call reads hold something else than the adapter's fresh load, scaled."""
    found = unlike_the_file(deployment, adapter, scale)
    return found if found and is_read(deployment) else []


def unlike_the_file(deployment: Deployment, adapter: Path, scale: float = 1.0) -> list[str]:
    """The same of all layers, whether a call reads them or not.

    A layer that keeps the same adapter in another form is right if what it adds to the base weight is.
    """
    loaded = deployment.fresh(adapter, scale)
    found = [
        f"{module} does not hold what the file has: {', '.join(differing)}"
        for module, differing in _misplaced(deployment, deployment.served, loaded)
    ]
    wanted = {slot.name: slot for slot in auxiliary_slots(loaded, "default")}
    found += [
        f"{slot.name} is not what the file has"
        for slot in auxiliary_slots(deployment.served, deployment.subject.adapter_name)
        if not torch.equal(slot.tensor, _whole(slot, wanted.get(slot.name)))
    ]
    return found


def _misplaced(deployment: Deployment, model: Any, loaded: Any) -> Iterator[tuple[str, list[str]]]:
    name = deployment.subject.adapter_name
    fresh = {} if loaded is None else lora_layers(loaded, "default")
    for module, layer in lora_layers(model, name).items():
        theirs = fresh.get(module)
        differing = list(_differing(layer, name, theirs))
        if differing and not _adds_the_same(layer, name, theirs):
            yield module, differing


def blame(
    deployment: Deployment, adapter: Path | None, *, model: Any = None, scale: float = 1.0
) -> str:
    """Name the first module that differs from the oracle.

    That is the first one which holds something else; only where none does are outputs compared, which
    differ in the modules after it as well, and there often more than in the one at fault.
    """
    ours = deployment.served if model is None else deployment.module_of(model)
    found = next(_held_wrongly(deployment, ours, adapter, scale), None)
    if not found and is_read(deployment, model):  # else the module itself computes something else
        oracle = deployment.base if adapter is None else deployment.fresh(adapter, scale)
        with torch.compiler.set_stance("force_eager"):  # what is compiled in place runs hooks too
            found = deployment.difference(ours, oracle, deployment.run)
    return f"; the first module that differs is {found}" if found else ""


def _held_wrongly(
    deployment: Deployment, model: Any, adapter: Path | None, scale: float
) -> Iterator[str]:
    loaded = None if adapter is None else deployment.fresh(adapter, scale)
    layers = lora_layers(model, deployment.subject.adapter_name)
    if loaded is not None or not any(layer.disable_adapters for layer in layers.values()):
        for module, differing in _misplaced(deployment, model, loaded):
            yield f"{module} ({', '.join(differing)})"
    theirs = base_tensors(deployment.base)
    for name, tensor in base_tensors(model).items():
        other = theirs.get(name, tensor)  # of a mesh, the base is whole
        if tensor.shape == other.shape and not torch.equal(tensor, other.to(tensor)):
            yield name.rpartition(".")[0]


def base_tensors(model: Any) -> dict[str, Any]:
    """The tensors of a model by the names that they have in the base model."""
    return {
        in_base(name): local_of(tensor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def in_base(name: str) -> str:
    """A tensor's name in the base model, without what PEFT puts around a module."""
    return canonical(name).replace(".base_layer.", ".").replace(".original_module.", ".")


def _whole(slot: Slot, theirs: Slot | None) -> Any:
    """What a saved module's tensor or token rows are to be: the base's where the fresh load has none."""
    if theirs is not None and slot.role != "tokens":
        return theirs.tensor.detach().to(slot.tensor)
    wanted: Any = slot.default
    if theirs is not None:
        wanted = wanted.clone()
        wanted[[slot.rows.index(row) for row in theirs.rows]] = theirs.tensor.detach().to(wanted)
    return wanted.to(slot.tensor)


def unreached(deployment: Deployment) -> list[str]:
    """Name the LoRA layers that a forward on the subject's inputs never calls."""
    model = unwrap(deployment.served)
    layers = lora_layers(model, deployment.subject.adapter_name)
    called: set[str] = set()
    handles = [
        layer.register_forward_pre_hook(lambda *_, module=module: called.add(module))
        for module, layer in layers.items()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            deployment.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return [module for module in layers if module not in called]


def _differing(layer: Any, name: str, theirs: Any) -> Iterator[str]:
    """The tensors of a layer whose part that an adapter fills is not the fresh load's."""
    if theirs is None:  # not targeted: nothing is to be added
        if float(layer.scaling[name]) != 0.0:
            yield from (s.key for s in slots(layer, name) if s.axis == 1 and s.local.any())
        yield from (s.key for s in slots(layer, name) if s.role == "bias" and s.local.any())
        return
    wanted = {slot.key: slot for slot in slots(theirs, "default")}
    for slot in slots(layer, name):
        other = wanted.get(slot.key)
        if other is None:
            if slot.role == "bias" and slot.tensor.any():
                yield slot.key
        elif not _holds(slot, other):
            yield slot.key
    scaling = float(theirs.scaling["default"])
    if abs(float(layer.scaling[name]) - scaling) > 1e-6 * abs(scaling):
        yield "scaling"


def _holds(slot: Slot, other: Slot) -> bool:
    """Whether a tensor, or the part of it that is on this rank, has the values of the fresh load's."""
    if (slot.rank or 0) < (other.rank or 0):
        return False
    ours, theirs = local_of(slot.own(other.rank or 0)), other.tensor.detach()
    if slot.cut is not None:
        theirs = theirs[slot.cut]
    return torch.equal(ours, theirs.to(ours))


def _adds_the_same(layer: Any, name: str, theirs: Any) -> bool:
    """Whether what a layer adds to its base weight is what the fresh load adds."""
    if any(slot.sharded for slot in slots(layer, name)):
        return False
    extra = {slot.key: slot.tensor for slot in slots(layer, name) if slot.role != "factor"}
    wanted = {} if theirs is None else {s.key: s.tensor for s in slots(theirs, "default")}
    for key, tensor in extra.items():
        if key in wanted and not compare(tensor, wanted[key].to(tensor)).equal:
            return False
        if key not in wanted and "bias" in key and tensor.any():
            return False
    try:
        ours = _delta(layer, name)
        other = ours * 0 if theirs is None else _delta(theirs, "default")
    except Exception:  # PEFT has none for some kinds of layers
        return False
    return compare(ours, other.to(ours), tolerances=TOLERANCES["widened"]).equal


def _delta(layer: Any, name: str) -> torch.Tensor:
    """What an adapter adds to a layer's weight; for a grouped convolution, where PEFT has none, by group."""
    a, b, *_ = slots(layer, name)
    if b.groups == 1:
        found: torch.Tensor = layer.get_delta_weight(name).detach()
        return found
    # a: (rank, in / groups, *kernel), b: (out, rank / groups, *ones)
    rows, columns = (
        torch.unflatten(slot.tensor.detach(), 0, (b.groups, -1)).flatten(2) for slot in (a, b)
    )
    return torch.matmul(columns, rows) * float(layer.scaling[name])
