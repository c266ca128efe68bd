"""prepare: pad every LoRA weight to its target rank and turn every scaling into a tensor."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.compiled import compiled_parts
from hotswap.engine.layers import (
    Slot,
    adapter_names,
    lora_layers,
    slots,
    unsupported_wrappers,
    unwrap,
    why_unsupported,
)
from hotswap.engine.scalings import Scalings
from hotswap.errors import AlreadyCompiledError, HotswapError, NoAdapterError, UnsupportedLayerError

CheckCompiled = Literal["error", "warn", "ignore"]


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What prepare() changed: tensors padded, bytes added, and the rank of each module now."""

    padded: int
    bytes: int
    ranks: dict[str, int]


class TargetRankError(HotswapError, ValueError):
    """The target rank or plan does not fit the adapters that the model carries."""


def prepare(
    model: nn.Module,
    *,
    target_rank: int | None = None,
    plan: SwapPlan | None = None,
    adapter_name: str | None = None,
    check_compiled: CheckCompiled = "error",
) -> PrepareReport:
    """Prepare a model's LoRA layers in place, before torch.compile, so that swaps do not recompile.

    Weights are padded with zeros to ``target_rank`` or to the plan's rank of each module; ``B @ A`` is
    unchanged and the scaling stays alpha over the adapter's own rank. Parameter objects, names, dtype,
    device and ``requires_grad`` are kept. Preparing again changes nothing, or widens further. Without
    ``target_rank`` and ``plan`` only the scalings become tensors. ``adapter_name=None`` means all.

    Raises AlreadyCompiledError, NoAdapterError, UnsupportedLayerError or TargetRankError (each a
    ValueError) before anything is changed.
    """
    if check_compiled not in get_args(CheckCompiled):
        raise ValueError(
            f"check_compiled is {check_compiled!r}; expected one of {get_args(CheckCompiled)}"
        )
    if target_rank is not None and plan is not None:
        raise ValueError("both target_rank and plan are given; pass one of them")
    if target_rank is not None and (type(target_rank) is not int or target_rank < 1):
        raise TargetRankError(f"target_rank is {target_rank!r}; expected an integer of at least 1")
    _check_compiled(model, check_compiled)
    model = unwrap(model)
    layers = lora_layers(model)
    names = adapter_names(model) if adapter_name is None else [adapter_name]
    if not any(name in layer.scaling for layer in layers.values() for name in names):
        wanted = "a LoRA adapter" if adapter_name is None else f"an adapter named {adapter_name!r}"
        raise NoAdapterError(
            f"the model carries no LoRA layer with {wanted} (found: {adapter_names(model)}); "
            "load the first adapter before prepare()"
        )
    _check_supported(model, layers, names)
    ranks = _target_ranks(layers, names, target_rank, plan)
    padded = _pad(layers, names, ranks)  # may run out of memory: nothing is changed yet
    scalings = {name: _scalings(layer, names) for name, layer in layers.items()}
    added = _commit(layers, padded, scalings)
    sizes = {
        module: max(
            slots(layer, name)[0].tensor.shape[0] for name in names if name in layer.scaling
        )
        for module, layer in layers.items()
        if any(name in layer.scaling for name in names)
    }
    return PrepareReport(len(padded), added, sizes)


def _check_compiled(model: nn.Module, check_compiled: CheckCompiled) -> None:
    parts = compiled_parts(model) if check_compiled != "ignore" else []
    if not parts:
        return
    text = (
        f"the model is compiled already ({', '.join(parts[:3])}{', …' if len(parts) > 3 else ''}): "
        "prepare() would make it recompile; call prepare() before torch.compile"
    )
    if check_compiled == "error":
        raise AlreadyCompiledError(text)
    warnings.warn(text, stacklevel=3)


def _check_supported(model: nn.Module, layers: dict[str, LoraLayer], names: list[str]) -> None:
    refused: dict[str, str] = {}
    for name in names:
        refused |= unsupported_wrappers(model, name)
        for module, layer in layers.items():
            if name in layer.scaling and (why := why_unsupported(layer, name)):
                refused[module] = why
            if layer.merged_adapters:
                refused[module] = f"adapters {layer.merged_adapters} are merged: unmerge first"
    configs = getattr(model, "peft_config", {})
    for name in names:
        if getattr(configs.get(name), "bias", "none") != "none":
            refused[name] = f"bias={configs[name].bias!r} trains base biases, which are not swapped"
    if refused:
        raise UnsupportedLayerError(refused)


