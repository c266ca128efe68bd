"""set_scale: the factor that a user puts before an adapter's own alpha / rank."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hotswap.engine.layout.modes import in_inference_mode
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.layout.slots import slots
from hotswap.engine.layout.unsupported import refusal, why_merged
from hotswap.engine.mesh import together
from hotswap.engine.parts import Part, parts_of
from hotswap.engine.transaction import Changes, exclusive, name_of

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer


def set_scale(
    model: Any, scale: float | Mapping[str, float], *, adapter_name: str | None = None
) -> None:
    """Multiply the adapter's own alpha / rank by ``scale``, in place and without a recompile.

    A mapping has scales by pattern: ``{"unet": 0.8, "up_blocks": 0.5, "up_blocks.0": 0.3}``. A pattern is
    a regular expression for whole words of a module's dotted name, of which a component's name is the
    first; where several match, the last one counts, and where none does the scale stays as it is.
    Unlike PEFT's ``scale_layer`` it covers embeddings too. Raises ValueError for a scale that is not
    finite, a pattern that is none or matches nothing; NoAdapterError or NotPreparedError. Nothing has
    changed then.
    """
    patterns = scale if isinstance(scale, Mapping) else {"": scale}
    for pattern, factor in patterns.items():
        if not math.isfinite(factor):
            at = f" for {pattern!r}" if pattern else ""
            raise ValueError(f"scale is {factor!r}{at}; expected a finite number")
    parts = parts_of(model)
    with (
        together(parts) as agree,
        exclusive(parts, nested=True),
        Changes() as changes,
        changes,
    ):
        changes.unless(agree.stands)
        names = [name_of(part, adapter_name) for part in parts]
        others = [repr(name) for name in dict.fromkeys(names) if name != "default"]
        agree([repr([names, *patterns.items()])], " of ".join([f"scale {scale!r}", *others]))
        places = [placement_of(part.model, name) for part, name in zip(parts, names, strict=True)]
        for place in places:
            place.require_unmerged()  # unmerging subtracts what was merged
        for place, factors in zip(places, _factors(parts, places, patterns), strict=True):
            if factors:
                _rescale(place, factors, changes)
        agree()


def _factors(
    parts: Sequence[Part], places: Sequence[Placement], patterns: Mapping[str, float]
) -> list[dict[str, float]]:
    """The factor of each layer that a pattern matches, part by part; "" matches all."""
    found: list[dict[str, float]] = [{} for _ in parts]
    for pattern, factor in patterns.items():
        wanted = _pattern(pattern)
        matched = [
            {name: factor for name in place.layers if wanted.search(part.named(name))}
            for part, place in zip(parts, places, strict=True)
        ]
        if not any(matched) and pattern:
            layers = [
                part.named(name)
                for part, place in zip(parts, places, strict=True)
                for name in place.layers
            ]
            raise ValueError(
                f"{pattern!r} matches no module with an adapter; expected words of names such as "
                f"{layers[0]} or {layers[-1]}"
            )
        for factors, more in zip(found, matched, strict=True):
            factors |= more
    return found


def _pattern(words: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?:^|\.)(?:{words})(?:\.|$)" if words else "")
    except re.error as error:
        raise ValueError(
            f"{words!r} is no regular expression ({error}); expected words of a module's name"
        ) from error


@torch.no_grad()
def _rescale(placement: Placement, factors: Mapping[str, float], changes: Changes) -> None:
    """Set the scalings of layers, and let DoRA layers go on computing plain LoRA where that is in place."""
    name = placement.name
    layers = {module: placement.layers[module] for module in factors}
    plain = {
        slot.module: slot.tensor
        for slot in placement.slots
        if slot.role == "magnitude"
        and slot.module in layers
        and not getattr(layers[slot.module].scaling.states[name], "dora", False)
    }
    if refused := {m: why for m in plain if (why := why_merged(layers[m]))}:
        raise refusal(refused)
    targets = [*(layer.scaling[name] for layer in layers.values()), *plain.values()]
    known = placement.staged is not None and placement.holds(placement.staged)
    with in_inference_mode(any(target.is_inference() for target in targets)):
        changes.callback(_write, targets, [target.clone() for target in targets])
        for module, layer in layers.items():
            layer.scaling[name] = factors[module] * _own_scaling(layer, name)
        for module, magnitude in plain.items():
            _renorm(layers[module], name, magnitude)
    placement.rescaled(known)


@torch.no_grad()
def _write(targets: list[Tensor], values: list[Tensor]) -> None:
    with in_inference_mode(any(target.is_inference() for target in targets)):
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
    return 0.0 if state is None else float(state.scaling)
