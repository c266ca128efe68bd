"""The report of ``hotswap verify``: what the suite's records say, as tables, a verdict and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hotswap.report.laws import LAWS

LONGEST = 240
"""Characters of a failure's message in the report; pytest's own output has all of it."""
Record = dict[str, Any]
State = Literal["passed", "failed", "not run", "not applicable"]


@dataclass(frozen=True, slots=True)
class Results:
    """What a report file holds; ``exitstatus`` is None when the run did not end by itself."""

    records: tuple[Record, ...] = ()
    exitstatus: int | None = None

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a report file; a last line that was cut off in writing is left out."""
        if not path.exists():
            return cls()
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return cls.of(_parsed(line for line in lines if line.endswith("\n")))

    @classmethod
    def of(cls, lines: Iterable[Record]) -> Results:
        """Sort parsed lines into test records and the end line."""
        records: list[Record] = []
        exitstatus: int | None = None
        for line in lines:
            if line.get("end"):
                exitstatus = int(line.get("exitstatus", 0))
            elif "nodeid" in line:
                records.append({key.removeprefix("hotswap."): line[key] for key in line})
        return cls(tuple(records), exitstatus)

    @property
    def laws(self) -> tuple[str, ...]:
        """The ids of all laws: the known ones in order, then any other that the file names."""
        named = [str(r["law"]) for r in self.records if r.get("law")]
        return (*LAWS, *dict.fromkeys(law for law in named if law not in LAWS))

    def of_law(self, law: str, *, role: str | None = None) -> tuple[Record, ...]:
        """Return the records of one law, or of its tests or its controls only."""
        return tuple(
            r
            for r in self.records
            if r.get("law") == law and (role is None or (r.get("role") or "law") == role)
        )

    @property
    def swaps(self) -> int:
        """How many swaps were watched for recompiles."""
        return sum(int(r.get("swaps") or 0) for r in self.of_law("zero-recompiles", role="law"))

    @property
    def recompiles(self) -> int:
        """How many recompiles these swaps caused."""
        return sum(
            int(r.get("recompiles") or 0) for r in self.of_law("zero-recompiles", role="law")
        )


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """What was found about one adapter; None where no test said anything."""

    adapter: str
    equals_load: State
    max_error: float | None
    tolerance: float | None
    has_effect: State
    effect: float | None
    recompiles: int | None
    hits: int | None
    in_place: State
    moved: int | None


@dataclass(frozen=True, slots=True)
class LawRow:
    """What became of one law and of the control that shows its test can fail."""

    law: str
    state: State
    control: State
    statement: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The last line of the report."""

    outcome: Literal["ready", "not ready", "incomplete"]
    line: str

    @property
    def ready(self) -> bool:
        """Whether every law and every adapter passed."""
        return self.outcome == "ready"


def state_of(records: Sequence[Record]) -> State:
    """Join the outcomes of some tests into one: a failure wins, then a pass, then the skips."""
    outcomes = {r.get("outcome") for r in records}
    if "failed" in outcomes or "error" in outcomes:
        return "failed"
    if "passed" in outcomes:
        return "passed"
    if records and all("not applicable" in str(r.get("message")) for r in records):
        return "not applicable"
    return "not run"


def adapter_rows(results: Results, adapters: Sequence[str]) -> tuple[AdapterRow, ...]:
    """Join the records by adapter and law: one row an adapter, in the order given."""
    records: dict[str, list[Record]] = {name: [] for name in adapters}
    for record in results.records:
        if record.get("adapter") in records:
            records[record["adapter"]].append(record)
    return tuple(_adapter_row(name, Results(tuple(own))) for name, own in records.items())


def adapter_names(results: Results) -> tuple[str, ...]:
    """Name every adapter that the records mention, in their order."""
    names = (r.get("adapter") for r in results.of_law("swap-equals-load", role="law"))
    return tuple(dict.fromkeys(str(name) for name in names if name))


def law_rows(results: Results) -> tuple[LawRow, ...]:
    """Say of each law whether it holds and whether its control failed as it must."""
    return tuple(_law_row(results, law) for law in results.laws)


def verdict(results: Results, adapters: Sequence[str], *, target_rank: int | None) -> Verdict:
    """Give the last line: ready, not ready (what failed) or incomplete (what did not run)."""
    laws = law_rows(results)
    rows = adapter_rows(results, adapters)
    failed = [row.law for row in laws if row.state == "failed"]
    failed += [f"{row.law} (control)" for row in laws if row.control == "failed"]
    others = [
        str(r["nodeid"]) for r in results.records if not r.get("law") and r["outcome"] == "failed"
    ]
    if failed or others:
        names = _failing_adapters(results, adapters)
        at = f" for {', '.join(names)}" if names else ""
        return Verdict("not ready", f"not ready: {', '.join([*failed, *others])} failed{at}")
    if results.exitstatus == 1:
        return Verdict("not ready", "not ready: pytest reports a failure that no record names")
    missing = [row.law for row in laws if row.state == "not run"]
    missing += [f"{row.law} (control)" for row in laws if _control_missing(row)]
    missing += [f"adapter {row.adapter}" for row in rows if not _judged(row)]
    if not adapters:
        missing.append("every adapter")
    reasons = [f"{', '.join(missing)} did not run"] if missing else []
    if results.exitstatus is None or (results.exitstatus and not missing):
        reasons.append("the run did not come to its end")
    if not missing and not results.swaps:
        reasons.append("no swap was watched for recompiles")
    if reasons:
        return Verdict("incomplete", f"incomplete: {'; '.join(reasons)}")
    count = f"{len(adapters)} adapter{'' if len(adapters) == 1 else 's'}"
    rank = f", target rank {target_rank}" if target_rank is not None else ""
    swaps = f"{results.recompiles} recompiles in {results.swaps} swaps"
    return Verdict("ready", f"ready to hot-swap: {count}{rank}, {swaps}")


def adapter_table(rows: Sequence[AdapterRow]) -> str:
    """Render the rows of the adapters."""
    head = ("adapter", "swapped = fresh load", "effect", "recompiles", "compiled ran", "storage")
    return table("Adapters", head, [_adapter_cells(row) for row in rows])


def law_table(rows: Sequence[LawRow]) -> str:
    """Render the rows of the laws, and below them why any of them failed."""
    head = ["law", "outcome", "control"]
    cells = [[row.law, row.state, row.control] for row in rows]
    if any(row.statement for row in rows):
        head.append("statement")
        cells = [[*cell, row.statement] for cell, row in zip(cells, rows, strict=True)]
    text = table("Laws", head, cells)
    reasons = [f"  {r.law}: {r.message}" for r in rows if r.message]
    return "\n".join([text, *reasons])


def timing_table(timing: Record) -> str:
    """Render what hotswap.bench.timing measured; a row that failed says why."""
    head = ("", "first inference", "adapter swap", "slowest swap", "recompiles")
    rows = [_timing_cells(row) for row in timing.get("rows", ())]
    title = f"Timing (backend {timing.get('backend', '?')}; a swap includes the next inference)"
    text = table(title, head, rows) if rows else title
    reasons = [f"  {r['row']}: {r['error']}" for r in timing.get("rows", ()) if r.get("error")]
    if timing.get("error"):
        reasons.append(f"  not measured: {timing['error']}")
    return "\n".join([text, *reasons])


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells in columns as wide as their widest cell, whatever the terminal."""
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return ("  " + "  ".join(padded)).rstrip()

    rule = "  " + "  ".join("-" * width for width in widths)
    return "\n".join([title, line(head), rule, *(line(row) for row in rows)])


