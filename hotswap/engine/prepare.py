"""prepare: pad every LoRA weight to its target rank and turn every scaling into a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraModel, PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.shards import over_ranks
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.arena import Arena, Layout
from hotswap.engine.layout.auxiliary import hook, unhook
from hotswap.engine.layout.classes import prepared_class, prepared_tuner
from hotswap.engine.layout.dora import add_magnitude, why_no_dora
from hotswap.engine.layout.modes import in_inference_mode
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import entry_of
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.sharding import put_together, zero_outputs
from hotswap.engine.layout.slots import Slot
from hotswap.engine.layout.states import LayerState
from hotswap.engine.layout.unsupported import refusal, why_merged, why_not_there
from hotswap.engine.mesh import join_meshes
from hotswap.engine.parts import Part, TargetRankError, parts_of, plans_of
from hotswap.engine.preparable import (
    CheckCompiled,
    Preparable,
    check_options,
    check_preparable,
    own_rank,
)
from hotswap.engine.saving import prepared_model
from hotswap.engine.transaction import Changes, exclusive


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What prepare() did: tensors padded, bytes held for the adapters now, and the rank of each module."""

    padded: int
    bytes: int
    ranks: dict[str, int]


def prepare(
    model: Any,
    *,
    target_rank: int | None = None,
    plan: SwapPlan | None = None,
    adapter_name: str | None = None,
    check_compiled: CheckCompiled = "error",
) -> PrepareReport:
    """Prepare a model's LoRA layers in place, before torch.compile, so that swaps do not recompile.

    Weights are padded with zeros to ``target_rank`` or to the plan's rank of each module; ``B @ A`` is
    unchanged and the scaling stays alpha over the adapter's own rank. A plan also brings the DoRA
    magnitudes and lora_B biases that some adapter of the fleet has. Everything of an adapter then lies
    in one buffer per device. Parameter objects, names, dtype, device and ``requires_grad`` are kept.
    Preparing again changes nothing, or widens further. Without ``target_rank`` and ``plan`` only the
    scalings become tensors. ``adapter_name=None`` means all that are not merged. A pipeline of diffusers is
    prepared as a whole; its plan is that of files which have a component before every module's name.

    Raises AlreadyCompiledError, NoAdapterError, UnsupportedLayerError or TargetRankError (each a
    ValueError) before anything is changed.
    """
    parts = parts_of(model)
    with exclusive(parts, nested=True), Changes() as changes, changes:
        return prepare_parts(
            parts,
            changes,
            target_rank=target_rank,
            plan=plan,
            adapter_name=adapter_name,
            check_compiled=check_compiled,
        )


def prepare_parts(
    parts: Sequence[Part],
    changes: Changes,
    *,
    target_rank: int | None = None,
    plan: SwapPlan | None = None,
    adapter_name: str | None = None,
    check_compiled: CheckCompiled = "error",
    join: Callable[[Sequence[Part]], None] | None = None,
) -> PrepareReport:
    """Prepare parts that are held, as ``prepare`` does; the changes take all of it back."""
    check_options(target_rank, plan, check_compiled)
    plans = plans_of(parts, plan, [part.key for part in parts]) if plan is not None else {}
    if plan is not None and (lacking := [part.key for part in parts if part.key not in plans]):
        raise TargetRankError(
            f"{lacking[0]} carries an adapter, but the plan has no modules of it; "
            "plan the fleet together with the adapter that is loaded"
        )
    found = []
    for part in parts:
        found.append(
            check_preparable(
                part,
                target_rank=target_rank,
                plan=plans.get(part.key),
                adapter_name=adapter_name,
                check_compiled=check_compiled,
            )
        )
    padded = held = 0
    ranks: dict[str, int] = {}
    for part, each in zip(parts, found, strict=True):
        padded += _prepare_part(each, plans.get(part.key), changes)
        placements = entry_of(each.model).placements
        held += sum(placements[name].layout.bytes for name in each.adapters)
        for adapter in each.adapters.values():
            for module, slots in adapter.of_layer.items():
                key = part.named(module)
                ranks[key] = max(ranks.get(key, 0), slots[0].rank or 0)
    (join or join_meshes)(parts)
    return PrepareReport(padded, held, ranks)


