"""What the records of a run say: the verdict of the last line, and the row of an adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hotswap.report.laws import LAWS
from hotswap.report.records import Results, adapter_rows, law_rows
from hotswap.report.text import adapter_table, warning_lines
from hotswap.report.verdict import INDISPENSABLE
from hotswap.report.verdict import last_line as judge


def record(law: str | None, outcome: str = "passed", **more: Any) -> dict[str, Any]:
    name = more.pop("name", f"suite.py::test_{law}")
    return {"nodeid": name, "law": law, "role": "law", "outcome": outcome, "message": None, **more}


def complete() -> list[dict[str, Any]]:
    """A report in which everything passed, of one adapter."""
    lines = [record(law, role=role) for law in LAWS for role in ("law", "control")]
    lines += [
        record("swap-equals-load", adapter="a", max_error=1e-7, tolerance=1e-5),
        record("swap-has-effect", adapter="a", effect=0.5),
        record("zero-recompiles", adapter="a", recompiles=0, hits=3, swaps=2),
        record("swap-in-place", adapter="a", moved=0),
    ]
    return [*lines, {"end": True, "exitstatus": 0}]


def last_line(lines: list[dict[str, Any]], adapters: Sequence[str] = ("a",)) -> str:
    return judge(Results.of(lines), adapters, 8)[1]


class TestTheVerdict:
    def test_a_complete_report_is_ready(self) -> None:
        expected = "ready to hot-swap: 1 adapter, target rank 8, 0 recompiles in 2 swaps"
        assert last_line(complete()) == expected

    @pytest.mark.parametrize("law", LAWS)
    def test_a_law_without_a_record_is_incomplete(self, law: str) -> None:
        lines = [line for line in complete() if line.get("law") != law]
        assert last_line(lines).startswith("incomplete: ")
        assert law in last_line(lines)

    @pytest.mark.parametrize("law", LAWS)
    def test_a_failed_law_is_named(self, law: str) -> None:
        assert last_line([*complete(), record(law, "failed")]) == f"not ready: {law} failed"

    def test_a_failed_law_names_the_adapter(self) -> None:
        lines = [*complete(), record("swap-forgets", "failed", adapter="a")]
        assert last_line(lines) == "not ready: swap-forgets failed for a"

    def test_a_failed_control_is_not_ready(self) -> None:
        lines = [*complete(), record("swap-forgets", "failed", role="control")]
        assert last_line(lines) == "not ready: swap-forgets (control) failed"

    def test_an_adapter_without_a_record_is_incomplete(self) -> None:
        assert last_line(complete(), ["a", "b"]) == "incomplete: adapter b did not run"

    def test_a_run_without_an_end_is_incomplete(self) -> None:
        assert last_line(complete()[:-1]) == "incomplete: the run did not come to its end"

    def test_no_watched_swap_is_incomplete(self) -> None:
        lines = [{**line, "swaps": 0} for line in complete()]
        assert last_line(lines) == "incomplete: no swap was watched for recompiles"

    def test_a_failure_outside_the_laws_is_not_ready(self) -> None:
        lines = [*complete(), record(None, "failed", name="other.py::test_it")]
        assert last_line(lines) == "not ready: other.py::test_it failed"

    def test_a_law_that_does_not_apply_is_neither_passed_nor_missing(self) -> None:
        lines = [line for line in complete() if line.get("law") != "knobs-follow"]
        skip = record("knobs-follow", "skipped", message="not applicable: it cannot be saved")
        results = Results.of([skip, *lines])
        states = {row["law"]: row["state"] for row in law_rows(results)}
        assert states["knobs-follow"] == "not applicable"
        outcome, line = judge(results, ["a"], 8)
        assert outcome == "ready"
        assert line.endswith("0 recompiles in 2 swaps, 1 law switched off")

    @pytest.mark.parametrize("law", INDISPENSABLE)
    def test_without_an_indispensable_law_nothing_is_ready(self, law: str) -> None:
        lines = [line for line in complete() if line.get("law") != law or line["role"] != "law"]
        lines = [record(law, "skipped", message="not applicable: we do not need it"), *lines]
        outcome, line = judge(Results.of(lines), [] if law == "swap-equals-load" else ["a"], 8)
        assert outcome == "incomplete"
        assert f"{law} is switched off, and nothing is ready without" in line

    def test_an_exported_model_that_cannot_recompile_is_ready(self) -> None:
        lines = [line for line in complete() if line.get("law") != "zero-recompiles"]
        skip = record("zero-recompiles", "skipped", message="not applicable: it is exported")
        results = Results.of([skip, *lines])
        assert judge(results, ["a"], 8)[0] == "incomplete"
        line = "ready to hot-swap: 1 adapter, target rank 8, nothing that could recompile"
        assert judge(results, ["a"], 8, exported=True)[1] == f"{line}, 1 law switched off"

    def test_a_law_that_was_skipped_did_not_run(self) -> None:
        lines = [line for line in complete() if line.get("law") != "knobs-follow"]
        skip = record("knobs-follow", "skipped", message="no GPU")
        assert last_line([skip, *lines]).startswith("incomplete: knobs-follow")


def test_a_line_that_was_cut_off_in_writing_is_left_out(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    whole = json.dumps(record("rank-bound"))
    report.write_text(f"{whole}\n{whole[:20]}", encoding="utf-8")
    results = Results.read(report)
    assert len(results.records) == 1
    assert results.exitstatus is None


def test_storage_that_moved_is_said_in_the_adapters_row() -> None:
    lines = [line for line in complete() if line.get("law") != "swap-in-place"]
    lines.append(record("swap-in-place", "failed", adapter="a", moved=3))
    assert "moved (3)" in adapter_table(adapter_rows(Results.of(lines), ["a"]))


def test_of_many_adapters_the_line_names_few() -> None:
    many = [f"a{number}" for number in range(9)]
    told = "adapter a0, adapter a1, adapter a2, adapter a3, adapter a4 and 4 more did not run"
    assert last_line(complete(), many) == f"incomplete: {told}"
    failed = [record("swap-forgets", "failed", adapter=name) for name in many]
    told = "swap-forgets failed for a0, a1, a2, a3, a4 and 4 more"
    assert last_line([*complete(), *failed], many) == f"not ready: {told}"


def test_of_many_adapters_few_are_in_the_table_and_first_what_is_wrong() -> None:
    many = [f"a{number}" for number in range(24)]
    rows = adapter_rows(Results.of(complete()), many)
    states = {"a23": "failed", "a22": "not run", "a21": "not run"}
    rows = [row | {"verdict": states.get(row["name"], "passed")} for row in rows]
    lines = adapter_table(rows).splitlines()
    shown = [line.split()[0] for line in lines[3:-1]]
    assert shown == ["a23", "a21", "a22", *many[:17]]
    assert lines[-1] == "  and 4 that passed"
    assert warning_lines([*many[:21]])[-2:] == ["warning: a19", "and 1 more warning"]
