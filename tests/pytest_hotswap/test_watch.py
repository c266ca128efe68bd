"""What watched tests leave behind: a section, JUnit counts and a table, with and without xdist."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.support.warm import run_pytest

SOURCE = """
import pytest
import torch

class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scaling = {"default": 2.0}

    def forward(self, x):
        return x * self.scaling["default"]

@pytest.fixture
def model():
    torch._dynamo.reset()
    scaled = Scaled()
    scaled.compile(backend="eager")
    scaled(torch.ones(2))
    return scaled

@pytest.mark.hotswap
def test_swaps(model):
    model.scaling["default"] = 3.0
    model(torch.ones(2))

@pytest.mark.hotswap
def test_hits(model):
    model(torch.ones(2))

def test_fails(hotswap_compile_watch, model):
    model(torch.ones(2))
    assert 1 == 2

def test_forbids(hotswap_forbid_recompiles, model):
    with hotswap_forbid_recompiles():
        model(torch.ones(2))

def test_is_not_watched(model):
    model(torch.ones(2))
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_counts_reach_the_section_the_junit_file_and_the_table(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    pytester.makepyfile(test_watched=SOURCE)
    result = run_pytest(pytester, "-p", "no:cacheprovider", "--junitxml=j.xml", *workers)
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "*- Captured hotswap call -*",
            "recompile: Scaled: the scaling alpha / rank = 2.0 was compiled in as a constant *",
            "hits of Scaled: 1",
            "*= hotswap: what was compiled =*",
            "compiles  recompiles  eager misses  seconds  test",
            "       0           1             0  *  test_watched.py::test_swaps",
            "       0           0             0        0  test_watched.py::test_hits",
            "       1           0             0  *  test_watched.py::test_fails",
            "       0           0             0        0  test_watched.py::test_forbids",
            "       1           1             0  *  total",
        ]
    )
    result.stdout.no_fnmatch_line("*test_watched.py::test_is_not_watched")
    result.stdout.no_fnmatch_line("*torch.__trace*")  # hundreds of captured lines a compile
    cases = ET.parse(pytester.path / "j.xml").iter("testcase")  # noqa: S314 (our own file)
    counts = {
        case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")}
        for case in cases
    }
    assert counts["test_swaps"]["hotswap.recompiles"] == "1"
    assert counts["test_swaps"]["hotswap.setup_compiles"] == "1"
    assert counts["test_hits"]["hotswap.hits"] == "1"
    assert counts["test_fails"]["hotswap.first_compiles"] == "1"
    assert counts["test_forbids"]["hotswap.hits"] == "1"
    assert counts["test_is_not_watched"] == {}


def test_without_a_watched_test_there_is_no_table(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing():\n    pass\n")
    result = run_pytest(pytester, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*hotswap: what was compiled*")