def _prepare_part(found: Preparable, plan: SwapPlan | None, changes: Changes) -> int:
    """Prepare the adapters of one model; count the tensors that grew."""
    model, padded = found.model, 0
    known = dict(entry_of(model).placements)
    arenas: list[tuple[AdapterSlots, Arena]] = []
    for name, adapter in found.adapters.items():
        states = _states(adapter)
        if plan is not None and _add_parts(adapter, plan, changes):
            adapter = AdapterSlots.of(model, name, walked=found.walked, layers=adapter.layers)
            if lost := {s.module: why for s in adapter.slots if (why := why_not_there(s))}:
                raise refusal(lost)
        if _put_together(adapter, changes):
            adapter = AdapterSlots.of(model, name, walked=found.walked, layers=adapter.layers)
        before = [slot.local for slot in adapter.slots]
        arena = _arena(adapter, before, found.ranks, known.get(name))
        if arena is not None:
            padded += _move_into(adapter, before, arena, states, changes)
            if any(slot.sharded for slot in adapter.slots):  # their parameters are others now
                adapter = AdapterSlots.of(model, name, walked=found.walked, layers=adapter.layers)
            arenas.append((adapter, arena))
    tuner = getattr(model, "base_model", None)
    cls: Any = type(tuner)
    if cls is LoraModel:
        changes.set(tuner, "__class__", prepared_tuner(cls))
        if isinstance(model, PeftModel) and over_ranks():
            kind: Any = type(model)
            changes.set(model, "__class__", prepared_model(kind))
    placements = entry_of(model, layers=found.layers).placements
    for adapter, arena in arenas:
        old = known.get(adapter.name)
        if old is not None:
            changes.callback(setattr, old.shared, "owner", old)
        placement = Placement.of(model, adapter, arena)
        if old is not None:
            placement.label = old.label
        changes.keep(placements, adapter.name)
        placements[adapter.name] = placement
    return padded


def _add_parts(adapter: AdapterSlots, plan: SwapPlan, changes: Changes) -> bool:
    """Add the DoRA magnitudes and biases that the plan has and the model lacks; tell if there were any."""
    name, added = adapter.name, False
    for module, layer in adapter.layers.items():
        place = plan.modules[module]
        if place.dora and name not in layer.lora_magnitude_vector:
            if why := why_no_dora(layer) or why_merged(layer):
                raise refusal({module: why})
            changes.callback(_remove_magnitude, layer, name)
            changes.keep(vars(layer), "adapter_layer_names")
            add_magnitude(layer, name)
            added = True
        if place.bias and layer.lora_B[name].bias is None:
            changes.callback(_remove_bias, layer, name)
            _add_bias(layer, name)
            added = True
    return added


def _put_together(adapter: AdapterSlots, changes: Changes) -> bool:
    """Put DTensors together that are cut along their rank axis; tell if there were any."""
    found = put_together(adapter.slots)
    for index, whole in found.items():
        slot = adapter.slots[index]
        if slot.holder is not None:
            key = slot.state_key.rpartition(".")[2]
            changes.keep(slot.holder, key)
            slot.holder[key] = nn.Parameter(whole, requires_grad=slot.tensor.requires_grad)
    return bool(found)


def _remove_magnitude(layer: LoraLayer, name: str) -> None:
    layer.lora_variant.pop(name, None)
    if name in layer.lora_magnitude_vector:
        del layer.lora_magnitude_vector[name]
    layer.use_dora[name] = False


def _add_bias(layer: LoraLayer, adapter_name: str) -> None:
    """Give a layer's lora_B a bias of zeros; its output stays as it is."""
    weight = layer.lora_B[adapter_name].weight
    bias = nn.Parameter(zero_outputs(weight), requires_grad=weight.requires_grad)
    layer.lora_B[adapter_name].bias = bias
    layer.lora_bias[adapter_name] = True


def _remove_bias(layer: LoraLayer, name: str) -> None:
    layer.lora_B[name].bias = None
    layer.lora_bias[name] = False


