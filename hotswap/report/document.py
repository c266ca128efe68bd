"""The report document: everything that ``report.json`` holds and ``report.html`` shows, as plain data.

The document carries what it was derived from (``tests`` and ``adapters``), so documents of shards can
be merged by deriving anew. Its fields are described in docs/report.md.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hotswap.documents import read_document
from hotswap.errors import HotswapError
from hotswap.report.records import (
    Record,
    Results,
    adapter_names,
    adapter_rows,
    judged,
    law_rows,
    short,
)
from hotswap.report.verdict import verdict

FORMAT, VERSION = "hotswap-report", 1
Document = dict[str, Any]
PERCENTILES = (50, 95, 99)
_VERSIONS = ("torch", "peft", "transformers", "diffusers", "safetensors", "pytest-hotswap")
_WANTED = "unprepared-recompiles"  # the law whose subject is a recompile
_DISABLING = "disabled or enabled"  # the law knobs-follow does; a deployment may, but then knows it
_FIRST_CALL = "the first call of this "  # as the compile watch says of a model that shares code
_UNDESCRIBED: dict[str, Any] = {
    **dict.fromkeys(("name", "path", "modules", "bytes", "digest")),
    "ranks": [],
    "alphas": [],
    "module_ranks": {},
    "findings": [],
    "warnings": [],
}
"""What is known of an adapter whose files were not read; its keys are what their files say."""


def derive(gathered: Mapping[str, Any]) -> Document:
    """Make the document of what a run gathered.

    ``gathered`` has ``request``, ``plan``, ``curve``, ``fleet``, ``adapters`` (what their files say),
    ``tests`` (records, see hotswap.report.records), ``exitstatus``, ``interrupted``, ``timing``,
    ``warnings`` and ``shards``.
    """
    results = Results(tuple(gathered["tests"]), gathered["exitstatus"])
    accepted = [a["name"] for a in gathered["adapters"] if not a["findings"]]
    if not gathered["adapters"]:  # a subject that names its own
        accepted = adapter_names(results)
    rows = {row["name"]: row for row in adapter_rows(results, accepted)}
    times = _swap_times(results.records)
    failed: dict[str, Record] = {}
    for record in results.records:
        if record["outcome"] == "failed" and "adapter" in record:
            kept = failed.get(record["adapter"])
            if kept is None or (kept.get("alone") and not record.get("alone")):
                failed[record["adapter"]] = record
    adapters = [
        _adapter(a, rows.get(a["name"]), times.get(a["name"], ()), failed.get(a["name"]))
        for a in gathered["adapters"] or [_UNDESCRIBED | {"name": name} for name in accepted]
    ]
    environments = (r["environment"] for r in results.records if r.get("environment"))
    samples = (gathered["timing"] or {}).get("samples") or {}
    laws = law_rows(results)
    warnings = [*gathered["warnings"], *_warnings(adapters, laws, gathered["timing"])]
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": verdict(gathered, results, accepted, warnings),
        "request": gathered["request"],
        "environment": [json.loads(told) for told in dict.fromkeys(environments)],
        "plan": gathered["plan"],
        "curve": gathered["curve"],
        "fleet": gathered["fleet"],
        "adapters": adapters,
        "laws": laws,
        "swaps": results.swaps,
        "recompiles": results.recompiles,
        "latency": [
            {"series": name, **percentiles(some), "samples": some}
            for name, some in samples.items()
            if some
        ],
        "timing": gathered["timing"],
        "compiles": _compiles(results.records),
        "shards": gathered["shards"],
        "tests": list(gathered["tests"]),
        "exitstatus": gathered["exitstatus"],
        "interrupted": gathered["interrupted"],
    }


def dumps(document: Document) -> str:
    """Write a document as JSON; NaN and infinity, for which JSON has no word, become text."""
    return json.dumps(_finite(document), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read(path: Path) -> Document:
    """Read ``report.json``, or the one in a folder; raises HotswapError in one sentence."""
    file = path / "report.json" if path.is_dir() else path
    text = read_document(file)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HotswapError(f"{file}: is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HotswapError(f"{file}: is not a report of hotswap verify; give its report.json")
    if document.get("version") != VERSION:
        raise HotswapError(
            f"{file}: has version {str(document.get('version'))[:40]}, this hotswap reads {VERSION}; "
            "run hotswap verify again"
        )
    return document


def merge(documents: Sequence[Document], *, fail_on: str = "error") -> Document:
    """Join the documents of shards, in the order of the shards.

    Raises HotswapError for shards of different fleets, runs or versions, for a shard given twice, and
    for a document that lacks what a report has; a shard that is missing makes the verdict incomplete.
    """
    try:
        return _merged(documents, fail_on)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise HotswapError(
            f"a report lacks what reports of hotswap verify have ({type(error).__name__}: {error}); "
            "run hotswap verify again"
        ) from error


def _merged(documents: Sequence[Document], fail_on: str) -> Document:
    documents = sorted(documents, key=lambda d: [s["index"] for s in d["shards"]])
    first = documents[0]
    shards = [shard for d in documents for shard in d["shards"]]
    if not all(d["shards"] for d in documents):
        raise HotswapError("a report that is not of a shard cannot be merged; see --shard")
    if len({shard["count"] for shard in shards}) > 1:
        raise HotswapError("the reports are of different numbers of shards")
    for index, times in Counter(shard["index"] for shard in shards).items():
        if times > 1:
            raise HotswapError(f"shard {index} is given twice")
    for key in ("plan", "request", "fleet"):
        if any(d[key] != first[key] for d in documents):
            raise HotswapError(f"the reports have different {key}s, so they are not of one run")
    versions = [
        {key: told.get(key) for key in _VERSIONS} for d in documents for told in d["environment"]
    ]
    for key in _VERSIONS:
        found = sorted({str(one[key]) for one in versions})
        if len(found) > 1:
            raise HotswapError(
                f"the reports are of different versions of {key} ({', '.join(found)}), which may differ in "
                "what they find; run the shards with one"
            )
    statuses = [d["exitstatus"] for d in documents]
    return derive(
        {
            **first,
            "request": {**first["request"], "fail_on": fail_on},
            "merged": True,
            "adapters": [{k: a[k] for k in _UNDESCRIBED} for d in documents for a in d["adapters"]],
            "tests": [test for d in documents for test in d["tests"]],
            "exitstatus": None if None in statuses else max(statuses),
            "interrupted": any(d["interrupted"] for d in documents),
            "timing": next((d["timing"] for d in documents if d["timing"]), None),
            "shards": shards,
            "warnings": list(dict.fromkeys(w for d in documents for w in _own_warnings(d))),
        }
    )


def percentiles(samples: list[float]) -> dict[str, float]:
    """p50, p95 and p99, interpolated linearly between samples."""
    cuts = statistics.quantiles(
        samples * (2 if len(samples) == 1 else 1), n=100, method="inclusive"
    )
    return {f"p{percent}": cuts[percent - 1] for percent in PERCENTILES}


def _warnings(
    adapters: Sequence[Record], laws: Iterable[Record], timing: Record | None
) -> list[str]:
    twins: dict[str, list[str]] = {}
    for adapter in adapters:
        if adapter["digest"]:
            twins.setdefault(adapter["digest"], []).append(adapter["name"])
    timing = timing or {}
    told = [f"{a['name']}: {f['code']} {f['message']}" for a in adapters for f in a["warnings"]]
    found = [f"{', '.join(names)} have equal weights" for names in twins.values() if names[1:]]
    found += [f"{r['law']} does not apply" for r in laws if r["state"] == "not applicable"]
    failed = [f"{r['row']}: {r['error']}" for r in timing.get("rows", ()) if r.get("error")]
    failed += [timing["error"]] if timing.get("error") else []
    return [*told, *found, *(f"not timed: {reason}" for reason in failed)]


def _own_warnings(document: Document) -> list[str]:
    derived = _warnings(document["adapters"], document["laws"], document["timing"])
    return [w for w in document["verdict"]["warnings"] if w not in derived]


def _adapter(
    described: Record, row: Record | None, times: Sequence[float], failed: Record | None
) -> Record:
    outcome, reason = "not run", ""
    if described["findings"]:
        outcome, reason = "refused", described["findings"][0]["message"]
    elif failed is not None:
        outcome = "failed"
        reason = short(str(failed.get("message") or ""), str(failed.get("law")))
        if failed.get("alone"):
            outcome, reason = "passed", f"right alone, but beside another adapter: {reason}"
    elif row is not None and judged(row):
        outcome = "passed"
    return {
        **described,
        **(row or {}),
        "swap_seconds": statistics.median(times) if times else None,
        "swap_samples": len(times),
        "verdict": outcome,
        "reason": reason,
    }


def _swap_times(records: Iterable[Record]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for record in records:
        for name, found in json.loads(record.get("swap_times") or "{}").items():
            times.setdefault(name, []).extend(found)
    return times


def _compiles(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Every compile in order; ``at`` is in seconds since the first test began.

    ``wanted`` marks first compiles, and recompiles that are provoked: of an unprepared model, by a
    control, by a test that disables the adapter, or by the first call of another model of the class.
    """
    records = [r for r in records if r.get("started")]
    start = min((float(r["started"]) for r in records), default=0.0)
    found = []
    for record in records:
        at = float(record["started"]) - start
        control = record.get("role") == "control" or record.get("law") == _WANTED
        for phase in ("setup", "call"):
            for one in json.loads(record.get(f"compiles_in_{phase}") or "[]"):
                told = one["sentence"]
                provoked = one.pop("provoked", False) or control
                provoked = provoked or _DISABLING in told or told.startswith(_FIRST_CALL)
                wanted = one["kind"] == "first" or (one["kind"] == "recompile" and provoked)
                test = str(record["nodeid"]).rpartition("::")[2]
                found.append({"at": round(at, 3), **one, "wanted": wanted, "test": test})
                at += one["seconds"]
    return sorted(found, key=lambda one: one["at"])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
