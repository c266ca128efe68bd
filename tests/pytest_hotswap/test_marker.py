"""The marker fires, stays silent, refuses a vacuous pass, and has its arguments checked."""

from __future__ import annotations

import pytest

from tests.support.warm import run_pytest

COMPILED = """
import pytest
import torch

def double(x):
    return x * 2

@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()

class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.name = 2.0, "zero"

    def forward(self, x):
        return x * self.scale if self.name else x

@pytest.fixture
def model():
    scaled = Scaled()
    scaled.compile(backend="eager", dynamic=False)
    scaled(torch.ones(2))
    return scaled

@pytest.fixture
def compiled():
    function = torch.compile(double, backend="eager", dynamic=False)
    function(torch.ones(2))
    return function
"""


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(test_marked=source)
    return run_pytest(pytester, "-p", "no:cacheprovider", *arguments)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_marked_test_fails_exactly_when_it_recompiles_or_runs_nothing_compiled(
    pytester: pytest.Pytester,
) -> None:
    source = """
@pytest.mark.hotswap
def test_recompiles(model):
    model.scale = 3.0
    model(torch.ones(2))

@pytest.mark.hotswap
def test_another_shape_alone_shows_nothing(compiled):
    compiled(torch.ones(3))

@pytest.mark.hotswap
def test_another_shape_beside_hits_is_not_the_swap(compiled):
    compiled(torch.ones(3))
    compiled(torch.ones(2))

@pytest.mark.hotswap(any_cause=True)
def test_another_shape_is_a_cause(compiled):
    compiled(torch.ones(3))
    compiled(torch.ones(2))

@pytest.mark.hotswap(any_cause=True, max_recompiles=1)
def test_one_of_any_cause_is_allowed(compiled):
    compiled(torch.ones(3))
    compiled(torch.ones(2))

@pytest.mark.hotswap(any_cause=True)
def test_hits_of_any_cause(compiled):
    compiled(torch.ones(2))

@pytest.mark.hotswap
def test_hits(compiled):
    compiled(torch.ones(2))

@pytest.mark.hotswap
def test_vacuous(compiled):
    double(torch.ones(2))

@pytest.mark.hotswap(max_recompiles=1)
def test_one_recompile_is_allowed(model):
    model.scale = 3.0
    model(torch.ones(2))
    model(torch.ones(2))

@pytest.mark.hotswap(max_recompiles=1)
def test_two_are_not(model):
    for name in ("one", "two"):
        model.name = name
        model(torch.ones(2))

@pytest.mark.hotswap
def test_a_first_compile_in_the_body_is_no_recompile():
    function = torch.compile(double, backend="eager", dynamic=False)
    function(torch.ones(2))
    function(torch.ones(2))

def test_unmarked_tests_may_recompile(compiled):
    compiled(torch.ones(3))

@pytest.mark.hotswap
class TestMarked:
    def test_the_class_marker_counts(self, model):
        model.scale = 3.0
        model(torch.ones(2))
        model(torch.ones(2))

    @pytest.mark.hotswap(max_recompiles=1)
    def test_the_closest_marker_wins(self, model):
        model.scale = 3.0
        model(torch.ones(2))
        model(torch.ones(2))
"""
    result = run(pytester, COMPILED + source, "-rA")
    result.stdout.fnmatch_lines_random(
        [
            "FAILED *::test_recompiles - *",
            "FAILED *::test_another_shape_alone_shows_nothing - *",
            "PASSED *::test_another_shape_beside_hits_is_not_the_swap",
            "FAILED *::test_another_shape_is_a_cause - *",
            "PASSED *::test_one_of_any_cause_is_allowed",
            "PASSED *::test_hits_of_any_cause",
            "PASSED *::test_hits",
            "FAILED *::test_vacuous - *",
            "PASSED *::test_one_recompile_is_allowed",
            "FAILED *::test_two_are_not - *",
            "PASSED *::test_a_first_compile_in_the_body_is_no_recompile",
            "PASSED *::test_unmarked_tests_may_recompile",
            "FAILED *::test_the_class_marker_counts - *",
            "PASSED *::test_the_closest_marker_wins",
            "@pytest.mark.hotswap(max_recompiles=0) failed: *",
            "@pytest.mark.hotswap(max_recompiles=0) vacuous: *",
            "@pytest.mark.hotswap(max_recompiles=0, any_cause=True) failed: *",
            "*- Captured hotswap call -*",
            "first compiles: 0, recompiles: 1, *",
            "recompile: Scaled: the model's attribute scale was 2.0 when it was compiled*",
        ]
    )
    result.assert_outcomes(passed=8, failed=6)