@torch.no_grad()
def _arena(
    adapter: AdapterSlots,
    tensors: list[Tensor],
    ranks: dict[str, int | None],
    known: Placement | None,
) -> Arena | None:
    """Copy an adapter's tensors, padded, and its scalings into a new arena; nothing is changed yet.

    None: they are in one already, with all the room that is wanted.
    """
    found = adapter.slots
    wanted = [max(ranks.get(slot.module) or 0, slot.rank or 0) for slot in found]
    shapes = [slot.local_shape(rank) for slot, rank in zip(found, wanted, strict=True)]
    scalings = [_scaling(layer, adapter, module) for module, layer in adapter.layers.items()]
    layout = Layout.of([*tensors, *scalings], [*shapes, *(() for _ in scalings)])
    if known is not None and known.in_place and known.layout == layout:
        return None
    arena = layout.new(inference=any(slot.tensor.is_inference() for slot in found))
    with in_inference_mode(arena.inference):
        parts = [
            slot.part(view, tensor.shape[slot.axis] if slot.axis is not None else 0)
            for slot, view, tensor in zip(found, arena.views, tensors, strict=False)
        ]
        values = map(Slot.split, found, tensors, parts)
        torch._foreach_copy_([*parts, *arena.views[len(found) :]], [*values, *scalings])
    return arena


def _scaling(layer: LoraLayer, adapter: AdapterSlots, module: str) -> Tensor:
    """A layer's scaling as a 0-d tensor: float32, or float64 in a float64 model."""
    if isinstance(layer.scaling, Scalings):
        return layer.scaling[adapter.name]
    weight = adapter.of_layer[module][0].tensor
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return torch.tensor(float(layer.scaling[adapter.name]), dtype=dtype, device=weight.device)


def _states(adapter: AdapterSlots) -> list[LayerState]:
    """What the adapter has for each of its layers, before anything is added."""
    states = []
    for module, slots in adapter.of_layer.items():
        roles = [slot.role for slot in slots]
        layer, name = adapter.layers[module], adapter.name
        alpha, rslora = layer.lora_alpha[name], bool(layer.use_rslora.get(name))
        rank = own_rank(layer, name, slots)
        states.append(LayerState(rank, alpha, rslora, "bias" in roles, "magnitude" in roles))
    return states


def _move_into(
    adapter: AdapterSlots,
    before: list[Tensor],
    arena: Arena,
    states: list[LayerState],
    changes: Changes,
) -> int:
    """Let the tensors and scalings be the arena's views; count the tensors that grew."""
    name, found = adapter.name, adapter.slots
    for slot in found:
        if slot.sharded and slot.holder is not None:
            changes.keep(slot.holder, slot.state_key.rpartition(".")[2])
    changes.callback(_assign, found, before)
    _assign(found, arena.views)
    for slot in adapter.auxiliary:
        changes.callback(unhook(slot))
        hook(slot, name)
    scales = arena.views[len(found) :]
    for layer, view, state in zip(adapter.layers.values(), scales, states, strict=True):
        if not isinstance(layer.scaling, Scalings):
            changes.callback(_restore_scaling, layer, type(layer), layer.scaling)
            _replace_scaling(layer, name, view)
        scaling: Any = layer.scaling
        changes.keep(scaling._buffers, name)
        scaling.put(name, view)
        changes.keep(scaling.states.places, name)
        scaling.states.setdefault(name, state)
    return sum(view.numel() > old.numel() for view, old in zip(arena.views, before, strict=False))


def _assign(found: list[Slot], values: list[Tensor]) -> None:
    """Let the slots' parameters hold these tensors, and the modules around them say how wide they are.

    A DTensor cannot take another shape, so a new parameter takes its place.
    """
    for slot, value in zip(found, values, strict=False):
        if slot.sharded and slot.holder is not None:
            length = value.shape[slot.axis] if slot.axis is not None else 0
            whole = slot.sharding(value, length * slot.groups // slot.experts)
            new = nn.Parameter(whole, requires_grad=slot.tensor.requires_grad)
            slot.holder[slot.state_key.rpartition(".")[2]] = new
        else:
            slot.tensor.data = value
        if slot.owner is not None and slot.axis is not None:
            setattr(slot.owner, slot.size_attribute, value.shape[slot.axis] * slot.groups)


def _replace_scaling(layer: LoraLayer, name: str, view: Tensor) -> None:
    """Replace a layer's scaling dict by Scalings, in which the view will stand for one adapter."""
    others = {other: value for other, value in layer.scaling.items() if other != name}
    layer.scaling = Scalings(others, dtype=view.dtype, device=view.device)
    cls: Any = type(layer)
    layer.__class__ = prepared_class(cls)


def _restore_scaling(layer: LoraLayer, cls: type, scaling: dict[str, float]) -> None:
    """Give a layer its class and scaling dict back, as far as it lost them."""
    layer.__class__ = cls
    layer._modules.pop("scaling", None)
    layer.scaling = scaling
