"""fits: can an adapter be swapped into what a plan prepares; the one place of the swap rules."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from hotswap.adapters.spec import AdapterSpec, ModuleSpec, family, merge_alike
from hotswap.findings import Finding

_PLAN_AGAIN = (
    "load the model with hotswap.load(base_model, plan) and a plan that includes this adapter"
)
_OTHER_BASE = "use an adapter that was trained for the same base model"

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hotswap.adapters.plan import ModulePlan, SwapPlan


def fits(plan: SwapPlan, spec: AdapterSpec) -> tuple[Finding, ...]:
    """List why ``swap()`` would refuse the adapter; an empty tuple means that it accepts.

    Findings of the adapter itself are included; those that repeat over layers are merged.
    """
    findings = list(spec.findings)
    closest: dict[str, str] = {}
    rank = spec.rank
    for name, module in spec.modules.items():
        where = f"{spec.path}::{name}"
        place = plan.modules.get(name)
        if place is None:
            kind = family(name)
            if kind not in closest:
                closest[kind] = _closest(kind, plan)
            findings.append(
                Finding(
                    where,
                    "HSW106",
                    f"the adapter targets a module that is not in the plan{closest[kind]}",
                    f"{_PLAN_AGAIN}, or check that it belongs to this base model",
                )
            )
            continue
        findings += _module_findings(where, place, module, rank)
    findings += _trained_findings(plan, spec)
    return merge_alike(findings)


def _trained_findings(plan: SwapPlan, spec: AdapterSpec) -> Iterator[Finding]:
    """Whole modules and token rows: each must have its place in the plan."""
    again = _PLAN_AGAIN
    for name, info in spec.saved.items():
        where, place = f"{spec.path}::{name}", plan.saved.get(name)
        if place is None:
            text = "the adapter carries a tensor of modules_to_save that is not in the plan"
            yield Finding(where, "HSW106", text, again)
        elif place.shape != info.shape:
            text = f"has shape {list(info.shape)}, the plan has {list(place.shape)}"
            yield Finding(where, "HSW107", text, "use an adapter with a head of the same size")
    for name, rows in spec.tokens.items():
        where, slot = f"{spec.path}::{name}", plan.tokens.get(name)
        if slot is None or not set(rows.indices) <= set(slot.indices):
            missing = sorted(set(rows.indices) - set(slot.indices if slot else ()))
            text = f"the adapter trains token {missing[0]}, which is not in the plan"
            yield Finding(where, "HSW106", text, again)
        elif rows.dimension != slot.dimension:
            text = f"has rows of {rows.dimension}, the plan has {slot.dimension}"
            yield Finding(where, "HSW107", text, _OTHER_BASE)
    if any(module.kind == "parameter" for module in spec.modules.values()):
        mine = {name for name, module in spec.modules.items() if module.kind == "parameter"}
        theirs = {name for name, module in plan.modules.items() if module.kind == "parameter"}
        if mine <= theirs and mine != theirs:
            where = f"{spec.path}::{min(theirs - mine)}"
            text = "the adapter has no weights for a parameter that the plan targets directly"
            yield Finding(where, "HSW107", text, "use adapters with the same target_parameters")


def _closest(name: str, plan: SwapPlan) -> str:
    known = sorted({family(module) for module in plan.modules})
    found = difflib.get_close_matches(name, known, n=1)
    return f"; closest match: {found[0]}" if found else ""


def _module_findings(
    where: str, place: ModulePlan, module: ModuleSpec, rank: int
) -> Iterator[Finding]:
    differences = [
        f"{label} {_shown(found)}, the plan has {_shown(expected)}"
        for label, found, expected in (
            ("is of kind", module.kind, place.kind),
            ("has in_features", module.in_features, place.in_features),
            ("has out_features", module.out_features, place.out_features),
            ("has kernel", module.kernel, place.kernel),
            ("has groups", module.groups, place.groups),
            ("has experts", module.experts, place.experts),
            ("targets parameters", module.parameters, place.parameters),
        )
        if found != expected
    ]
    if differences:
        yield Finding(where, "HSW107", "; ".join(differences), _OTHER_BASE)
        return
    if module.rank > place.rank:
        yield Finding(
            where,
            "HSW105",
            f"has rank {module.rank}, the plan allows {place.rank}",
            f"prepare with target_rank={rank}, or with a plan that includes this adapter, "
            "before torch.compile",
        )
    if place.rank % place.groups:
        yield Finding(
            where,
            "HSW104",
            f"the plan's rank {place.rank} is not divisible by the convolution's "
            f"{place.groups} groups",
            f"prepare with a multiple of {place.groups}",
        )
    for part, has, room in (
        ("lora_B.bias", module.bias, place.bias),
        ("DoRA magnitude", module.dora, place.dora),
    ):
        if has and not room:
            text = f"has a {part}, but the plan has none for this module"
            yield Finding(where, "HSW106", text, _PLAN_AGAIN)


def _shown(value: str | int | tuple[int, ...] | tuple[str, ...]) -> str:
    return "x".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