def _parsed(lines: Iterable[str]) -> Iterable[Record]:
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _adapter_row(name: str, own: Results) -> AdapterRow:
    laws = ("swap-equals-load", "swap-has-effect", "zero-recompiles", "swap-in-place")
    equals, effect, recompiled, in_place = (own.of_law(law, role="law") for law in laws)
    return AdapterRow(
        adapter=name,
        equals_load=state_of(equals),
        max_error=_largest(equals, "max_error"),
        tolerance=_largest(equals, "tolerance"),
        has_effect=state_of(effect),
        effect=_largest(effect, "effect"),
        recompiles=_total(recompiled, "recompiles"),
        hits=_total(recompiled, "hits"),
        in_place=state_of(in_place),
        moved=_total(in_place, "moved"),
    )


def _law_row(results: Results, law: str) -> LawRow:
    tests = results.of_law(law)
    bad = [r for r in tests if r.get("outcome") not in ("passed",) and r.get("message")]
    return LawRow(
        law=law,
        state=state_of(results.of_law(law, role="law")),
        control=state_of(results.of_law(law, role="control")),
        statement=LAWS.get(law, ""),
        message=short(str(bad[0]["message"]), law) if bad else "",
    )


def short(message: str, law: str) -> str:
    """Cut what pytest says of a failure down to what a table has room for."""
    told = message.removeprefix("AssertionError: ").removeprefix(f"{law}: ")
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}…"


def _control_missing(row: LawRow) -> bool:
    return row.state == "passed" and row.control == "not run"


def _judged(row: AdapterRow) -> bool:
    return row.equals_load in ("passed", "not applicable")


def _failing_adapters(results: Results, adapters: Sequence[str]) -> list[str]:
    named = {r.get("adapter") for r in results.records if r.get("outcome") == "failed"}
    return [name for name in adapters if name in named]


def _largest(records: Sequence[Record], key: str) -> float | None:
    values = [float(r[key]) for r in records if r.get(key) is not None]
    return max(values) if values else None


def _total(records: Sequence[Record], key: str) -> int | None:
    values = [int(r[key]) for r in records if r.get(key) is not None]
    return sum(values) if values else None


def _adapter_cells(row: AdapterRow) -> tuple[str, ...]:
    error = "" if row.max_error is None else f" ({row.max_error:.1e} of {row.tolerance or 0:.1e})"
    effect = "" if row.effect is None else f" ({row.effect:.1e})"
    storage = {"passed": "stayed put", "failed": f"moved ({row.moved or '?'})"}
    return (
        row.adapter,
        row.equals_load + error,
        row.has_effect + effect,
        "not run" if row.recompiles is None else str(row.recompiles),
        "not run" if row.hits is None else f"{row.hits} times",
        storage.get(row.in_place, row.in_place),
    )


def _timing_cells(row: Record) -> tuple[str, ...]:
    if row.get("error"):
        return (str(row["row"]), "failed", "failed", "failed", "failed")
    recompiles = row.get("recompiles")
    return (
        str(row["row"]),
        _duration(row["first_inference"]),
        _duration(row["swap"]),
        _duration(row["slowest_swap"]),
        "-" if recompiles is None else f"{recompiles} in {row['swaps']} swaps",
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
