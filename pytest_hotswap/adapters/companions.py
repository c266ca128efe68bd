"""Companions: adapters inside of a plan that the fleet does not have, each with one feature of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from hotswap import AdapterSpec, SwapPlan
from hotswap.adapters.fit import fits
from hotswap.adapters.plan import MIXED
from pytest_hotswap.adapters.described import AdapterDescription, described, write_adapter

Companions = Literal["none", "few", "all"]
_SEED = 1000


def companions_of(plan: SwapPlan, wanted: Companions = "few") -> dict[str, AdapterDescription]:
    """Describe the companions of a plan, by what is special about them; the same ones at every call."""
    if wanted not in get_args(Companions):
        raise ValueError(
            f"companions is {wanted!r}; expected one of {', '.join(get_args(Companions))}"
        )
    places = described(plan)
    if wanted == "none" or not places:
        return {}
    names, room = [*places], max(place.rank for place in places.values())
    odd, middle = names[1::2] or names, names[len(names) // 2]
    mixed = tuple((name, max(places[name].rank - 1, 1)) for name in odd)
    few: dict[str, AdapterDescription] = {
        "the narrowest": AdapterDescription(1, 3, seed=_SEED),
        "at the full rank": AdapterDescription(
            room, 0.7 * room, seed=_SEED + 1, alpha_pattern=((middle, 0.9 * room),)
        ),
        "another rank and alpha in every second module, rsLoRA": AdapterDescription(
            1,
            1.1,
            use_rslora=True,
            seed=_SEED + 2,
            rank_pattern=mixed,
            alpha_pattern=tuple((name, 2.3) for name in odd),
        ),
    }
    few["no alpha, or one below zero, patterns by the ends of names, targets by a regex"] = (
        AdapterDescription(
            2,
            0,
            seed=_SEED + 12,
            rank_pattern=tuple((name, 1) for name in odd),
            alpha_pattern=tuple((name, -2.3) for name in odd),
            loose=True,
        )
    )
    if len(names) > 1:
        without = tuple(name for name in names if name != middle)
        few["only a module in the middle"] = AdapterDescription(
            2, 5, seed=_SEED + 3, without=without
        )
    if any(place.dora for place in places.values()):
        few["DoRA"] = AdapterDescription(2, 3, seed=_SEED + 4, use_dora=True)
    if any(place.bias for place in places.values()):
        few["a bias of lora_B"] = AdapterDescription(2, 3, seed=_SEED + 5, lora_bias=True)
    if not _left_of_whole(plan):
        if plan.saved:
            few["whole modules"] = AdapterDescription(2, 3, seed=_SEED + 13, saved=True)
        if plan.tokens:
            few["token rows"] = AdapterDescription(2, 3, seed=_SEED + 14, tokens=1)
    if wanted == "few":
        return few
    more = {
        "the narrowest, rsLoRA": AdapterDescription(1, 3, use_rslora=True, seed=_SEED + 6),
        "the weights of the full rank under another alpha": AdapterDescription(
            room, 1.9 * room, seed=_SEED + 1
        ),
        "weights in bfloat16, with a config that leaves out what is as usual": AdapterDescription(
            2, 7, seed=_SEED + 16, brief=True
        ),
        "a negative alpha": AdapterDescription(2, -3, seed=_SEED + 7),
        "an alpha of which half precision has no equal": AdapterDescription(3, 1.001, seed=_SEED),
        "a rank per module": AdapterDescription(
            2,
            4,
            seed=_SEED + 8,
            rank_pattern=tuple(
                (name, 1 + at % places[name].rank) for at, name in enumerate(places)
            ),
        ),
        "every module but the first": AdapterDescription(2, 3, seed=_SEED + 9, without=(names[0],)),
        "every module but the last": AdapterDescription(
            2, 3, seed=_SEED + 10, without=(names[-1],)
        ),
        "only the first module": AdapterDescription(
            3, 3, seed=_SEED + 11, without=tuple(names[1:])
        ),
    }
    if "token rows" in few:
        more["every second token row, and whole modules if there are any"] = AdapterDescription(
            1, 2, seed=_SEED + 15, tokens=2, saved=bool(plan.saved)
        )
    return few | {what: one for what, one in more.items() if len(one.without) < len(names)}


def write_companions(
    folder: Path,
    plan: SwapPlan,
    wanted: Companions,
    *,
    task_type: str | None = None,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write those that the plan admits; also say which it does not, and why."""
    found: dict[str, Path] = {}
    left: dict[str, str] = {}
    for index, (what, description) in enumerate(companions_of(plan, wanted).items()):
        path = write_adapter(folder / f"companion-{index}", description, plan, task_type=task_type)
        if findings := fits(plan, AdapterSpec.read(path)):
            left[what] = findings[0].message
        else:
            found[what] = path
    return found, left


def _left_of_whole(plan: SwapPlan) -> str:
    """Why no companion has a plan's whole modules and token rows; empty if some do, or there are none."""
    if plan.mixed:
        return f"{plan.mixed[0]} {MIXED}"
    return "some are tied to others" if plan.tied else ""


def left_out(plan: SwapPlan, wanted: Companions) -> Mapping[str, str]:
    """What of a plan no companion has, and why."""
    found = {}
    if why := _left_of_whole(plan):
        found["whole modules and token rows"] = why
    if wanted != "all":
        found["further companions"] = f'companions = "{wanted}"'
    return found


def in_names_of(specs: Sequence[AdapterSpec], plan: SwapPlan) -> SwapPlan:
    """The plan with the component before every name, where it is of files of one component only.

    Such files do not name it; the folders that laws derive other adapters from do.
    """
    names = {name.partition(".")[::2] for spec in specs for name in spec.modules}
    (component, *more) = sorted({first for first, _ in names}) or [""]
    if more or not any(rest in plan.modules for _, rest in names):
        return plan
    return replace(plan, modules={f"{component}.{n}": m for n, m in plan.modules.items()})
