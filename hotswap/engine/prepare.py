"""prepare: pad every LoRA weight to its target rank and turn every scaling into a tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from peft import LoraModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from hotswap.adapters.config import unsupported_features
from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.compiled import Walked, compiled_parts, walk
from hotswap.engine.layout.adapter_slots import Carried
from hotswap.engine.layout.arena import Arena, Layout
from hotswap.engine.layout.auxiliary import hook, unhook, unsupported_wrappers
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import prepared_of
from hotswap.engine.layout.scalings import Own, Scalings
from hotswap.engine.layout.slots import (
    Slot,
    add_bias,
    add_magnitude,
    lora_layers,
    unwrap,
    why_no_dora,
    why_unsupported,
)
from hotswap.engine.peft.classes import prepared_class, prepared_tuner
from hotswap.errors import AlreadyCompiledError, HotswapError, NoAdapterError, UnsupportedLayerError

CheckCompiled = Literal["error", "warn", "ignore"]


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What prepare() did: tensors padded, bytes held for the adapters now, and the rank of each module."""

    padded: int
    bytes: int
    ranks: dict[str, int]


class TargetRankError(HotswapError, ValueError):
    """The target rank or plan does not fit the adapters that the model carries."""


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
    scalings become tensors. ``adapter_name=None`` means all. A pipeline of diffusers is prepared as a
    whole; its plan is that of files which have a component before every module's name.

    Raises AlreadyCompiledError, NoAdapterError, UnsupportedLayerError or TargetRankError (each a
    ValueError) before anything is changed.
    """
    if not isinstance(model, nn.Module):
        from hotswap.engine.pipelines import prepare_pipeline

        return prepare_pipeline(
            model,
            target_rank=target_rank,
            plan=plan,
            adapter_name=adapter_name,
            check_compiled=check_compiled,
        )
    found = check_preparable(
        model,
        target_rank=target_rank,
        plan=plan,
        adapter_name=adapter_name,
        check_compiled=check_compiled,
    )
    model = unwrap(model)
    known = dict(prepared_of(model, layers=found.layers).placements)
    changes = _Changes()
    padded = 0
    placements: dict[str, Placement] = {}
    try:
        for name, carried in found.carried.items():
            owns = _owns(carried)
            if plan is not None and _add_parts(carried, plan, changes):
                carried = Carried.of(model, name, walked=found.walked, layers=carried.layers)
            before = [slot.tensor.data for slot in carried.slots]
            arena = _arena(carried, before, found.ranks, known.get(name))
            if arena is not None:
                padded += _commit(carried, before, arena, owns, changes)
                placements[name] = Placement.of(model, carried, arena)
                placements[name].label = known[name].label if name in known else name
        tuner = getattr(model, "base_model", None)
        cls: Any = type(tuner)
        if cls is LoraModel:
            changes.set(tuner, "__class__", prepared_tuner(cls))
        prepared = prepared_of(model, layers=found.layers)
    except BaseException:
        changes.undo()
        raise
    prepared.placements.update(placements)
    sizes: dict[str, int] = {}
    for carried in found.carried.values():
        for module, slots in carried.of_layer.items():
            sizes[module] = max(sizes.get(module, 0), slots[0].rank or 0)
    held = sum(prepared.placements[name].layout.bytes for name in found.carried)
    return PrepareReport(padded, held, sizes)


@dataclass(frozen=True, slots=True)
class Preparable:
    """What prepare() works on: the model's LoRA layers, what the adapters have, and the target ranks."""

    walked: Walked
    layers: dict[str, LoraLayer]
    carried: dict[str, Carried]
    ranks: dict[str, int | None]


