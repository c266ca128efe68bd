"""set_scale: the factor that a user puts before an adapter's own alpha / rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.layout.slots import slots
from hotswap.engine.parts import parts_of
from hotswap.engine.transaction import Changes, exclusive, name_of

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer


def set_scale(model: Any, scale: float, *, adapter_name: str | None = None) -> None:
    """Multiply the adapter's own alpha / rank by ``scale``, in place and without a recompile.

    Unlike PEFT's ``scale_layer`` it covers embeddings too. Raises ValueError for a scale that is not
    finite, NoAdapterError or NotPreparedError.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale!r}; expected a finite number")
    parts = parts_of(model)
    with exclusive(parts, nested=True), Changes() as changes, changes:
        for part in parts:
            _rescale(placement_of(part.model, name_of(part, adapter_name)), scale, changes)


@torch.no_grad()
def _rescale(placement: Placement, scale: float, changes: Changes) -> None:
    """Set every scaling, and let DoRA layers go on computing plain LoRA where that is in place."""
    name, layers = placement.name, placement.layers
    magnitudes = [
        (layers[slot.module], slot.tensor)
        for slot in placement.slots
        if slot.role == "magnitude" and slot.module in layers
    ]
    plain = [(la, t) for la, t in magnitudes if not getattr(la.scaling.states[name], "dora", False)]
    targets = [*(layer.scaling[name] for layer in layers.values()), *(t for _, t in plain)]
    known = placement.staged is not None and placement.holds(placement.staged)
    with torch.inference_mode(any(target.is_inference() for target in targets)):
        changes.callback(_write, targets, [target.clone() for target in targets])
        for layer in layers.values():
            layer.scaling[name] = scale * _own_scaling(layer, name)
        for layer, magnitude in plain:
            _renorm(layer, name, magnitude)
    placement.rescaled(known)


@torch.no_grad()
def _write(targets: list[Tensor], values: list[Tensor]) -> None:
    with torch.inference_mode(any(target.is_inference() for target in targets)):
        torch._foreach_copy_(targets, values)


def _renorm(layer: LoraLayer, name: str, magnitude: Tensor) -> None:
    from hotswap.engine.layout.dora import norm_of

    tensors = {one.key: one.tensor for one in slots(layer, name)}
    magnitude.copy_(norm_of(layer, name, tensors, layer.scaling[name]))


def user_scale(placement: Placement) -> float | None:
    """The factor by which a scaling in place differs from the adapter's own, if one does."""
    name = placement.name
    layers = [layer for layer in placement.layers.values() if _own_scaling(layer, name)]
    if not layers:
        return None
    values = torch.stack([layer.scaling[name] for layer in layers]).tolist()
    factors = [v / _own_scaling(la, name) for v, la in zip(values, layers, strict=True)]
    return next((f for f in factors if not math.isclose(f, 1.0, rel_tol=1e-6)), None)


def _own_scaling(layer: LoraLayer, name: str) -> float:
    state = layer.scaling.states[name]
    if state is None:
        return 0.0
    rank = state.rank or 1
    return float(state.alpha / (math.sqrt(rank) if state.rslora else rank))
