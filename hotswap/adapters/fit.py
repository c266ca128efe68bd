"""fits: can an adapter be swapped into what a plan prepares; the one place of the swap rules."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from hotswap.adapters.spec import AdapterSpec, ModuleSpec, family, merge_alike
from hotswap.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hotswap.adapters.plan import ModulePlan, SwapPlan


def fits(plan: SwapPlan, spec: AdapterSpec) -> tuple[Finding, ...]:
    """List why ``swap()`` would refuse the adapter; an empty tuple means that it accepts.

    Findings of the adapter itself are included; those that repeat over layers are merged.
    """
    findings = list(spec.findings)
    closest: dict[str, str] = {}
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
                    "plan the fleet with this adapter, or check that it belongs to this base model",
                )
            )
            continue
        findings += _module_findings(where, place, module, spec.rank)
    return merge_alike(findings)


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
        )
        if found != expected
    ]
    if differences:
        remedy = "use an adapter that was trained for the same base model"
        yield Finding(where, "HSW107", "; ".join(differences), remedy)
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
    if module.bias and not place.bias:
        yield Finding(
            where,
            "HSW106",
            "has a lora_B.bias, but the plan has no bias for this module",
            "plan the fleet with this adapter",
        )


def _shown(value: str | int | tuple[int, ...]) -> str:
    return "x".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
