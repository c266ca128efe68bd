"""Adapters and plans of a large model, cut to the shapes of a small copy of it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import DIFFUSERS_WEIGHTS, WEIGHTS
from hotswap.adapters.fit import BaseModel, of_base
from hotswap.adapters.formats.diffusers import METADATA
from hotswap.adapters.names import BIAS, EMBEDDING, LINEAR, MAGNITUDE, TOKENS, owner
from hotswap.adapters.plan import ModulePlan, SwapPlan
from hotswap.engine.incoming.source import IncomingAdapter, read_components
from hotswap.errors import HotswapError

_ORDER = {LINEAR[0]: 0, EMBEDDING[0]: 0, LINEAR[1]: 1, EMBEDDING[1]: 1, BIAS: 2, MAGNITUDE: 3}
"""Tensor of a LoRA layer → its place among the shapes of a ModulePlan."""

_PART = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _ORDER))})(?:\.weight)?")


def recut(adapter: str, base: BaseModel, folder: Path) -> None:
    """Write an adapter with its config as it is, and the part of its weights that the small model has.

    Ranks stay. Factors are scaled so that they show in a model of random weights; what is zero stays so.
    Raises HotswapError for an adapter with none.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for name, part in read_components(adapter).items():
        start = f"{name}." if name else ""
        cut = _recut(part, base, start)
        tensors |= {f"{start}{key}": value for key, value in cut.items()}
        fields = part.known.fields if cut else None
        told |= {f"{start}{key}": value for key, value in (fields or {}).items()}
    if not any(".lora_" in name for name in tensors):
        raise HotswapError(
            f"--tiny: {adapter} has no weights for a module of the small model ({base.name}); "
            "verify the model itself"
        )
    folder.mkdir(parents=True)
    if start:  # a file of diffusers
        metadata = {"format": "pt", METADATA: json.dumps(told, default=str)}
        save_file(tensors, folder / DIFFUSERS_WEIGHTS, metadata=metadata)
        return
    (folder / CONFIG).write_text(json.dumps(told, default=str), encoding="utf-8")
    named = {f"base_model.model.{name}": value for name, value in tensors.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})


def _recut(source: IncomingAdapter, base: BaseModel, start: str) -> dict[str, Tensor]:
    """The cut tensors of one component, whose names in the base model begin with ``start``."""
    modules = source.spec.modules.items()
    places = {name: _place(base, f"{start}{name}", module) for name, module in modules}
    tensors: dict[str, Tensor] = {}
    for name, value in source.tensors.items():
        if name in source.spec.copies.keys() - source.spec.tied:
            continue
        part = _PART.fullmatch(name)
        place = places.get(part[1]) if part else None
        if part is None:
            cut = _beside(base, f"{start}{name}", value)
        elif place is None:
            continue
        else:
            cut = _shown(_cut(value, place, part[2]), part[2])
        if cut is not None:
            tensors[name] = cut.contiguous().clone()
    return tensors


def recut_plan(plan: SwapPlan, base: BaseModel) -> SwapPlan:
    """The plan of the modules that the small model has, at the ranks that were planned."""
    modules = {n: _place(base, n, module) for n, module in plan.modules.items()}
    saved = {n: (of_base(base, base.parameters, n), one) for n, one in plan.saved.items()}
    rows = {n: (of_base(base, base.modules, n), one) for n, one in plan.tokens.items()}
    return replace(
        plan,
        modules={name: place for name, place in modules.items() if place is not None},
        saved={n: replace(one, shape=shape) for n, (shape, one) in saved.items() if shape},
        tokens={n: replace(one, dimension=m.out_features) for n, (m, one) in rows.items() if m},
        tied={},
    )


def _place(base: BaseModel, name: str, module: Any) -> ModulePlan | None:
    """What a module of an adapter, or of a plan, is in the small model; None where that has none."""
    own = {field: getattr(module, field) for field in ModulePlan.__dataclass_fields__}
    if module.kind == "parameter":
        shapes = [of_base(base, base.parameters, f"{owner(name)}.{p}") for p in module.parameters]
        found = [(s, s[i], s[o]) for s in shapes if s for i, o in ((-2, -1), (-1, -2))]
        if not found:
            return None
        # a file does not say which parameter it is for: that whose sides are in the same proportion
        ratio = math.log(module.in_features / module.out_features)
        shape, into, out = min(found, key=lambda f: abs(math.log(f[1] / f[2]) - ratio))
        experts = shape[0] if len(shape) == 3 else 1
        return ModulePlan(**own | {"experts": experts, "in_features": into, "out_features": out})
    small = of_base(base, base.modules, owner(name))
    if small is None:
        return None
    return ModulePlan(
        **own | {"in_features": small.in_features, "out_features": small.out_features}
    )


def _cut(value: Tensor, place: ModulePlan, part: str) -> Tensor:
    """The first entries along each axis; of factors of experts, of the first experts."""
    at = _ORDER[part]
    shape = replace(place, bias=True, dora=True).shapes(place.rank)[at]
    if at > 1 or place.kind != "parameter":
        return value[tuple(slice(size) for size in (*shape[: value.ndim],))]
    if at == 0:  # (experts * rank, in)
        blocks = torch.unflatten(value, 0, (-1, place.rank))
        return blocks[: place.experts, :, : place.in_features].flatten(0, 1)
    blocks = torch.unflatten(value, 1, (place.rank, -1))  # (out, rank * experts)
    return blocks[: place.out_features, :, : place.experts].flatten(1)


def _shown(value: Tensor, part: str) -> Tensor:
    """A factor at the size that keeps that of what it is multiplied with; magnitudes about one."""
    size = value.double().square().mean().sqrt()
    if part == BIAS or not size > 0:
        return value
    alone = part in (MAGNITUDE, EMBEDDING[0])  # no sum runs over these
    wanted = 1.0 if alone else value[0].numel() ** -0.5
    return (value.double() * (wanted / size)).to(value.dtype)


def _beside(base: BaseModel, name: str, value: Tensor) -> Tensor | None:
    """Token rows, and tensors of modules that are saved whole; whichever the small model has."""
    module = name.removesuffix(f".{TOKENS}")
    if module != name:
        place = of_base(base, base.modules, module)
        return None if place is None else value[:, : place.out_features]
    shape = of_base(base, base.parameters, name)
    return value if shape is None else value[tuple(slice(size) for size in shape)]
