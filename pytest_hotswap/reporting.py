"""The report file: a line of JSON for each finished test, and a last one for the session."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pytest

from hotswap.report.records import Results, law_rows
from hotswap.report.verdict import indispensable

PREFIX = "hotswap."


@dataclass(slots=True)
class Outcome:
    """What is known of a test so far; setup, call and teardown are one outcome."""

    outcome: str = "passed"
    message: str | None = None
    xfail: str | None = None
    seconds: float = 0.0
    properties: dict[str, Any] = field(default_factory=dict)

    def add(self, report: pytest.TestReport) -> None:
        """Add a phase; the worst outcome and its first message stay."""
        self.seconds += report.duration
        self.properties.update(
            (str(key).removeprefix(PREFIX), _scalar(value))
            for key, value in report.user_properties
            if str(key).startswith(PREFIX)
        )
        self.xfail = getattr(report, "wasxfail", self.xfail)
        if report.failed and self.outcome != "failed":
            self.outcome, self.message = "failed", first_line(report)
        elif report.skipped and self.outcome == "passed":
            self.outcome, self.message = "skipped", self.xfail or first_line(report)

    def as_dict(self, nodeid: str) -> dict[str, Any]:
        """JSON form; the test's own properties cannot overwrite what pytest says of it."""
        line = {"nodeid": nodeid, "law": None, "role": None, "adapter": None, **self.properties}
        line |= {"nodeid": nodeid, "outcome": self.outcome, "message": self.message}
        line |= {"seconds": round(self.seconds, 6)}
        return line if self.xfail is None else line | {"xfail": self.xfail}


class Report:
    """A plugin that writes the report file; only the process that controls the session has one.

    Each line is flushed as its test finishes. A file without an ``end`` line belongs to a session
    that was killed; ``interrupted`` in that line says that not every test ran.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None
        self._open: dict[str, Outcome] = {}
        self._broken: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Empty the file: lines of an earlier session would count as this one's."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        except OSError as error:
            raise pytest.UsageError(
                f"--hotswap-report: cannot write {self.path}: {error.strerror}"
            ) from error

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Report a file whose tests could not be collected, once, as one failure."""
        if report.failed and report.nodeid not in self._broken:
            self._broken.add(report.nodeid)
            self._write(Outcome("failed", first_line(report)).as_dict(report.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather the phases of a test, and write it down after its last."""
        if hasattr(report, "context"):
            return  # a subtest: the test that it is a part of reports it
        if report.when == "setup":
            self._open[report.nodeid] = Outcome()  # a rerun starts anew
        self._open.setdefault(report.nodeid, Outcome()).add(report)
        if report.when not in ("setup", "call"):  # xdist reports a crashed worker as "???"
            self._write(self._open.pop(report.nodeid).as_dict(report.nodeid))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the last line."""
        status = int(session.exitstatus)
        interrupted = status == pytest.ExitCode.INTERRUPTED
        self._write({"end": True, "exitstatus": status, "interrupted": interrupted})

    def pytest_unconfigure(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()


_COLUMNS = {
    "first_compiles": "compiles",
    "recompiles": "recompiles",
    "eager_misses": "eager misses",
    "compile_seconds": "seconds",
}
_ROWS = 10


def compile_table(outcomes: Iterable[Sequence[object]]) -> list[str]:
    """Tabulate what the watched tests compiled, the slowest first, with a total; empty without any."""
    rows: list[tuple[list[float], str]] = []
    for report in (report for reports in outcomes for report in reports):
        if isinstance(report, pytest.TestReport) and report.when == "call":
            found: dict[str, Any] = dict(report.user_properties)
            if f"{PREFIX}first_compiles" in found:
                rows.append(([found[PREFIX + key] for key in _COLUMNS], report.nodeid))
    if not rows:
        return []
    rows.sort(key=lambda row: row[0][-1], reverse=True)
    total = [sum(column) for column in zip(*(counts for counts, _ in rows), strict=True)]
    more = f" ({len(rows) - _ROWS} more tests)" if len(rows) > _ROWS else ""
    titles = _COLUMNS.values()
    return [
        "  ".join([*titles, "test"]),
        *(
            "  ".join([*(f"{n:{len(t)}.4g}" for t, n in zip(titles, counts, strict=True)), name])
            for counts, name in [*rows[:_ROWS], (total, f"total{more}")]
        ),
    ]


def switched_off(outcomes: Iterable[Sequence[object]]) -> list[str]:
    """Name the laws that do not apply to a class of tests, and those without which nothing is ready."""
    classes: dict[str, list[dict[str, Any]]] = {}
    for report in (report for reports in outcomes for report in reports):
        if isinstance(report, pytest.TestReport) and (report.when == "call" or report.skipped):
            found = Outcome()
            found.add(report)
            record = found.as_dict(report.nodeid)
            if record["law"]:
                classes.setdefault(report.nodeid.rpartition("::")[0], []).append(record)
    lines = []
    for name, records in classes.items():
        results = Results(tuple(records))
        off = [row["law"] for row in law_rows(results) if row["state"] == "not applicable"]
        if not off:
            continue
        lines.append(f"{name}: {len(off)} of {len(results.laws)} laws")
        for law in off:
            lines.append(f"  {law}: {results.of_law(law, role='law')[0]['message']}")
        if needed := indispensable(off, exported=any(r.get("exported") for r in records)):
            lines.append(f"  nothing is ready to hot-swap without {', '.join(needed)}")
    return lines


def first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Say in one line why a test failed or was skipped."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        text = str(crash.message).removeprefix("Failed: ")
    elif isinstance(report.longrepr, tuple):
        text = str(report.longrepr[2]).removeprefix("Skipped: ")
    else:
        text = str(report.longrepr)  # longreprtext would begin with the xdist worker
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _scalar(value: object) -> object:
    """A JSON scalar; JSON has no word for NaN and infinity, so they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def drop_trace_capture() -> None:
    """Keep torch's structured trace out of the captured log: it is hundreds of lines a compile."""
    trace = logging.getLogger("torch.__trace")
    for handler in [h for h in trace.handlers if type(h).__module__ == "_pytest.logging"]:
        trace.removeHandler(handler)