def test_the_body_keeps_its_own_outcome(pytester: pytest.Pytester) -> None:
    source = """
@pytest.mark.hotswap
def test_fails(compiled):
    compiled(torch.ones(3))
    assert 1 == 2

@pytest.mark.hotswap
def test_skips(compiled):
    compiled(torch.ones(3))
    pytest.skip("not here")

@pytest.mark.xfail(strict=True)
@pytest.mark.hotswap
def test_is_known_to_recompile(compiled):
    compiled(torch.ones(3))
"""
    result = run(pytester, COMPILED + source)
    result.assert_outcomes(failed=1, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["E *assert 1 == 2", "*- Captured hotswap call -*", "recompile: *"])
    result.stdout.no_fnmatch_line("@pytest.mark.hotswap(*")


def test_the_counts_are_user_properties_once_each(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        def pytest_runtest_logreport(report):
            if report.when == "call":
                print("PROPERTIES", sorted(map(tuple, report.user_properties)))
        """
    )
    source = """
@pytest.mark.hotswap(max_recompiles=1)
def test_counts(compiled, record_property):
    record_property("hotswap.recompiles", 99)
    compiled(torch.ones(3))
    compiled(torch.ones(2))
"""
    result = run(pytester, COMPILED + source, "-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*PROPERTIES *'hotswap.first_compiles', 0*'hotswap.hits', 1*'hotswap.recompiles', 1)*"
            "'hotswap.setup_compiles', 1)[]]"
        ]
    )


def test_the_marker_works_where_every_warning_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n")
    source = """
@pytest.mark.hotswap
def test_hits(compiled):
    compiled(torch.ones(2))
"""
    pytester.makepyfile(test_marked=COMPILED + source)
    fresh = pytester.runpytest_subprocess("-p", "no:cacheprovider")  # warns of no early import
    fresh.assert_outcomes(passed=1)


WRONG_ARGUMENTS = {
    "max_recompile=1": " has no argument 'max_recompile'; did you mean 'max_recompiles'?",
    "colour=1": " has no argument 'colour'; it takes max_recompiles and any_cause",
    "max_recompiles='1'": "(max_recompiles='1') must be a whole number, 0 or more",
    "max_recompiles=True": "(max_recompiles=True) must be a whole number, 0 or more",
    "any_cause=1": "(any_cause=1) must be True or False",
    "max_recompiles=-1": "(max_recompiles=-1) must be a whole number, 0 or more",
    "1": " takes keyword arguments only, got (1,); write @pytest.mark.hotswap(max_recompiles=N)",
}


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_wrong_marker_argument_is_a_collection_error_that_names_the_test(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    tests = [
        f"@pytest.mark.hotswap({arguments})\ndef test_typo_{number}():\n    pass\n"
        for number, arguments in enumerate(WRONG_ARGUMENTS)
    ]
    result = run(pytester, "import pytest\n\n" + "\n".join(tests), *workers)
    result.assert_outcomes(errors=1)
    for number, message in enumerate(WRONG_ARGUMENTS.values()):
        line = f"test_marked.py::test_typo_{number}: @pytest.mark.hotswap{message}"
        assert line in result.outlines
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()


def test_a_right_marker_is_no_collection_error(pytester: pytest.Pytester) -> None:
    source = "import pytest\n\n@pytest.mark.hotswap(max_recompiles=2)\ndef test_one():\n    pass\n"
    result = run(pytester, source, "--collect-only", "-q")
    result.stdout.fnmatch_lines(["test_marked.py::test_one"])
    assert result.ret == pytest.ExitCode.OK


def test_a_wrong_marker_added_after_collection_fails_its_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        def pytest_collection_modifyitems(items):
            items[0].add_marker(pytest.mark.hotswap(max_recompile=1))
        """
    )
    result = run(pytester, "def test_late():\n    pass\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["test_marked.py::test_late: @pytest.mark.hotswap has no argument*"]
    )


def test_a_wrong_marker_in_a_class_of_unittest_is_found(pytester: pytest.Pytester) -> None:
    source = """
import unittest
import pytest

class TestOld(unittest.TestCase):
    @pytest.mark.hotswap(max_recompile=1)
    def test_typo(self):
        pass
"""
    result = run(pytester, source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["test_marked.py::TestOld::test_typo: *"])