def check_preparable(
    model: nn.Module,
    *,
    target_rank: int | None,
    plan: SwapPlan | None = None,
    adapter_name: str | None,
    check_compiled: CheckCompiled,
) -> Preparable:
    """Raise what prepare() raises, and change nothing."""
    if check_compiled not in get_args(CheckCompiled):
        raise ValueError(
            f"check_compiled is {check_compiled!r}; expected one of {get_args(CheckCompiled)}"
        )
    if target_rank is not None and plan is not None:
        raise ValueError("both target_rank and plan are given; pass one of them")
    if target_rank is not None and (type(target_rank) is not int or target_rank < 1):
        raise TargetRankError(f"target_rank is {target_rank!r}; expected an integer of at least 1")
    walked = walk(model)
    _check_compiled(model, walked, check_compiled)
    layers = lora_layers(model, walked=walked)
    loaded = list(dict.fromkeys(name for layer in layers.values() for name in layer.scaling))
    names = loaded if adapter_name is None else [adapter_name]
    if not any(name in layer.scaling for layer in layers.values() for name in names):
        wanted = "a LoRA adapter" if adapter_name is None else f"an adapter named {adapter_name!r}"
        raise NoAdapterError(
            f"the model carries no LoRA layer with {wanted} (found: {loaded}); "
            "load the first adapter before prepare()"
        )
    carried = {name: Carried.of(model, name, walked=walked, layers=layers) for name in names}
    _check_supported(unwrap(model), walked, carried)
    ranks = _target_ranks(carried, target_rank, plan)
    if plan is not None:
        _check_trained(carried, plan)
    return Preparable(walked, layers, carried, ranks)


def _check_compiled(model: nn.Module, walked: Walked, check_compiled: CheckCompiled) -> None:
    parts = compiled_parts(model, walked=walked) if check_compiled != "ignore" else []
    if not parts:
        return
    text = (
        f"the model is compiled already ({', '.join(parts[:3])}{', …' if len(parts) > 3 else ''}): "
        "prepare() would make it recompile; call prepare() before torch.compile"
    )
    if check_compiled == "error":
        raise AlreadyCompiledError(text)
    warnings.warn(text, stacklevel=4)


def _check_supported(model: nn.Module, walked: Walked, adapters: dict[str, Carried]) -> None:
    refused: dict[str, str] = {}
    configs = getattr(model, "peft_config", {})
    for name, carried in adapters.items():
        refused |= unsupported_wrappers(walked, name, carried.trained)
        for module, layer in carried.layers.items():
            if why := why_unsupported(layer, name, carried.of_layer[module]):
                refused[module] = why
            if layer.merged_adapters:
                refused[module] = f"adapters {layer.merged_adapters} are merged: unmerge first"
        if name in configs:
            features = unsupported_features(configs[name].to_dict())
            refused |= {f"adapter {name!r}": "; ".join(features)} if features else {}
    if refused:
        raise UnsupportedLayerError(refused)


def _target_ranks(
    adapters: dict[str, Carried], target_rank: int | None, plan: SwapPlan | None
) -> dict[str, int | None]:
    ranks: dict[str, int | None] = {}
    for name, carried in adapters.items():
        for module, slots in carried.of_layer.items():
            if plan is not None and module not in plan.modules:
                raise TargetRankError(
                    f"{module} carries an adapter, but the plan has no such module; "
                    "plan the fleet together with the adapter that is loaded"
                )
            rank = ranks[module] = target_rank if plan is None else plan.modules[module].rank
            if rank is None:
                continue
            groups = max(slot.groups for slot in slots)
            if rank % groups:
                raise TargetRankError(
                    f"{module} is a convolution with {groups} groups, which do "
                    f"not divide target_rank={rank}; choose a multiple"
                )
            own = _own_rank(carried.layers[module], name, slots)
            if own > rank:
                raise TargetRankError(
                    f"{module}: adapter {name!r} has rank {own}, above the target rank {rank}; "
                    f"call prepare(model, target_rank={own}) or more"
                )
    if plan is not None and (missing := [m for m in plan.modules if m not in ranks]):
        raise TargetRankError(
            f"the plan has modules without a LoRA layer in the model: {', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}; use hotswap.load(base_model, plan, adapter)"
        )
    return ranks


