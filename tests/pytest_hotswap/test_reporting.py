"""The report file: a line for each test, the same with and without xdist, and a last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_hotswap.reporting import switched_off
from tests.support.warm import run_pytest

SOURCE = """
import pytest

def test_passes(record_property):
    record_property("hotswap.law", "swap-forgets")
    record_property("hotswap.role", "law")
    record_property("hotswap.adapter", "b")
    record_property("hotswap.max_error", float("nan"))
    record_property("hotswap.outcome", "mine")
    record_property("other", "not ours")

def test_fails():
    assert 1 == 2, "first\\nsecond"

def test_skips():
    pytest.skip("no reason")

@pytest.mark.skip(reason="marked")
def test_is_skipped_in_setup():
    pass

@pytest.mark.xfail(reason="known")
def test_is_known_to_fail():
    assert False

@pytest.fixture
def broken_setup():
    raise RuntimeError("setup broke")

@pytest.fixture
def broken_teardown():
    yield
    raise RuntimeError("teardown broke")

def test_errors_in_setup(broken_setup):
    pass

def test_errors_in_teardown(broken_teardown):
    pass
"""
SUBTESTS = """
def test_has_subtests(subtests):
    for i in range(2):
        with subtests.test(i=i):
            assert i == 0
"""
OUTCOMES = {
    "test_passes": ("passed", None),
    "test_fails": ("failed", "AssertionError: first"),
    "test_skips": ("skipped", "no reason"),
    "test_is_skipped_in_setup": ("skipped", "marked"),
    "test_is_known_to_fail": ("skipped", "known"),
    "test_errors_in_setup": ("failed", "RuntimeError: setup broke"),
    "test_errors_in_teardown": ("failed", "RuntimeError: teardown broke"),
}


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> list[dict[str, Any]]:
    pytester.makepyfile(test_reported=source)
    run_pytest(pytester, "-p", "no:cacheprovider", *arguments)
    return read(pytester.path / "report.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(lines: list[dict[str, Any]]) -> list[str]:
    return sorted(
        json.dumps({key: value for key, value in line.items() if key != "seconds"}, sort_keys=True)
        for line in lines
    )


def test_each_test_is_one_line_and_the_session_is_the_last(pytester: pytest.Pytester) -> None:
    *tests, end = run(pytester, SOURCE, "--hotswap-report=report.jsonl")
    assert end == {"end": True, "exitstatus": 1, "interrupted": False}
    assert {
        line["nodeid"].partition("::")[2]: (line["outcome"], line["message"]) for line in tests
    } == OUTCOMES
    assert len(tests) == len(OUTCOMES)
    assert all(line["seconds"] >= 0 for line in tests)


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="the subtests fixture is in pytest 9")
def test_subtests_are_part_of_their_test(pytester: pytest.Pytester) -> None:
    test, _ = run(pytester, SUBTESTS, "--hotswap-report=report.jsonl")
    assert (test["outcome"], test["message"]) == ("failed", "contains 1 failed subtest")


def test_properties_are_keys_and_never_hide_the_outcome(pytester: pytest.Pytester) -> None:
    first, second, *_ = run(pytester, SOURCE, "--hotswap-report=report.jsonl")
    del first["seconds"], second["seconds"]
    assert first == {
        "nodeid": "test_reported.py::test_passes",
        "law": "swap-forgets",
        "role": "law",
        "adapter": "b",
        "max_error": "nan",
        "outcome": "passed",
        "message": None,
    }
    assert second == {
        "nodeid": "test_reported.py::test_fails",
        "law": None,
        "role": None,
        "adapter": None,
        "outcome": "failed",
        "message": "AssertionError: first",
    }


def test_xdist_gives_the_same_lines_and_one_end(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    alone = run(pytester, SOURCE, "--hotswap-report=report.jsonl")
    spread = run(pytester, SOURCE, "--hotswap-report=report.jsonl", "-n", "2")
    assert without_times(alone) == without_times(spread)
    assert [line.get("end") for line in spread].count(True) == 1
    assert spread[-1]["end"] is True


def test_a_worker_that_dies_is_a_failed_test(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    source = "import os\n\ndef test_dies():\n    os._exit(1)\n"
    *tests, end = run(pytester, source, "--hotswap-report=report.jsonl", "-n", "1")
    assert [(line["nodeid"], line["outcome"]) for line in tests] == [
        ("test_reported.py::test_dies", "failed")
    ]
    assert "crashed" in tests[0]["message"]
    assert end["exitstatus"] == 1


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_file_that_cannot_be_collected_is_one_failure(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    source = "import pytest\n\n@pytest.mark.hotswap(max=1)\ndef test_typo():\n    pass\n"
    broken, end = run(pytester, source, "--hotswap-report=report.jsonl", *workers)
    assert (broken["nodeid"], broken["outcome"]) == ("test_reported.py", "failed")
    assert "test_reported.py::test_typo: @pytest.mark.hotswap" in broken["message"]
    assert end["end"] is True
    assert end["exitstatus"] == (1 if workers else 2)  # xdist goes on with the other files


def test_the_script_that_reproduces_a_failure_is_in_the_report_and_in_the_output(
    pytester: pytest.Pytester,
) -> None:
    source = """
