"""The fleet as its files describe it: what can be swapped, what is refused, and the pictures' numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hotswap.adapters.fit import file_fits
from hotswap.adapters.fleet import judge
from hotswap.adapters.plan import SwapPlan
from hotswap.adapters.planner import plan
from hotswap.adapters.spec import AdapterSpec
from hotswap.cli.curve import point
from hotswap.errors import HotswapError, UnreadableAdapterError
from hotswap.findings import RULES, Finding

_OF_NAMES = frozenset({"HSW114", "HSW116"})
"""Warnings that say nothing here: a swap compares whole names, and equal weights are told by digest."""

MOST_RANKS = 40
"""Points of the memory curve at most; the chosen rank and the largest are always among them."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Adapters that fit the plan, and those that do not, by path, with the findings."""

    plan: SwapPlan | None = None
    specs: dict[str, AdapterSpec] = field(default_factory=dict)
    refused: dict[str, tuple[Finding, ...]] = field(default_factory=dict)
    warned: dict[str, tuple[Finding, ...]] = field(default_factory=dict)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The paths that go on to be swapped."""
        return tuple(path for path in self.specs if path not in self.refused)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, adapter by adapter."""
        return tuple(finding for found in self.refused.values() for finding in found)


def read_fleet(paths: Sequence[str], given: SwapPlan | None = None) -> Fleet:
    """Read every adapter's header; one that cannot be read or does not fit leaves the others alone.

    Without a plan the fleet's own is made; an adapter that conflicts with it is taken out and the
    plan is made again from the others.
    """
    specs: dict[str, AdapterSpec] = {}
    refused: dict[str, tuple[Finding, ...]] = {}
    for path in paths:
        try:
            specs[path] = AdapterSpec.read(path)
        except UnreadableAdapterError as error:
            refused[path] = error.findings
    chosen = given
    if given is not None:
        refused |= _unfit(given, specs)
    else:
        refused |= {path: spec.findings for path, spec in specs.items() if spec.findings}
        while left := {path: spec for path, spec in specs.items() if path not in refused}:
            chosen = plan(list(left.values()))
            unfit = _unfit(chosen, left)
            if not unfit:
                break
            refused |= unfit
    refused = {path: refused[path] for path in paths if path in refused}
    return Fleet(chosen if len(refused) < len(paths) else given, specs, refused)


def _unfit(chosen: SwapPlan, specs: dict[str, AdapterSpec]) -> dict[str, tuple[Finding, ...]]:
    found = {path: file_fits(chosen, spec) for path, spec in specs.items()}
    return {path: findings for path, findings in found.items() if findings}


def read_values(fleet: Fleet, paths: Sequence[str]) -> Fleet:
    """Read the weights of the accepted ones of these paths: what is wrong with the values, and warnings.

    The plan stays as it is: it is the same in every shard, and each shard reads its own adapters only.
    """
    accepted = [path for path in paths if path not in fleet.refused]
    _, findings = judge(accepted, RULES.keys() - _OF_NAMES, plan=fleet.plan, weights=True)
    found: dict[str, list[Finding]] = {path: [] for path in accepted}
    for finding in findings:
        where = finding.where.partition("::")[0]
        found[where if where in found else _folder(where, found)].append(finding)
    return replace(
        fleet,
        refused=fleet.refused | _of("error", found),
        warned=_of("warning", found),
    )


def _folder(where: str, paths: Iterable[str]) -> str:
    return next(path for path in paths if Path(path) in Path(where).parents)


def _of(severity: str, found: dict[str, list[Finding]]) -> dict[str, tuple[Finding, ...]]:
    picked = {
        path: tuple(f for f in some if f.severity == severity) for path, some in found.items()
    }
    return {path: some for path, some in picked.items() if some}


def fingerprint(paths: Sequence[str], fleet: Fleet) -> dict[str, Any]:
    """What tells one fleet from another one by names and headers, whatever folder it lies in."""
    described = [
        [
            Path(path).name,
            spec and [spec.bytes, [(n, m.rank, m.alpha) for n, m in spec.modules.items()]],
        ]
        for path in sorted(paths, key=lambda path: Path(path).name)
        for spec in (fleet.specs.get(path),)
    ]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return {"adapters": len(paths), "digest": digest}


def files_of(paths: Sequence[str], mine: Sequence[str], fleet: Fleet) -> dict[str, Any]:
    """What the files of a fleet say for the report; ``mine`` are this shard's."""
    chosen = fleet.plan
    return {
        "plan": chosen.to_dict() if chosen else None,
        "curve": memory_curve(chosen, fleet.specs.values()) if chosen else [],
        "fleet": fingerprint(paths, fleet),
        "adapters": [adapter_entry(path, fleet) for path in mine],
    }


def adapter_entry(path: str, fleet: Fleet) -> dict[str, Any]:
    """Describe one adapter; what cannot be read of a refused one is None."""
    spec = fleet.specs.get(path)
    modules = spec.modules.values() if spec else ()
    return {
        "name": Path(path).name or Path(path).resolve().name,
        "path": path,
        "ranks": sorted({module.rank for module in modules}),
        "alphas": sorted({module.alpha for module in modules}),
        "modules": len(modules) if spec else None,
        "bytes": spec.bytes if spec else None,
        "digest": weights_digest(path),
        "module_ranks": {name: m.rank for name, m in spec.modules.items()} if spec else {},
        "findings": [finding.as_dict() for finding in fleet.refused.get(path, ())],
        "warnings": [finding.as_dict() for finding in fleet.warned.get(path, ())],
    }


def weights_digest(path: str) -> str | None:
    """SHA-256 of the weights file, as ``sha256sum`` prints it; None where there is none to read."""
    file = Path(path, "adapter_model.safetensors") if Path(path).is_dir() else Path(path)
    try:
        with file.open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()
    except OSError:
        return None


def memory_curve(chosen: SwapPlan, specs: Iterable[AdapterSpec]) -> list[dict[str, int]]:
    """Per target rank: bytes of a prepared model, per module and uniform, and adapters admitted."""
    ranks = [spec.rank for spec in specs]
    top = max([chosen.target_rank, *ranks], default=0)
    wanted = sorted({*range(1, top + 1), chosen.target_rank} - {0})
    if len(wanted) > MOST_RANKS:
        step = -(-top // MOST_RANKS)
        wanted = sorted({*range(step, top + 1, step), *ranks, chosen.target_rank, top} - {0})
    points = [point(chosen, rank, ranks) for rank in wanted]
    return [
        {
            "rank": found.target_rank,
            "per_module_bytes": found.fitted,
            "uniform_bytes": found.uniform,
            "admitted": found.admitted,
        }
        for found in points
    ]


def shard(paths: Sequence[str], sizes: dict[str, int], index: int, count: int) -> list[str]:
    """Take this machine's part: the largest adapter first, each to the part with the fewest bytes.

    Equal arguments give equal parts whatever the order of the paths; every path is in one part.
    """
    loads = [0] * count
    mine: list[str] = []
    for path in sorted(paths, key=lambda path: (-sizes.get(path, 0), path)):
        lightest = min(range(count), key=lambda part: (loads[part], part))
        loads[lightest] += sizes.get(path, 0) + 1  # the 1 spreads adapters of no bytes
        if lightest == index - 1:
            mine.append(path)
    return [path for path in paths if path in set(mine)]


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, counted from 1; raises HotswapError."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise HotswapError(f"--shard is {text!r}; write i/n with 1 <= i <= n, for example 2/8")
    return int(index), int(count)
