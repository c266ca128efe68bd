"""Adapters as data, and their PEFT folders: what a description says is all that a folder depends on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hotswap import SwapPlan
from hotswap.adapters.config import CONFIG, whole_modules
from hotswap.adapters.files import WEIGHTS
from hotswap.adapters.names import MAGNITUDE, TOKENS, owner
from hotswap.adapters.plan import ModulePlan

_IN_FILES = "base_model.model."


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
    loose: bool = (
        False  # patterns go by the ends of names, as people write them, and targets by a regex
    )
    saved: bool = False  # the whole modules of the plan are trained (modules_to_save)
    tokens: int = 0  # of the plan's token rows every n-th is trained; 0: none
    brief: bool = False  # the config says only what is not PEFT's default, and weights are bfloat16

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
    within: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The adapter_config.json of a description on some targets.

    ``within`` names what patterns and target_parameters speak of where it is not the target itself.
    """
    targets = [name for name in modules if name not in description.without]
    ranks = ranks or {name: description.rank_of(name) for name in targets}
    alphas, parts = (
        dict(description.alpha_pattern),
        {name: (within or {}).get(name, (name,)) for name in targets},
    )
    every = [part for name in targets for part in parts[name]]
    of_parameters = [name for name in targets if name not in parts[name]]

    def pattern(values: Mapping[str, float]) -> dict[str, float]:
        said = {part: value for name, value in values.items() for part in parts[name]}
        return _loosely(said, among=every) if description.loose else _exactly(said)

    found: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "r": description.rank,
        "lora_alpha": description.alpha,
        "use_rslora": description.use_rslora,
        "use_dora": description.use_dora,
        "lora_bias": description.lora_bias,
        "target_modules": [name for name in targets if name not in of_parameters],
        "rank_pattern": pattern({n: r for n, r in ranks.items() if r != description.rank}),
        "alpha_pattern": pattern({n: a for n, a in alphas.items() if n in targets}),
        "bias": "none",
        "inference_mode": True,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
    }
    if description.loose:
        names = "|".join(map(re.escape, found["target_modules"]))
        found["target_modules"] = f"(?:{names})" if names else []
    if of_parameters:
        found["target_parameters"] = [part for name in of_parameters for part in parts[name]]
    return found


def write_adapter(
    folder: Path, description: AdapterDescription, plan: SwapPlan, *, task_type: str | None = None
) -> Path:
    """Write the PEFT folder of a description inside of a plan.

    Ranks are kept within the plan. The weights are normal, over the root of the fan-in. Of a task whose
    head PEFT always saves, every adapter has the plan's whole modules.
    """
    from safetensors.torch import save_file

    normal = _Normal(description.seed)
    targets, ranks = described(plan), dict[str, int]()
    tensors: dict[str, Any] = {}
    for name, place in plan.modules.items():
        target = target_of(name)
        if not description.targets(target, place):
            continue
        rank = min(description.rank_of(target, groups=place.groups), targets[target].rank)
        ranks[target] = rank
        part = "lora_embedding_{}" if place.kind == "embedding" else "lora_{}.weight"
        for letter, shape in zip("AB", place.shapes(rank), strict=False):
            tensors[f"{_IN_FILES}{name}.{part.format(letter)}"] = normal.tensor(shape)
        for key in _extras(description, place):
            shape = place.shapes(rank)[-1 if key == MAGNITUDE else 2]
            tensors[f"{_IN_FILES}{name}.{key}"] = normal.tensor(shape).abs() + 0.1
    within = {target_of(name): _parts_of(name, place) for name, place in plan.modules.items()}
    config = config_of(description, ranks, ranks=ranks, task_type=task_type, within=within)
    if description.saved or (plan.saved and whole_modules(config)):
        config["modules_to_save"] = [*plan.modules_to_save]
        for name, saved in plan.saved.items():
            values = normal.tensor(saved.shape, saved.dtype)
            tensors[_IN_FILES + name] = (
                values if values.ndim > 1 else values.abs()
            )  # a variance, say
    if description.tokens:
        trained = {name: rows.indices[:: description.tokens] for name, rows in plan.tokens.items()}
        config["trainable_token_indices"] = trained
        for name, indices in trained.items():
            rows = plan.tokens[name]
            values = normal.tensor((len(indices), rows.dimension), rows.dtype)
            tensors[f"{_IN_FILES}{name}.{TOKENS}"] = values
    if description.brief:
        config = {key: value for key, value in config.items() if value}
        tensors = {key: _in_half(value) for key, value in tensors.items()}
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _in_half(tensor: Any) -> Any:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


class _Normal:
    """Normal values over the root of the fan-in, the same ones for a seed."""

    def __init__(self, seed: int) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)

    def tensor(self, shape: tuple[int, ...], dtype: str = "F32") -> Any:
        """A tensor of a dtype that safetensors names."""
        import torch

        from hotswap.engine.layout.adapter_slots import DTYPES

        values = torch.randn(shape, generator=self._generator)
        values *= max(math.prod(shape[1:]), 1) ** -0.5
        return values.to({word: known for known, word in DTYPES.items()}[dtype])


def _extras(description: AdapterDescription, place: ModulePlan) -> list[str]:
    found = ["lora_B.bias"] if description.lora_bias and place.kind != "embedding" else []
    return [*found, MAGNITUDE] if description.use_dora else found


def described(plan: SwapPlan) -> dict[str, ModulePlan]:
    """What a description can target, with the room that there is in all that PEFT wraps for it."""
    found: dict[str, ModulePlan] = {}
    for name, place in plan.modules.items():
        known = found.setdefault(target_of(name), place)
        if place.rank < known.rank:
            found[target_of(name)] = place
    return found


def target_of(module: str) -> str:
    """What is targeted for a module that has LoRA: PEFT's wrapper of attention brings that of out_proj."""
    return owner(module.removesuffix(".base_layer.out_proj"))


def _parts_of(module: str, place: ModulePlan) -> tuple[str, ...]:
    """What patterns call what is targeted for a module."""
    target = target_of(module)
    if place.parameters:
        return tuple(f"{target}.{parameter}" for parameter in place.parameters)
    return (target,) if target == module else (target, module)


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
