"""Tensors cut over several devices: which of them can be exchanged shard by shard, and why others cannot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.compiled import Walked, walk
from hotswap.compiler.shards import fully_sharded, local_of
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.slots import Slot
from hotswap.engine.layout.unsupported import Why

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer

_BY_FSDP = Why(
    "is in a group of FSDP, which would bring the old shards back",
    "leave the LoRA weights whole, fully_shard(..., ignored_params=lora), or load the adapter after "
    "sharding the base model",
)
NO_NORM = Why("DoRA needs the norm of the base weight, which is cut over several devices")
_APART = "leave this module out of target_modules, or load the base model whole"
_NO_FACTOR = Why(
    "is cut over several devices, and only lora_A and lora_B are swapped by their shards",
    "leave this module whole",
)
_BY_RANK = Why(
    "is cut along its rank axis, which padding needs whole",
    "cut the model first, and call prepare() then, which puts it together along that axis",
)


def why_unswappable(
    adapter: AdapterSlots, walked: Walked, *, by_rank: bool = False
) -> dict[str, Why]:
    """Name the tensors of an adapter whose shards cannot be exchanged, with the reason.

    ``by_rank``: those that are cut along their rank axis can, as they will be put together.
    """
    managed = fully_sharded(module for _, module in walked)
    found: dict[str, Why] = {}
    for slot in adapter.slots:
        held = (id(slot.holder), slot.state_key.rpartition(".")[2])
        if held in managed:
            found[slot.name] = _BY_FSDP
        elif slot.sharded and (why := _why_not(slot)) and not (by_rank and why is _BY_RANK):
            found[slot.name] = why
    return found


def _why_not(slot: Slot) -> Why | None:
    """Say why a DTensor cannot be exchanged, or None when it can."""
    tensor: Any = slot.tensor
    if slot.role in ("saved", "tokens", "magnitude"):
        return _NO_FACTOR
    if any(placement.is_partial() for placement in tensor.placements):
        return Why("is a sum over several devices", "redistribute it before prepare()")
    return _BY_RANK if _cut_by_rank(slot) else None


def _cut_by_rank(slot: Slot) -> bool:
    """Whether a tensor is cut along its rank axis, on any of the ranks."""
    tensor: Any = slot.tensor
    return slot.axis is not None and any(p.is_shard(slot.axis) for p in tensor.placements)


def put_together(slots: Sequence[Slot]) -> dict[int, Tensor]:
    """Give those of the tensors that are cut along their rank axis whole along it, by index.

    Every rank has to take part.
    """
    from torch.distributed.tensor import Replicate

    found: dict[int, Tensor] = {}
    for index, slot in enumerate(slots):
        if slot.sharded and _cut_by_rank(slot):
            tensor: Any = slot.tensor.detach()
            kept = [Replicate() if p.is_shard(slot.axis) else p for p in tensor.placements]
            found[index] = tensor.redistribute(placements=kept)
    return found


def zero_outputs(weight: Tensor) -> Tensor:
    """A zero for each output of a linear layer, cut as its weight is along them."""
    from torch.distributed.tensor import DTensor

    own = local_of(weight)
    zeros = torch.zeros(own.shape[0], dtype=weight.dtype, device=weight.device)
    if own is weight:
        return zeros
    like: Any = weight
    shape = weight.shape[:1]
    return DTensor.from_local(
        zeros, like.device_mesh, like.placements, run_check=False, shape=shape, stride=(1,)
    )


def ranks_of(slots: Sequence[Slot]) -> set[tuple[int, ...]]:
    """The ranks over which the tensors are spread: one group for each mesh."""
    tensors: list[Any] = [slot.tensor for slot in slots if slot.sharded]
    meshes = {id(tensor.device_mesh): tensor.device_mesh for tensor in tensors}
    return {tuple(mesh.mesh.flatten().tolist()) for mesh in meshes.values()}


def cut_over(modules: Iterable[nn.Module]) -> tuple[int, ...] | None:
    """The ranks over which weights of some modules are cut, but by FSDP; None for no mesh or several."""
    found = [*modules]
    managed = fully_sharded(found)
    weights: list[Any] = [
        weight
        for module in found
        for key, weight in module._parameters.items()
        if weight is not None and (id(module._parameters), key) not in managed
    ]
    cut = [w for w in weights if local_of(w) is not w and any(p.is_shard() for p in w.placements)]
    meshes = {tuple(weight.device_mesh.mesh.flatten().tolist()) for weight in cut}
    return meshes.pop() if len(meshes) == 1 else None


def why_not_loaded(model: nn.Module, plan: SwapPlan) -> dict[str, Why]:
    """Name what PEFT cannot put into a base model that is cut, of all that a plan has."""
    walked = walk(model)
    shared = {
        name
        for name, module in walked
        if any(local_of(w) is not w for w in module._parameters.values() if w is not None)
    }
    saved = {key.rpartition(".")[0] for key in plan.saved}
    found = dict.fromkeys(sorted((saved | set(plan.tokens)) & shared), _NO_FACTOR)
    styles = getattr(model, "tp_plan", None) or {}
    for name, module in walked:
        if name not in plan.modules or name not in shared or not cut_over((module,)):
            continue
        style = styles.get(re.sub(r"\.\d+(?=\.|$)", ".*", name), "colwise")
        if plan.ground.get("init_lora_weights"):
            text = (
                "is cut over several devices, and PEFT takes a part out of whole base weights only"
            )
            found[name] = Why(
                text, "load the base model whole, or adapters that were converted to LoRA"
            )
        elif plan.modules[name].dora:
            found[name] = NO_NORM
        elif style not in ("colwise", "rowwise"):
            text = f"is cut over several devices as {style!r}, which PEFT's LoRA does not follow"
            found[name] = Why(text, _APART)
    return found


def why_narrow(layer: LoraLayer, found: Sequence[Slot]) -> Why | None:
    """Say why a layer's adapter is only as wide as the part that a rank has of the base, or None."""
    from peft.tuners.lora.layer import Linear

    weight = layer.get_base_layer()._parameters.get("weight")
    if not isinstance(layer, Linear) or weight is None or local_of(weight) is weight:
        return None
    wide = {"lora_A.weight": (1, weight.shape[1]), "lora_B.weight": (0, weight.shape[0])}
    for slot in found:
        axis, width = wide.get(slot.key, (0, slot.tensor.shape[0]))
        if slot.tensor.shape[axis] != width:
            text = f"PEFT made {slot.key} {slot.tensor.shape[axis]} wide, as this rank's part of {width}"
            return Why(
                text, "leave this module out of target_modules, or load the base model whole"
            )
    return None
