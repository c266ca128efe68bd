"""plan: what a fleet of adapters fits in, whether it needs preparation, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path

from hotswap.adapters.config import whole_modules
from hotswap.adapters.fit import as_wide_as, fits, same
from hotswap.adapters.formats.component import SECOND
from hotswap.adapters.modules import ModuleSpec, TokenRows, widest
from hotswap.adapters.names import families, family
from hotswap.adapters.nested import most_nested, nested_as
from hotswap.adapters.pipeline_folder import family_of_folder
from hotswap.adapters.plan import (
    APART,
    MIXED,
    AdapterSummary,
    ModulePlan,
    Need,
    SavedTensor,
    SwapPlan,
    cut,
)
from hotswap.adapters.reader import SpecReader
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import HotswapError, UnreadableAdapterError
from hotswap.findings import Finding

_TRAITS = {
    "rank": "ranks",
    "scaling": "scalings",
    "bias": "lora_B.bias (1: present)",
    "dora": "DoRA (1: present)",
}
"""What must be equal in every adapter, or preparation is required."""


def plan(
    adapters: Iterable[str | Path | AdapterSpec],
    *,
    base: str | Path | None = None,
    allow_pickle: bool = False,
) -> SwapPlan:
    """Find what every adapter fits in, from headers only.

    ``base`` is the folder of the pipeline that files of trainers are for, where their names do not tell;
    ``allow_pickle`` lets files of torch.save be read, by torch.load(weights_only=True).
    Raises UnreadableAdapterError with the findings of every adapter that cannot be read; one that
    can be read but does not fit the others (or has an unsupported feature) is in ``conflicts``.
    """
    family = family_of_folder(base) if base is not None else None
    given = [adapters] if isinstance(adapters, str | Path | AdapterSpec) else adapters
    specs = _read_all(given, SpecReader(family, allow_pickle=allow_pickle))
    parts = {spec.components for spec in specs if spec.components}  # of a pipeline
    if len(parts) > 1 or parts & {(second,) for second in SECOND}:
        specs = [spec.within(*spec.components) for spec in specs]
    wrappers = most_nested(specs)
    specs = [nested_as(spec, wrappers) for spec in specs]
    inputs: dict[str, ModuleSpec] = {}
    for spec in specs:
        inputs |= as_wide_as(inputs, spec).modules
    specs = [as_wide_as(inputs, spec) for spec in specs]
    modules: dict[str, ModulePlan] = {}
    saved: dict[str, SavedTensor] = {}
    tokens: dict[str, TokenRows] = {}
    for spec in specs:
        for name, module in spec.modules.items():
            place = modules.get(name)
            if place is None or not same(place, module):
                modules[name] = _wider(place, module)
        for name, info in spec.saved.items():
            saved.setdefault(name, SavedTensor(info.shape, info.dtype))
        for name, rows in spec.tokens.items():
            known = tokens.get(name, rows)
            union = tuple(sorted({*known.indices, *rows.indices}))
            tokens[name] = replace(known, indices=union)
    whole = {name for spec in specs if spec.saved for name in whole_modules(spec.config)}
    need, reasons = _need(specs)
    envelope = SwapPlan(
        modules=dict(sorted(modules.items())),
        adapters=tuple(_summarise(spec, modules) for spec in specs),
        need=need,
        reasons=tuple(reasons),
        dtype=widest(module.dtype for spec in specs for module in spec.modules.values()),
        saved=saved,
        tokens=tokens,
        modules_to_save=tuple(sorted(whole)),
        tied={name: other for spec in specs for name, other in sorted(spec.tied.items())},
    )
    grounds = [spec.ground for spec in specs]
    if all(ground == grounds[0] for ground in grounds):
        envelope = replace(envelope, ground=grounds[0])
    mixed = [Finding(name, "HSW102", MIXED, APART) for name in envelope.mixed]
    found = dict.fromkeys([*mixed, *(f for spec in specs for f in fits(envelope, spec))])
    return replace(envelope, conflicts=tuple(found))


def _read_all(
    adapters: Iterable[str | Path | AdapterSpec], reader: SpecReader
) -> list[AdapterSpec]:
    specs: list[AdapterSpec] = []
    findings: list[Finding] = []
    for adapter in adapters:
        try:
            specs.append(adapter if isinstance(adapter, AdapterSpec) else reader.spec(str(adapter)))
        except UnreadableAdapterError as error:
            findings += error.findings
    if findings:
        raise UnreadableAdapterError(findings)
    if not specs:
        raise HotswapError("no adapters to plan for; pass at least one adapter folder")
    return specs


@lru_cache(maxsize=1024)  # the layers of a model are alike
def _wider(place: ModulePlan | None, module: ModuleSpec) -> ModulePlan:
    own = ModulePlan(*[getattr(module, field.name) for field in fields(ModulePlan)])
    if place is None:
        return own
    rank, bias, dora = max(place.rank, own.rank), place.bias or own.bias, place.dora or own.dora
    known = max(place.parameters, own.parameters, key=len)
    wider, other = (
        replace(each, rank=rank, bias=bias, dora=dora, parameters=known) for each in (own, place)
    )
    return wider if wider == other else place  # fits() reports another shape


def _summarise(spec: AdapterSpec, union: Iterable[str]) -> AdapterSummary:
    modules = spec.modules.values()
    ranks = tuple(sorted({module.rank for module in modules}))
    alphas = tuple(sorted({module.alpha for module in modules}))
    lacks = families((name, "") for name in union if name not in spec.modules)
    names = tuple(name for name, _ in lacks)
    return AdapterSummary(spec.name, spec.path, ranks, alphas, len(modules), spec.bytes, names)


def _need(specs: Sequence[AdapterSpec]) -> tuple[Need, list[str]]:
    """Whether the adapters need preparation, and why."""
    if len(specs) == 1:
        return "not needed", ["there is only one adapter, so nothing is swapped"]
    by_module: dict[str, list[ModuleSpec]] = {}
    for spec in specs:
        for name, module in spec.modules.items():
            by_module.setdefault(name, []).append(module)
    kinds = [_differing(by_module, trait) for trait in _TRAITS]
    if len({tuple(sorted(spec.saved)) for spec in specs}) > 1:
        having = sum(bool(spec.saved) for spec in specs)
        kinds.append([f"modules_to_save: in {having} of {len(specs)} adapters, or others"])
    if len({tuple(sorted((n, r.indices) for n, r in s.tokens.items())) for s in specs}) > 1:
        kinds.append(["trainable_token_indices: other tokens"])
    counts = families((n, len(own)) for n, own in by_module.items() if len(own) < len(specs))
    partly = [f"{name}: in {having} of {len(specs)} adapters" for name, having in counts]
    reasons = [line for lines in (*kinds, partly) for line in cut(lines)]
    if any(kinds):
        return "required", reasons
    if partly:
        return "recommended", reasons
    return "not needed", ["every adapter has the same modules, ranks and scalings"]


def _differing(by_module: Mapping[str, list[ModuleSpec]], trait: str) -> list[str]:
    """The modules that have several values of a trait, by family, with all values in it."""
    union: dict[str, set[float]] = defaultdict(set)
    differing = []
    for name, modules in by_module.items():
        found = {getattr(module, trait) for module in modules}
        if len(found) > 1:
            union[family(name)] |= found
            differing.append((name, family(name)))
    return [f"{n}: {_TRAITS[trait]} {_listed(union[kind])}" for n, kind in families(differing)]


def _listed(values: Iterable[float]) -> str:
    ordered = [f"{value:.10g}" for value in sorted(values)]
    return ", ".join(ordered if len(ordered) <= 6 else [*ordered[:3], "...", ordered[-1]])
