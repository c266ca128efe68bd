"""set_scale: the factor that a user puts before an adapter's own alpha / rank."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer

from hotswap.engine.layout.dora import norm_of
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.layout.slots import slots
from hotswap.engine.parts import parts_of
from hotswap.engine.transaction import exclusive, name_of


def set_scale(model: Any, scale: float, *, adapter_name: str | None = None) -> None:
    """Multiply the adapter's own alpha / rank by ``scale``, in place and without a recompile.

    Unlike PEFT's ``scale_layer`` it covers embeddings too. Raises ValueError for a scale that is not
    finite, NoAdapterError or NotPreparedError.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale!r}; expected a finite number")
    parts = parts_of(model)
    with exclusive(parts, nested=True):
        for part in parts:
            placement = placement_of(part.model, name_of(part, adapter_name))
            for layer in placement.layers.values():
                layer.scaling[placement.name] = scale * _own_scaling(layer, placement.name)
            _renormalize(placement)


@torch.no_grad()
def _renormalize(placement: Placement) -> None:
    """Let DoRA layers go on computing plain LoRA where that is what the adapter in place is."""
    name = placement.name
    for slot in placement.slots:
        layer = placement.layers.get(slot.module)
        if slot.role != "magnitude" or layer is None:
            continue
        state = layer.scaling.states[name]
        if state is None or not state.dora:
            tensors = {one.key: one.tensor for one in slots(layer, name)}
            slot.tensor.copy_(norm_of(layer, name, tensors, layer.scaling[name]))


def user_scale(placement: Placement) -> float | None:
    """The factor by which a scaling in place differs from the adapter's own, if one does."""
    name = placement.name
    layers = [layer for layer in placement.layers.values() if layer.lora_alpha[name]]
    if not layers:
        return None
    values = torch.stack([layer.scaling[name] for layer in layers]).tolist()
    factors = [v / _own_scaling(la, name) for v, la in zip(values, layers, strict=True)]
    return next((f for f in factors if not math.isclose(f, 1.0, rel_tol=1e-6)), None)


def _own_scaling(layer: LoraLayer, name: str) -> float:
    rank, alpha = layer.r[name], layer.lora_alpha[name]
    root = math.sqrt(rank) if layer.use_rslora.get(name) else rank
    return float(alpha / root)
