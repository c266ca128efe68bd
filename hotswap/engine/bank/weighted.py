"""Weighted sums of staged adapters, as one adapter whose rank is the sum of theirs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from hotswap.adapters.formats.conversion import infos
from hotswap.adapters.modules import Kind, ModuleSpec
from hotswap.adapters.names import owner
from hotswap.adapters.spec import AdapterSpec
from hotswap.engine.incoming.source import NOTHING, Description, IncomingAdapter
from hotswap.engine.layout.adapter_slots import DTYPES
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.slots import Slot
from hotswap.engine.layout.staging import StagedAdapter
from hotswap.engine.layout.states import LayerState
from hotswap.engine.parts import Part
from hotswap.errors import HotswapError

Summands = Mapping[str, tuple[Sequence[StagedAdapter | None], float]]
"""Name → the adapter as it is staged, part by part (None: the part stays as it is), and its weight."""


class _Term(NamedTuple):
    """What one adapter gives to the sum in one layer: ``factor`` is its weight times its scaling."""

    state: LayerState
    factor: float
    views: Mapping[str, Tensor]  # by the name of the slot


def combined(
    name: str, parts: Sequence[Part], places: Sequence[Placement], summands: Summands
) -> dict[str, IncomingAdapter]:
    """Sum adapters part by part; a part that all of them leave as it is is left out.

    Raises ValueError for weights that are not finite, or none; HotswapError for DoRA, whole modules and
    token rows, of which a sum is no LoRA adapter.
    """
    if not summands:
        raise ValueError(
            "there are no weights; expected at least one adapter's name with its weight"
        )
    for one, (_, weight) in summands.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of {one!r} is {weight!r}; expected a finite number")
    found = {}
    for index, (part, place) in enumerate(zip(parts, places, strict=True)):
        of_part = [
            (one, staged, weight)
            for one, (every, weight) in summands.items()
            if (staged := every[index]) is not None
        ]
        for one, staged, _ in of_part:
            _require_plain(one, part, place, staged)
        if of_part:
            found[part.key] = _sum(name, place, [(staged, weight) for _, staged, weight in of_part])
    return found


def _require_plain(name: str, part: Part, place: Placement, staged: StagedAdapter) -> None:
    """Raise HotswapError for what an adapter has beside plain LoRA."""
    layers = [*zip(place.layers, staged.states, strict=False)]
    beside = [module for module, state in layers if state is not None and state.dora]
    what = "DoRA"
    if not beside:
        rest = zip(place.adapter.auxiliary, staged.states[len(layers) :], strict=True)
        beside, what = [slot.name for slot, state in rest if state], "trained weights"
    if beside:
        more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
        raise HotswapError(
            f"{name!r} has {what} in {part.named(beside[0])}{more}, which cannot be summed; "
            "sum adapters of plain LoRA only"
        )


def _sum(
    name: str, place: Placement, summands: Sequence[tuple[StagedAdapter, float]]
) -> IncomingAdapter:
    names = [slot.name for slot in place.slots]
    terms: dict[str, list[_Term]] = {}
    for staged, weight in summands:
        views = dict(zip(names, staged.image.views, strict=False))
        for module, state in zip(place.layers, staged.states, strict=False):
            if state is not None and state.rank:
                term = _Term(state, weight * state.scaling, views)
                terms.setdefault(module, []).append(term)
    if not terms:
        return NOTHING
    tensors: dict[str, Tensor] = {}
    modules: dict[str, ModuleSpec] = {}
    biased = any(term.state.bias for every in terms.values() for term in every)
    for module, every in terms.items():
        form = place.envelope.modules[module]
        rank = sum(term.state.rank for term in every)
        scaling = max((term.factor for term in every), key=abs)  # that of which nothing is rounded
        for slot in place.adapter.of_layer[module]:
            if slot.role == "factor" or (slot.role == "bias" and biased):
                tensors[slot.name] = _joined(slot, every, scaling)
        modules[module] = ModuleSpec(
            cast(Kind, form.kind),
            rank,
            scaling * rank,
            scaling,
            form.in_features,
            form.out_features,
            form.kernel,
            form.groups,
            DTYPES[place.adapter.of_layer[module][0].tensor.dtype],
            bias=form.bias and biased,
            experts=form.experts,
            parameters=form.parameters,
        )
    fields = _fields(place, modules, biased)
    spec = AdapterSpec(name, fields, modules, sum(t.nbytes for t in tensors.values()), ())
    return IncomingAdapter(Description(spec, infos(tensors), fields), spec, tensors)


def _joined(slot: Slot, terms: Sequence[_Term], scaling: float) -> Tensor:
    """One slot's tensors side by side along the rank, lora_B times what is not in the scaling."""
    first = slot.key.endswith(("lora_A.weight", "lora_embedding_A"))
    values = []
    for term in terms:
        value = slot._replace(tensor=term.views[slot.name]).own(term.state.rank)
        if not first and term.factor != scaling:
            value = value.double() * (term.factor / scaling)
        values.append(value)
    if slot.axis is None:  # a bias
        return torch.stack([value.double() for value in values]).sum(0).to(slot.tensor.dtype)
    split = [
        torch.unflatten(value.to(slot.tensor.dtype), slot.axis, (slot.blocks, -1))
        for value in values
    ]
    return torch.cat(split, slot.axis + 1).flatten(slot.axis, slot.axis + 1)


def _fields(place: Placement, modules: Mapping[str, ModuleSpec], biased: bool) -> dict[str, Any]:
    """The config with which the sum is loaded; the usual rank and alpha stand for most modules."""
    keys: dict[str, ModuleSpec] = {}
    parameters, targets = [], []
    for module, spec in modules.items():
        if spec.kind == "parameter":
            layer: Any = place.layers[module]
            parameters.append(f"{owner(module)}.{layer.parameter_name}")
            keys[parameters[-1]] = spec
        elif "base_layer" not in module.split("."):  # PEFT puts what it nests there beside it
            targets.append(module)
            keys[module] = spec
    rank = _usual(spec.rank for spec in keys.values())
    alpha = _usual(spec.alpha for spec in keys.values())
    return {
        "peft_type": "LORA",
        "r": int(rank),
        "lora_alpha": alpha,
        # "$^" matches nothing: an empty value would mean PEFT's default modules
        "target_modules": "|".join(map(re.escape, targets)) or "$^",
        "target_parameters": parameters or None,
        "rank_pattern": {_only(key): s.rank for key, s in keys.items() if s.rank != rank},
        "alpha_pattern": {_only(key): s.alpha for key, s in keys.items() if s.alpha != alpha},
        "lora_bias": biased,
        "inference_mode": True,
    }


def _only(key: str) -> str:
    return f"^{re.escape(key)}$"


def _usual(values: Iterable[float]) -> float:
    return next((value for value, _ in Counter(values).most_common(1)), 1)
