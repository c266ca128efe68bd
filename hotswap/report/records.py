"""Results: what the records of a run say, law by law and adapter by adapter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
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
    """What a file of records holds; ``exitstatus`` is None when the run did not end by itself."""

    records: tuple[Record, ...] = ()
    exitstatus: int | None = None

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file of records; a last line that was cut off in writing is left out."""
        written = path.read_text(encoding="utf-8") if path.exists() else ""
        found = []
        for line in written.splitlines(keepends=True):
            with suppress(ValueError):
                found += [json.loads(line)] if line.endswith("\n") else []
        return cls.of(line for line in found if isinstance(line, dict))

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
        """The ids of all laws: the known ones in order, then any other that the records name."""
        return tuple(dict.fromkeys([*LAWS, *(r["law"] for r in self.records if r.get("law"))]))

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
        return _total(self.of_law("zero-recompiles", role="law"), "swaps") or 0

    @property
    def recompiles(self) -> int:
        """How many recompiles these swaps caused."""
        return _total(self.of_law("zero-recompiles", role="law"), "recompiles") or 0


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


def adapter_names(results: Results) -> list[str]:
    """Name every adapter that the records mention, in their order."""
    names = (r.get("adapter") for r in results.of_law("swap-equals-load", role="law"))
    return list(dict.fromkeys(str(name) for name in names if name))


def adapter_rows(results: Results, adapters: Sequence[str]) -> list[Record]:
    """Say what was found about each adapter, in the order given; None where no test said anything."""
    records: dict[str, list[Record]] = {name: [] for name in adapters}
    for record in results.records:
        if record.get("adapter") in records:
            records[record["adapter"]].append(record)
    return [_adapter_row(name, Results(tuple(own))) for name, own in records.items()]


def judged(row: Record) -> bool:
    """Tell whether an adapter was compared with a fresh load of it, and is not worse."""
    return row["equals_load"] in ("passed", "not applicable")


def law_rows(results: Results) -> list[Record]:
    """Say of each law whether it holds and whether the control that shows its test can fail failed."""
    return [_law_row(results, law) for law in results.laws]


def short(message: str, law: str) -> str:
    """Cut what pytest says of a failure down to what a table has room for."""
    told = message.removeprefix("AssertionError: ").removeprefix(f"{law}: ")
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}…"


def _adapter_row(name: str, own: Results) -> Record:
    laws = ("swap-equals-load", "swap-has-effect", "zero-recompiles", "swap-in-place")
    equals, effect, recompiled, in_place = (own.of_law(law, role="law") for law in laws)
    return {
        "name": name,
        "equals_load": state_of(equals),
        "max_error": max(_numbers(equals, "max_error"), default=None),
        "tolerance": max(_numbers(equals, "tolerance"), default=None),
        "has_effect": state_of(effect),
        "effect": max(_numbers(effect, "effect"), default=None),
        "recompiles": _total(recompiled, "recompiles"),
        "hits": _total(recompiled, "hits"),
        "in_place": state_of(in_place),
        "moved": _total(in_place, "moved"),
    }


def _law_row(results: Results, law: str) -> Record:
    bad = (r for r in results.of_law(law) if r.get("outcome") != "passed" and r.get("message"))
    return {
        "law": law,
        "state": state_of(results.of_law(law, role="law")),
        "control": state_of(results.of_law(law, role="control")),
        "statement": LAWS.get(law, ""),
        "message": next((short(str(r["message"]), law) for r in bad), ""),
    }


def _numbers(records: Sequence[Record], key: str) -> list[float]:
    return [float(r[key]) for r in records if r.get(key) is not None]


def _total(records: Sequence[Record], key: str) -> int | None:
    numbers = _numbers(records, key)
    return int(sum(numbers)) if numbers else None