def test_finds():
    error = AssertionError("swap-forgets: stale rows")
    error.hotswap_script = "steps.run()\\nsteps.swap(AdapterDescription(1, 2))"
    raise error

def test_finds_nothing():
    assert 1 == 2
"""
    pytester.makepyfile(test_reported=source)
    result = run_pytest(pytester, "--hotswap-report=report.jsonl", "--junitxml=out.xml")
    result.stdout.fnmatch_lines(["*- Captured hotswap script call -*", "steps.run()"])
    found, nothing, _ = read(pytester.path / "report.jsonl")
    assert found["script"] == "steps.run()\nsteps.swap(AdapterDescription(1, 2))"
    assert "script" not in nothing
    assert 'name="hotswap.script"' in (pytester.path / "out.xml").read_text()


def test_an_interrupted_session_says_so(pytester: pytest.Pytester) -> None:
    source = "def test_one():\n    pass\n\ndef test_two():\n    raise KeyboardInterrupt\n"
    one, end = run(pytester, source, "--hotswap-report=report.jsonl")
    assert one["outcome"] == "passed"
    assert end == {"end": True, "exitstatus": 2, "interrupted": True}


def test_a_killed_session_has_no_end_but_the_finished_tests(pytester: pytest.Pytester) -> None:
    source = "import os\n\ndef test_one():\n    pass\n\ndef test_two():\n    os._exit(3)\n"
    (one,) = run(pytester, source, "--hotswap-report=report.jsonl")
    assert one["nodeid"] == "test_reported.py::test_one"


def test_the_last_session_is_the_only_one_in_the_file(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nhotswap_report = report.jsonl\n")
    source = "def test_one():\n    pass\n"
    run(pytester, source)
    assert len(run(pytester, source)) == 2


def test_without_the_option_there_is_no_file(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one():\n    pass\n")
    run_pytest(pytester, "-p", "no:cacheprovider").assert_outcomes(passed=1)
    assert not list(pytester.path.glob("*.jsonl"))


def test_a_file_that_cannot_be_written_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.mkdir("taken")
    result = run_pytest(pytester, "--hotswap-report=taken")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --hotswap-report: cannot write *taken: Is a directory"])


def test_laws_that_are_switched_off_are_named_with_what_is_not_ready_without() -> None:
    def report(law: str, why: str = "", **more: Any) -> pytest.TestReport:
        properties = [("hotswap.law", law), ("hotswap.role", "law"), *more.items()]
        told: Any = ("file", 1, f"Skipped: not applicable: {why}") if why else None
        node, outcome = f"test_it.py::TestMine::test_{law}", "skipped" if why else "passed"
        return pytest.TestReport(
            node, ("file", 1, node), {}, outcome, told, "call", user_properties=properties
        )

    plain = report("swap-forgets")
    assert switched_off([[plain]]) == []
    off = [plain, report("swap-atomic", "nothing fails"), report("zero-recompiles", "no compile")]
    assert switched_off([off]) == [
        "test_it.py::TestMine: 2 of 14 laws",
        "  swap-atomic: not applicable: nothing fails",
        "  zero-recompiles: not applicable: no compile",
        "  nothing is ready to hot-swap without swap-atomic, zero-recompiles",
    ]
    exported = report("swap-has-effect", **{"hotswap.exported": True})
    assert switched_off([[exported, *off]])[-1] == (
        "  nothing is ready to hot-swap without swap-atomic"
    )