def _target_ranks(
    layers: dict[str, LoraLayer], names: list[str], target_rank: int | None, plan: SwapPlan | None
) -> dict[str, int | None]:
    ranks: dict[str, int | None] = {}
    for module, layer in layers.items():
        loaded = [name for name in names if name in layer.scaling]
        if not loaded:
            continue
        if plan is not None and module not in plan.modules:
            raise TargetRankError(
                f"{module} carries an adapter, but the plan has no such module; "
                "plan the fleet together with the adapter that is loaded"
            )
        rank = target_rank if plan is None else plan.modules[module].rank
        ranks[module] = rank
        for slot in slots(layer, loaded[0]):
            if rank is not None and rank % (slot.divisor * slot.blocks):
                raise TargetRankError(
                    f"{module} is a convolution with {slot.divisor * slot.blocks} groups, which do "
                    f"not divide target_rank={rank}; choose a multiple"
                )
        for name in loaded:
            own = _own_rank(layer, name)
            if rank is not None and own > rank:
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


def _own_rank(layer: LoraLayer, name: str) -> int:
    if isinstance(layer.scaling, Scalings) and name in layer.scaling.own_ranks:
        return layer.scaling.own_ranks[name]
    return int(slots(layer, name)[0].tensor.shape[0])


@torch.no_grad()
def _pad(
    layers: dict[str, LoraLayer], names: list[str], ranks: dict[str, int | None]
) -> list[tuple[Slot, Tensor]]:
    padded = []
    with torch.inference_mode(False):
        for module, rank in ranks.items():
            for name in names:
                for slot in slots(layers[module], name) if name in layers[module].scaling else []:
                    if rank is None or slot.rank is None or slot.rank >= rank:
                        continue
                    wide = slot.tensor.detach().new_empty(slot.shape(rank))
                    slot.fill(wide, slot.tensor.detach())
                    padded.append((slot, wide))
    return padded


def _scalings(layer: LoraLayer, names: list[str]) -> Scalings | None:
    if isinstance(layer.scaling, Scalings):
        for name in names:
            if name in layer.scaling and name not in layer.scaling.own_ranks:
                layer.scaling.own_ranks[name] = int(slots(layer, name)[0].tensor.shape[0])
        return None
    loaded = [name for name in names if name in layer.scaling]
    if not loaded:
        return None
    weight = slots(layer, loaded[0])[0].tensor
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    scalings = Scalings(
        {name: float(value) for name, value in layer.scaling.items()},
        dtype=dtype,
        device=weight.device,
    )
    scalings.own_ranks = {name: int(slots(layer, name)[0].tensor.shape[0]) for name in loaded}
    return scalings


def _commit(
    layers: dict[str, LoraLayer],
    padded: list[tuple[Slot, Tensor]],
    scalings: dict[str, Scalings | None],
) -> int:
    added = 0
    for slot, wide in padded:
        added += (wide.numel() - slot.tensor.numel()) * wide.element_size()
        slot.tensor.data = wide
        if slot.owner is not None and slot.axis is not None:
            setattr(slot.owner, slot.size_attribute, wide.shape[slot.axis] * slot.divisor)
    for module, values in scalings.items():
        if values is not None:
            layers[module].scaling = values
            layers[module].register_state_dict_post_hook(save_own_rank)
            layers[module].register_load_state_dict_pre_hook(pad_on_load)
    return added


def save_own_rank(layer: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Write each adapter at its own rank, and not at all where it does not target the layer."""
    for name, rank in layer.scaling.own_ranks.items():
        for slot in slots(layer, name):
            key = prefix + slot.state_key
            if key not in state:
                continue
            if rank == 0:
                del state[key]
            elif slot.rank != rank:
                state[key] = slot.own(rank)


def pad_on_load(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Accept an adapter at its own rank: pad its tensors to the slots', and zero what is missing."""
    for name, own in list(layer.scaling.own_ranks.items()):
        for slot in slots(layer, name):
            key = prefix + slot.state_key
            wide = torch.zeros_like(slot.tensor.detach())
            if key not in state:
                if own == 0:
                    state[key] = wide
                continue
            value = state[key]
            if slot.axis is None or slot.rank is None or value.ndim != wide.ndim:
                continue
            rank = value.shape[slot.axis] * slot.divisor
            if slot.shape(rank) == tuple(value.shape) and rank < slot.rank:
                slot.fill(wide, value)
                state[key] = wide
            if rank <= slot.rank:
                layer.scaling.own_ranks[name] = rank
