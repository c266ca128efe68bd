"""plan: what a fleet of adapters fits in, whether it needs preparation, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from hotswap.adapters.fit import fits, same
from hotswap.adapters.modules import ModuleSpec, TokenRows, widest
from hotswap.adapters.names import family
from hotswap.adapters.plan import (
    APART,
    MIXED,
    AdapterSummary,
    ModulePlan,
    Need,
    SavedTensor,
    SwapPlan,
    cut,
    times,
)
from hotswap.adapters.reader import SpecReader
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import HotswapError, UnreadableAdapterError
from hotswap.findings import Finding


def plan(adapters: Iterable[str | Path | AdapterSpec]) -> SwapPlan:
    """Find what every adapter fits in, from headers only.

    Raises UnreadableAdapterError with the findings of every adapter that cannot be read; one that
    can be read but does not fit the others (or has an unsupported feature) is in ``conflicts``.
    """
    if isinstance(adapters, str | Path | AdapterSpec):
        adapters = [adapters]
    specs = _read_all(adapters)
    if not specs:
        raise HotswapError("no adapters to plan for; pass at least one adapter folder")
    if len({spec.components for spec in specs if spec.components}) > 1:  # of a pipeline
        specs = [spec.within(*spec.components) for spec in specs]
    modules: dict[str, ModulePlan] = {}
    saved: dict[str, SavedTensor] = {}
    tokens: dict[str, TokenRows] = {}
    for spec in specs:
        for name, module in spec.modules.items():
            modules[name] = _widen(modules.get(name), module)
        for name, info in spec.saved.items():
            saved.setdefault(name, SavedTensor(info.shape, info.dtype))
        for name, rows in spec.tokens.items():
            known = tokens.get(name, rows)
            union = tuple(sorted({*known.indices, *rows.indices}))
            tokens[name] = replace(known, indices=union)
    need, reasons = _need(specs)
    envelope = SwapPlan(
        modules=dict(sorted(modules.items())),
        saved=saved,
        tokens=tokens,
        modules_to_save=tuple(
            sorted({m for s in specs if s.saved for m in s.config["modules_to_save"]})
        ),
        adapters=tuple(_summarise(spec, modules) for spec in specs),
        need=need,
        reasons=tuple(reasons),
        dtype=widest(module.dtype for spec in specs for module in spec.modules.values()),
    )
    mixed = [Finding(name, "HSW102", MIXED, APART) for name in envelope.mixed]
    found = dict.fromkeys([*mixed, *(f for spec in specs for f in fits(envelope, spec))])
    return replace(envelope, conflicts=tuple(found))


def _read_all(adapters: Iterable[str | Path | AdapterSpec]) -> list[AdapterSpec]:
    specs: list[AdapterSpec] = []
    findings: list[Finding] = []
    reader = SpecReader()
    for adapter in adapters:
        try:
            specs.append(adapter if isinstance(adapter, AdapterSpec) else reader.spec(str(adapter)))
        except UnreadableAdapterError as error:
            findings += error.findings
    if findings:
        raise UnreadableAdapterError(findings)
    return specs


def _widen(place: ModulePlan | None, module: ModuleSpec) -> ModulePlan:
    return place if place is not None and same(place, module) else _wider(place, module)


@lru_cache(maxsize=1024)  # the layers of a model are alike
def _wider(place: ModulePlan | None, module: ModuleSpec) -> ModulePlan:
    own = ModulePlan(
        module.kind,
        module.rank,
        module.in_features,
        module.out_features,
        module.kernel,
        module.groups,
        module.bias,
        module.dora,
        module.experts,
        module.parameters,
    )
    if place is None:
        return own
    wider = replace(
        place,
        rank=max(place.rank, own.rank),
        bias=place.bias or own.bias,
        dora=place.dora or own.dora,
    )
    same_shape = replace(own, rank=wider.rank, bias=wider.bias, dora=wider.dora) == wider
    return wider if same_shape else place  # fits() reports the other shape


def _summarise(spec: AdapterSpec, union: Iterable[str]) -> AdapterSummary:
    modules = spec.modules.values()
    lacking = Counter(family(name) for name in union if name not in spec.modules)
    return AdapterSummary(
        name=spec.name,
        path=spec.path,
        ranks=tuple(sorted({module.rank for module in modules})),
        alphas=tuple(sorted({module.alpha for module in modules})),
        modules=len(modules),
        bytes=spec.bytes,
        lacks=tuple(f"{name}{times(count)}" for name, count in sorted(lacking.items())),
    )


def _need(specs: Sequence[AdapterSpec]) -> tuple[Need, list[str]]:
    if len(specs) == 1:
        return "not needed", ["there is only one adapter, so nothing is swapped"]
    by_module: dict[str, list[ModuleSpec]] = {}
    for spec in specs:
        for name, module in spec.modules.items():
            by_module.setdefault(name, []).append(module)
    ranks = _differing(by_module, lambda module: module.rank, "ranks")
    scalings = _differing(by_module, lambda module: module.scaling, "scalings")
    biases = _differing(by_module, lambda module: int(module.bias), "lora_B.bias (1: present)")
    magnitudes = _differing(by_module, lambda module: int(module.dora), "DoRA (1: present)")
    trained = _trained(specs)
    partly = _partly(by_module, len(specs))
    kinds = (ranks, scalings, biases, magnitudes, trained, partly)
    reasons = [line for lines in kinds for line in cut(lines)]
    if any(kinds[:-1]):
        return "required", reasons
    if partly:
        return "recommended", reasons
    return "not needed", ["every adapter has the same modules, ranks and scalings"]


def _differing(
    by_module: Mapping[str, list[ModuleSpec]], value: Callable[[ModuleSpec], float], what: str
) -> list[str]:
    seen: dict[str, set[float]] = {}
    count: dict[str, int] = {}
    for name, modules in by_module.items():
        found = set(map(value, modules))
        if len(found) > 1:
            seen.setdefault(family(name), set()).update(found)
            count[family(name)] = count.get(family(name), 0) + 1
    return [
        f"{name}{times(count[name])}: {what} {_listed(found)}"
        for name, found in sorted(seen.items())
    ]


def _trained(specs: Sequence[AdapterSpec]) -> list[str]:
    lines = []
    if len({tuple(sorted(spec.saved)) for spec in specs}) > 1:
        having = sum(bool(spec.saved) for spec in specs)
        lines.append(f"modules_to_save: in {having} of {len(specs)} adapters, or others")
    if len({tuple(sorted((n, r.indices) for n, r in s.tokens.items())) for s in specs}) > 1:
        lines.append("trainable_token_indices: other tokens")
    return lines


def _partly(by_module: Mapping[str, list[ModuleSpec]], adapters: int) -> list[str]:
    groups: dict[tuple[str, int], int] = {}
    for name, modules in by_module.items():
        if len(modules) < adapters:
            key = (family(name), len(modules))
            groups[key] = groups.get(key, 0) + 1
    return [
        f"{name}{times(count)}: in {having} of {adapters} adapters"
        for (name, having), count in sorted(groups.items())
    ]


def _listed(values: Iterable[float]) -> str:
    ordered = [f"{value:.10g}" for value in sorted(values)]
    return ", ".join(ordered if len(ordered) <= 6 else [*ordered[:3], "...", ordered[-1]])