def _own_rank(layer: LoraLayer, name: str, slots: list[Slot]) -> int:
    own = layer.scaling.own.get(name) if isinstance(layer.scaling, Scalings) else None
    return own.rank if own is not None else slots[0].rank or 0


def _check_trained(adapters: dict[str, Carried], plan: SwapPlan) -> None:
    """Raise TargetRankError unless the model has room for the plan's whole modules and token rows."""
    for name, carried in adapters.items():
        saved = {slot.name for slot in carried.trained if slot.role == "saved"}
        tokens = {s.module: set(s.rows) for s in carried.trained if s.role == "tokens"}
        missing = [key for key in plan.saved if key not in saved]
        missing += [
            key
            for key, rows in plan.tokens.items()
            if not set(rows.indices) <= tokens.get(key, set())
        ]
        if missing:
            raise TargetRankError(
                f"the plan swaps {missing[0]}, which adapter {name!r} of the model does not train; "
                "use hotswap.load(base_model, plan, adapter)"
            )


class _Changes:
    """What was changed, and how to take it back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def set(self, owner: Any, attribute: str, value: Any) -> None:
        """Set an attribute."""
        old = getattr(owner, attribute)
        self._undo.append(lambda: setattr(owner, attribute, old))
        setattr(owner, attribute, value)

    def then(self, undo: Callable[[], object]) -> None:
        """Note how to take back a change that is about to be made."""
        self._undo.append(undo)

    def undo(self) -> None:
        """Take everything back, last first."""
        for undo in reversed(self._undo):
            undo()


def _add_parts(carried: Carried, plan: SwapPlan, changes: _Changes) -> bool:
    """Add the DoRA magnitudes and biases that the plan has and the model lacks; tell if there were any."""
    name, added = carried.name, False
    for module, layer in carried.layers.items():
        place = plan.modules[module]
        if place.dora and name not in layer.lora_magnitude_vector:
            if why := why_no_dora(layer):
                raise UnsupportedLayerError({module: why})
            changes.then(partial(_remove_magnitude, layer, name, dict(vars(layer))))
            add_magnitude(layer, name)
            added = True
        if place.bias and layer.lora_B[name].bias is None:
            changes.then(partial(_remove_bias, layer, name))
            add_bias(layer, name)
            added = True
    return added


def _remove_magnitude(layer: LoraLayer, name: str, before: dict[str, Any]) -> None:
    layer.lora_variant.pop(name, None)
    if name in layer.lora_magnitude_vector:
        del layer.lora_magnitude_vector[name]
    layer.use_dora[name] = False
    if "adapter_layer_names" in before:
        layer.adapter_layer_names = before["adapter_layer_names"]
    else:
        vars(layer).pop("adapter_layer_names", None)


def _remove_bias(layer: LoraLayer, name: str) -> None:
    layer.lora_B[name].bias = None
    layer.lora_bias[name] = False


@torch.no_grad()
def _arena(
    carried: Carried,
    tensors: list[Tensor],
    ranks: dict[str, int | None],
    known: Placement | None,
) -> Arena | None:
    """Copy an adapter's tensors, padded, and its scalings into a new arena; nothing is changed yet.

    None: they are in one already, with all the room that is wanted.
    """
    found = carried.slots
    shapes = [slot.shape(max(ranks.get(slot.module) or 0, slot.rank or 0)) for slot in found]
    scalings = _scalings(carried)
    layout = Layout.of([*tensors, *scalings], [*shapes, *(() for _ in scalings)])
    if known is not None and not known.replaced and not known.moved and known.layout == layout:
        return None
    arena = layout.new(inference=any(slot.tensor.is_inference() for slot in found))
    with torch.inference_mode(arena.inference):
        parts = [
            slot.part(view, tensor.shape[slot.axis] if slot.axis is not None else 0)
            for slot, view, tensor in zip(found, arena.views, tensors, strict=False)
        ]
        values = map(Slot.split, found, tensors, parts)
        torch._foreach_copy_([*parts, *arena.views[len(found) :]], [*values, *scalings])
    return arena


def _scalings(carried: Carried) -> list[Tensor]:
    """The scalings as 0-d tensors: float32, or float64 in a float64 model."""
    plain: dict[tuple[torch.dtype, torch.device], dict[str, float]] = {}
    found: dict[str, Tensor] = {}
    for module, layer in carried.layers.items():
        scaling = layer.scaling
        if isinstance(scaling, Scalings):
            found[module] = scaling[carried.name]
            continue
        weight = carried.of_layer[module][0].tensor
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        plain.setdefault((dtype, weight.device), {})[module] = float(scaling[carried.name])
    for (dtype, device), values in plain.items():
        made = torch.tensor(list(values.values()), dtype=dtype, device=device)
        found.update(zip(values, made.unbind(), strict=True))
    return [found[module] for module in carried.layers]


def _owns(carried: Carried) -> list[Own]:
    """What the adapter has for each of its layers, before anything is added."""
    owns = []
    for module, slots in carried.of_layer.items():
        roles = [slot.role for slot in slots]
        rank = _own_rank(carried.layers[module], carried.name, slots)
        owns.append(Own(rank, bias="bias" in roles, dora="magnitude" in roles))
    return owns


def _commit(
    carried: Carried, before: list[Tensor], arena: Arena, owns: list[Own], changes: _Changes
) -> int:
    """Let the tensors and scalings be the arena's views; count the tensors that grew."""
    name, found = carried.name, carried.slots
    changes.then(partial(_assign, found, before))
    _assign(found, arena.views)
    for slot in carried.trained:
        changes.then(unhook(slot))
        hook(slot, name)
    scales = arena.views[len(found) :]
    plain: list[tuple[LoraLayer, type, dict[str, float]]] = []
    changes.then(partial(_untensorise, plain))
    for layer, view, own in zip(carried.layers.values(), scales, owns, strict=True):
        scaling: Any = layer.scaling
        if isinstance(scaling, Scalings):
            changes.then(scaling.restorer(name))
            scaling.put(name, view)
        else:
            plain.append((layer, type(layer), scaling))
            scaling = _tensorise(layer, name, view)
        scaling.own.setdefault(name, own)
    return sum(view.numel() > old.numel() for view, old in zip(arena.views, before, strict=False))


