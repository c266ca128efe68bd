"""Adapters as data, and their PEFT folders: what a description says is all that a folder depends on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from hotswap import SwapPlan
from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import WEIGHTS
from hotswap.adapters.names import MAGNITUDE
from hotswap.adapters.plan import ModulePlan


class _Readable:
    """A repr that leaves out what is as by default, and that gives the object again when evaluated."""

    __slots__ = ()

    def __repr__(self) -> str:
        here: Any = self
        said = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(here)
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"


@dataclass(frozen=True, slots=True, repr=False)
class AdapterDescription(_Readable):
    """An adapter as data: PEFT's words and the seed of its weights.

    ``without`` are modules of the fleet that it does not target; the patterns are (module, value) pairs.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    seed: int = 0
    without: tuple[str, ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    use_dora: bool = False
    lora_bias: bool = False
    loose: bool = False  # patterns are written by the ends of names, as people do, and not exactly

    def targets(self, name: str, place: ModulePlan) -> bool:
        """Whether it targets a module: those with a feature target only where the plan has room for it."""
        lacking = (self.use_dora and not place.dora) or (self.lora_bias and not place.bias)
        return name not in self.without and not lacking

    def rank_of(self, module: str, *, groups: int = 1) -> int:
        """The rank of one module, a multiple of a convolution's groups."""
        rank = dict(self.rank_pattern).get(module, self.rank)
        return math.ceil(rank / groups) * groups


@dataclass(frozen=True, slots=True, repr=False)
class BrokenAdapter(_Readable):
    """An adapter with one defect (a word of ``pytest_hotswap.adapters.derived.DEFECTS``)."""

    adapter: AdapterDescription
    defect: str


def config_of(
    description: AdapterDescription,
    modules: Iterable[str],
    *,
    ranks: dict[str, int] | None = None,
    task_type: str | None = None,
) -> dict[str, Any]:
    """The adapter_config.json of a description on some modules."""
    targets = [name for name in modules if name not in description.without]
    ranks = ranks or {name: description.rank_of(name) for name in targets}
    alphas = dict(description.alpha_pattern)
    pattern = partial(_loosely, among=targets) if description.loose else _exactly
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "r": description.rank,
        "lora_alpha": description.alpha,
        "use_rslora": description.use_rslora,
        "use_dora": description.use_dora,
        "lora_bias": description.lora_bias,
        "target_modules": targets,
        "rank_pattern": pattern({n: r for n, r in ranks.items() if r != description.rank}),
        "alpha_pattern": pattern({n: a for n, a in alphas.items() if n in targets}),
        "bias": "none",
        "inference_mode": True,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
    }


def write_adapter(
    folder: Path, description: AdapterDescription, plan: SwapPlan, *, task_type: str | None = None
) -> Path:
    """Write the PEFT folder of a description on the plan's linear, embedding and convolution modules.

    Ranks are kept within the plan. The weights are normal, over the root of the fan-in.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(description.seed)
    ranks: dict[str, int] = {}
    tensors: dict[str, Any] = {}
    for name, place in described(plan).items():
        if not description.targets(name, place):
            continue
        ranks[name] = min(description.rank_of(name, groups=place.groups), place.rank)
        part = "lora_embedding_{}" if place.kind == "embedding" else "lora_{}.weight"
        for letter, shape in zip("AB", place.shapes(ranks[name]), strict=False):
            values = torch.randn(shape, generator=generator)
            values *= max(math.prod(shape[1:]), 1) ** -0.5
            tensors[f"base_model.model.{name}.{part.format(letter)}"] = values
        for key in _extras(description, place):
            shape = place.shapes(ranks[name])[-1 if key == MAGNITUDE else 2]
            values = torch.randn(shape, generator=generator).abs() + 0.1
            tensors[f"base_model.model.{name}.{key}"] = values
    folder.mkdir(parents=True)
    config = config_of(description, ranks, ranks=ranks, task_type=task_type)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _extras(description: AdapterDescription, place: ModulePlan) -> list[str]:
    found = ["lora_B.bias"] if description.lora_bias and place.kind != "embedding" else []
    return [*found, MAGNITUDE] if description.use_dora else found


def described(plan: SwapPlan) -> dict[str, ModulePlan]:
    """The modules of a plan that a description can have weights for."""
    kinds = ("linear", "embedding", "conv")
    return {name: place for name, place in plan.modules.items() if place.kind in kinds}


def _exactly(values: Mapping[str, float]) -> dict[str, float]:
    return {exactly(name): value for name, value in values.items()}


def _loosely(values: Mapping[str, float], among: Collection[str]) -> dict[str, float]:
    """Patterns by the ends of names; the first that fits counts, and some fit none or come too late.

    The ends are the shortest that no other module has. Sorted by key, as PEFT saves them, they say the
    same.
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        words = name.split(".")
        ends = (".".join(words[at:]) for at in reversed(range(len(words))))
        others = [other for other in among if other != name]
        free = (e for e in ends if not any(f".{o}".endswith(f".{e}") for o in others))
        end = next(free, "")
        key = re.escape(end) if end else exactly(name)  # one that others end in has no such end
        fits_none = end[:-1]
        if fits_none and not any(f".{other}".endswith(f".{fits_none}") for other in among):
            found[re.escape(fits_none)] = value + 1
        found[key] = value
        found[f"{key}|{key}"] = value + 2  # too late
    return found


def exactly(module: str) -> str:
    """The key of one module in a rank_pattern or an alpha_pattern."""
    return f"^{re.escape(module)}$"
