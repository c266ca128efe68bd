"""The verdict of a run: ready, not ready (what failed) or incomplete (what did not run)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hotswap.findings import printable
from hotswap.report.laws import CONTROL_REMEDY, REMEDIES
from hotswap.report.records import Results, adapter_rows, judged, law_rows

INDISPENSABLE = ("swap-equals-load", "swap-atomic", "zero-recompiles")
"""Laws without which a deployment is not ready, whatever its subject says of them."""

MOST_NAMED = 5
"""Adapters that the line names of those that were refused, failed or did not run; it counts the others."""


def verdict(
    gathered: Mapping[str, Any],
    results: Results,
    accepted: Sequence[str],
    warnings: Iterable[str],
) -> dict[str, Any]:
    """Judge what a run gathered: the outcome, the last line, the reasons behind it, the warnings."""
    refused = [a for a in gathered["adapters"] if a["findings"]]
    plan, shards = gathered["plan"], gathered["shards"]
    exported = gathered["request"].get("package") is not None
    rank = plan["target_rank"] if plan else None
    outcome, line = last_line(results, accepted, rank, exported=exported)
    if shards and outcome != "not ready":
        absent = set(range(1, shards[0]["count"] + 1)) - {shard["index"] for shard in shards}
        if absent and gathered.get("merged"):
            missing = ", ".join(map(str, sorted(absent)))
            outcome, line = "incomplete", f"incomplete: the report of shard {missing} is missing"
        elif gathered.get("merged") and len(gathered["adapters"]) != gathered["fleet"]["adapters"]:
            told = f"{len(gathered['adapters'])} of {gathered['fleet']['adapters']} adapters"
            outcome, line = "incomplete", f"incomplete: the reports are of {told}"
        elif absent:
            line = f"{line} (shard {shards[0]['index']} of {shards[0]['count']})"
    if refused:
        named = _named([f"{a['name']} ({a['findings'][0]['code']})" for a in refused])
        others = f"the others: {line.removeprefix('not ready: ')}"
        rest = others if results.records else "nothing else could be run"
        outcome = "not ready"
        line = f"not ready: {_adapters(refused)} refused, {named}; {rest}"
    warnings = list(dict.fromkeys(warnings))
    cut = filter(None, [gathered["request"].get("cut")])  # of a model that was too large
    if outcome == "ready" and warnings and gathered["request"].get("fail_on") == "warning":
        more = f" and {len(warnings) - 1} more" if len(warnings) > 1 else ""
        outcome = "not ready"
        line = f"not ready: --fail-on warning, and there is {warnings[0]}{more}; else {line}"
    if gathered["interrupted"]:
        line = f"partial, interrupted by Ctrl-C: {line}"
    reasons = [
        {"adapter": a["name"], "text": _finding(f), "remedy": f["remedy"]}
        for a in refused
        for f in a["findings"]
    ]
    reasons += [
        {
            "adapter": "",
            "law": row["law"],
            "text": f"{row['law']}: {row['message']}",
            "remedy": _remedy(gathered, row),
        }
        for row in law_rows(results)
        if row["message"] and "failed" in (row["state"], row["control"])
    ]
    notes = [*_where(results), *gathered.get("notes", ()), *cut]
    return {
        "outcome": outcome,
        "line": printable("; ".join([line, *notes])),
        "partial": bool(gathered["interrupted"]),
        "reasons": reasons,
        "warnings": warnings,
    }


def _finding(found: Mapping[str, Any]) -> str:
    """A finding, with the tensor or module that it is about."""
    place = str(found.get("where") or "").partition("::")[2]
    return f"{found['code']} {place}{': ' if place else ''}{found['message']}"


def _where(results: Results) -> list[str]:
    """Over how many ranks the model was cut, where it was."""
    told: dict[str, Any] = next(
        (json.loads(r["environment"]) for r in results.records if r.get("environment")), {}
    )
    return [f"on {told['ranks']} ranks ({told['distributed']})"] if told.get("ranks") else []


def _remedy(gathered: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What to do about a law, or about the control of one, and how to repeat just this law."""
    remedy = REMEDIES.get(row["law"]) if row["state"] == "failed" else CONTROL_REMEDY
    command = gathered["request"].get("command")
    again = command and f"run just this law again: {command} -- -k {row['law'].replace('-', '_')}"
    return "; ".join(filter(None, (remedy, again)))


def last_line(
    results: Results, adapters: Sequence[str], target_rank: int | None, *, exported: bool = False
) -> tuple[str, str]:
    """Give the outcome and the line about the adapters that were accepted.

    What is ``exported`` cannot recompile, so nothing has to be watched for it.
    """
    laws, records = law_rows(results), results.records
    failed = [row["law"] for row in laws if row["state"] == "failed"]
    failed += [f"{row['law']} (control)" for row in laws if row["control"] == "failed"]
    failed += [str(r["nodeid"]) for r in records if not r.get("law") and r["outcome"] == "failed"]
    if failed:
        wrong = [r for r in records if r.get("outcome") == "failed"]
        named = {r.get("adapter") for r in wrong if not r.get("alone")}
        names = _named([name for name in adapters if name in named])
        at = f" for {names}" if names else ""
        return "not ready", f"not ready: {', '.join(failed)} failed{at}"
    if results.exitstatus == 1:
        return "not ready", "not ready: pytest reports a failure that no record names"
    missing = [row["law"] for row in laws if row["state"] == "not run"]
    missing += [
        f"{row['law']} (control)"
        for row in laws
        if row["state"] == "passed" and row["control"] == "not run"
    ]
    rows = adapter_rows(results, adapters)
    unjudged = [f"adapter {row['name']}" for row in rows if not judged(row)]
    missing += [_named(unjudged)] if unjudged else []
    missing += [] if adapters else ["every adapter"]
    reasons = [f"{', '.join(missing)} did not run"] if missing else []
    if results.exitstatus is None or (results.exitstatus and not missing):
        reasons.append("the run did not come to its end")
    off = [row["law"] for row in laws if row["state"] == "not applicable"]
    if needed := indispensable(off, exported=exported):
        verb = "is" if len(needed) == 1 else "are"
        reasons.append(f"{', '.join(needed)} {verb} switched off, and nothing is ready without")
    if not (missing or needed or exported or results.swaps):
        reasons.append("no swap was watched for recompiles")
    if reasons:
        return "incomplete", f"incomplete: {'; '.join(reasons)}"
    rank = f", target rank {target_rank}" if target_rank is not None else ""
    swaps = f"{results.recompiles} recompiles in {results.swaps} swaps"
    swaps = "nothing that could recompile" if exported else swaps
    without = f", {_laws(off)} switched off" if off else ""
    return "ready", f"ready to hot-swap: {_adapters(adapters)}{rank}, {swaps}{without}"


def indispensable(off: Sequence[str], *, exported: bool = False) -> list[str]:
    """Which laws that are switched off keep a deployment from being ready."""
    needed = [law for law in INDISPENSABLE if law in off]
    return [law for law in needed if not (exported and law == "zero-recompiles")]


def _named(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _laws(some: Sequence[object]) -> str:
    return f"{len(some)} law{'' if len(some) == 1 else 's'}"


def _adapters(some: Sequence[object]) -> str:
    return f"{len(some)} adapter{'' if len(some) == 1 else 's'}"
