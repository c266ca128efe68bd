"""Tensors cut over several devices: which of them can be exchanged shard by shard, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hotswap.compiler.compiled import Walked
from hotswap.compiler.shards import fully_sharded
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.slots import Slot
from hotswap.engine.layout.unsupported import Why

_BY_FSDP = Why(
    "is in a group of FSDP, which would bring the old shards back",
    "leave the LoRA weights whole, fully_shard(..., ignored_params=lora), or load the adapter after "
    "sharding the base model",
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
        text = "is cut over several devices, and only lora_A and lora_B are swapped by their shards"
        return Why(text, "leave this module whole")
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


def ranks_of(slots: Sequence[Slot]) -> set[tuple[int, ...]]:
    """The ranks over which the tensors are spread: one group for each mesh."""
    tensors: list[Any] = [slot.tensor for slot in slots if slot.sharded]
    meshes = {id(tensor.device_mesh): tensor.device_mesh for tensor in tensors}
    return {tuple(mesh.mesh.flatten().tolist()) for mesh in meshes.values()}
