"""What prepare() can work on, and the reason where it cannot; nothing is changed here."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

from peft.tuners.lora.layer import LoraLayer
from torch import nn

from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.compiled import Walked, compiled_parts, walk
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.auxiliary import unsupported_wrappers
from hotswap.engine.layout.dora import why_misread, why_no_norm
from hotswap.engine.layout.hooks import why_elsewhere
from hotswap.engine.layout.registry import others
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.sharding import why_narrow, why_unswappable
from hotswap.engine.layout.slots import Slot, lora_layers
from hotswap.engine.layout.unsupported import MERGED, Why, refusal, why_not_replaced, why_other_base
from hotswap.engine.parts import Part, TargetRankError
from hotswap.errors import AlreadyCompiledError, NoAdapterError

CheckCompiled = Literal["error", "warn", "ignore"]
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
SUPPORTED_VARIANTS = ("Dora", "MiCA", "ALora")
"""MiCA's forward is that of plain LoRA; adapters with ALora have the same invocation tokens."""


@dataclass(frozen=True, slots=True)
class Preparable:
    """What prepare() works on: the model's LoRA layers, what the adapters have, and the target ranks."""

    model: nn.Module
    walked: Walked
    layers: dict[str, LoraLayer]
    adapters: dict[str, AdapterSlots]
    ranks: dict[str, int | None]


def check_options(
    target_rank: int | None, plan: SwapPlan | None, check_compiled: CheckCompiled
) -> None:
    """Raise ValueError for arguments of prepare() that contradict each other or make no sense."""
    if check_compiled not in get_args(CheckCompiled):
        raise ValueError(
            f"check_compiled is {check_compiled!r}; expected one of {get_args(CheckCompiled)}"
        )
    if target_rank is not None and plan is not None:
        raise ValueError("both target_rank and plan are given; pass one of them")
    if target_rank is not None and (type(target_rank) is not int or target_rank < 1):
        raise TargetRankError(f"target_rank is {target_rank!r}; expected an integer of at least 1")


def check_preparable(
    part: Part,
    *,
    target_rank: int | None,
    plan: SwapPlan | None = None,
    adapter_name: str | None,
    check_compiled: CheckCompiled,
) -> Preparable:
    """Raise what prepare() raises for a part, and change nothing."""
    model, whole = part.model, walk(part.given)
    _check_compiled(part.given, whole, check_compiled)
    walked = whole if model is part.given else walk(model)
    layers = lora_layers(model, walked=walked)
    loaded = list(dict.fromkeys(name for layer in layers.values() for name in layer.scaling))
    merged = {name for layer in layers.values() for name in layer.merged_adapters}
    unmerged = [name for name in loaded if name not in merged]
    names = (unmerged or loaded) if adapter_name is None else [adapter_name]
    if not any(name in layer.scaling for layer in layers.values() for name in names):
        named = "" if adapter_name is None else f" named {adapter_name!r}"
        raise NoAdapterError(f"the model carries no LoRA adapter{named}{others(model)}")
    adapters = {name: AdapterSlots.of(model, name, walked=walked, layers=layers) for name in names}
    _check_supported(model, walked, whole, adapters)
    ranks = _target_ranks(adapters, target_rank, plan)
    if plan is not None:
        _check_auxiliary(adapters, plan)
    return Preparable(model, walked, layers, adapters, ranks)


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
    warnings.warn(text, stacklevel=5)


def _check_supported(
    model: nn.Module, walked: Walked, whole: Walked, adapters: dict[str, AdapterSlots]
) -> None:
    """Raise UnsupportedLayerError for what cannot be prepared; ``whole`` is what was given, around it."""
    refused = {name: why for name, module in walked if (why := why_elsewhere(module))}
    configs = getattr(model, "peft_config", {})
    for name, adapter in adapters.items():
        refused |= unsupported_wrappers(walked, name, adapter.auxiliary)
        refused |= why_unswappable(adapter, whole, by_rank=True)
        for module, layer in adapter.layers.items():
            slots = adapter.of_layer[module]
            if why := why_unsupported(layer, name, slots) or why_narrow(layer, slots):
                refused[module] = why
            if name in layer.merged_adapters:
                refused[module] = MERGED
        if why := why_other_base(model, configs.get(name)):
            refused[f"adapter {name!r}"] = why
    if refused:
        raise refusal(refused)


def why_unsupported(layer: LoraLayer, adapter_name: str, found: list[Slot]) -> Why | None:
    """Say why a layer with these slots cannot be prepared, or None when it can."""
    if adapter_name in layer.lora_variant:
        variant = type(layer.lora_variant[adapter_name]).__name__
        if not variant.startswith(SUPPORTED_VARIANTS):
            return Why(f"PEFT's {variant} computes with more than lora_A, lora_B and a scaling")
    for slot in found:
        owner = slot.owner
        if owner is not None and type(owner) not in _PLAIN:
            kind = type(layer).__name__
            return Why(f"PEFT's {kind} holds its LoRA weights in a {type(owner).__name__}")
        if why := why_not_replaced(slot):
            return why
        if slot.role == "magnitude" and (why := why_misread(layer) or why_no_norm(layer)):
            return why
    return None


def _target_ranks(
    adapters: dict[str, AdapterSlots], target_rank: int | None, plan: SwapPlan | None
) -> dict[str, int | None]:
    ranks: dict[str, int | None] = {}
    for name, adapter in adapters.items():
        for module, slots in adapter.of_layer.items():
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
            own = own_rank(adapter.layers[module], name, slots)
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


def own_rank(layer: LoraLayer, name: str, slots: list[Slot]) -> int:
    """The rank of an adapter in a layer, before padding."""
    state = layer.scaling.states.get(name) if isinstance(layer.scaling, Scalings) else None
    return state.rank if state is not None else slots[0].rank or 0


def _check_auxiliary(adapters: dict[str, AdapterSlots], plan: SwapPlan) -> None:
    """Raise TargetRankError unless the model has room for the plan's whole modules and token rows."""
    for name, adapter in adapters.items():
        saved = {slot.name for slot in adapter.auxiliary if slot.role == "saved"}
        tokens = {s.module: set(s.rows) for s in adapter.auxiliary if s.role == "tokens"}
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