def _assign(found: list[Slot], values: list[Tensor]) -> None:
    """Let the slots' parameters hold these tensors, and the modules around them say how wide they are."""
    for slot, value in zip(found, values, strict=False):
        slot.tensor.data = value
        if slot.owner is not None and slot.axis is not None:
            vars(slot.owner)[slot.size_attribute] = value.shape[slot.axis] * slot.groups


def _tensorise(layer: LoraLayer, name: str, view: Tensor) -> Scalings:
    """Replace a layer's scaling dict by Scalings, in which the view stands for one adapter."""
    scalings = Scalings({}, dtype=view.dtype, device=view.device)
    scalings.follow(layer.r, layer.lora_alpha, layer.use_rslora)
    for other, value in layer.scaling.items():
        if other == name:
            scalings.put(name, view)
        else:
            scalings[other] = value
    cls: Any = type(layer)
    # past Module.__setattr__, which takes as long as all the rest
    del vars(layer)["scaling"]
    layer._modules["scaling"] = scalings
    layer.__class__ = prepared_class(cls)
    return scalings


def _untensorise(plain: list[tuple[LoraLayer, type, dict[str, float]]]) -> None:
    """Give the layers their classes and scaling dicts back, as far as they lost them."""
    for layer, cls, scaling in plain:
        layer.__class__ = cls
        layer._modules.pop("scaling", None)
        layer.scaling = scaling
