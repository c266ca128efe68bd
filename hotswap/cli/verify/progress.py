"""How far a run of the contract is: tests done of all, how fast, and the time that is left."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median_low
from typing import Any

from hotswap.cli.terminal import duration
from hotswap.cli.verify.handover import COLLECTED


def kind_of(nodeid: str) -> str:
    """A test without its parameters: those of one kind take about as long, whatever the adapter."""
    return nodeid.partition("[")[0].rpartition("::")[2]


class Progress:
    """Reads each record that a run writes once; weighs what is left by how long each kind of test took."""

    def __init__(self, report: Path) -> None:
        self._report, self._collected = report, report.with_name(COLLECTED)
        self._at = self._done = 0
        self._counts: dict[str, int] = defaultdict(int)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._last = ""

    def line(self, seconds: float) -> str:
        """Say how far the run is, in the seconds until now."""
        self._follow()
        if not self._done:
            return f"verifying: loading and compiling, {duration(seconds)}"
        counts: dict[str, int] = {}
        if self._collected.exists():
            counts = json.loads(self._collected.read_text(encoding="utf-8") or "{}")
        left = self._left(counts, seconds)
        words = "" if left is None else f", about {duration(left)} left"
        return (
            f"verifying: {self._done} of {sum(counts.values()) or '?'} tests, {duration(seconds)}, "
            f"{self._done / seconds:.1f} a second{words}, last: {self._last}"
        )

    def _follow(self) -> None:
        if not self._report.exists():
            return
        with self._report.open("rb") as written:
            written.seek(self._at)
            new = written.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            if b'"nodeid"' in line:
                self._count(json.loads(line))

    def _count(self, record: Mapping[str, Any]) -> None:
        kind = kind_of(record["nodeid"])
        self._counts[kind] += 1
        if self._done:  # the first one brought the deployment up
            self._seconds[kind].append(float(record.get("seconds") or 0))
        self._done += 1
        self._last = record.get("law") or "a test"

    def _left(self, counts: Mapping[str, int], seconds: float) -> float | None:
        """Seconds; None before half of the kinds have run once, as what is unknown may take the longest."""
        known = {kind: median_low(times) for kind, times in self._seconds.items()}
        waiting = {kind: max(count - self._counts[kind], 0) for kind, count in counts.items()}
        if not any(waiting.values()) or 2 * len(known) < len(counts):
            return None
        usual = mean(known.values())
        alone = sum(count * known.get(kind, usual) for kind, count in waiting.items())
        return alone / max(
            sum(map(sum, self._seconds.values())) / seconds, 1.0
        )  # processes at work
