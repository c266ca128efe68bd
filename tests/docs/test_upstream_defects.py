"""benchmarks/upstream_defects.py: the comparison with its page fires and stays silent."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("diffusers")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "upstream_defects.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not here")
    spec = importlib.util.spec_from_file_location("upstream_defects", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    path, module = list(sys.path), importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture
def rows(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The findings of a run that shows every known defect, and the page of them."""
    shown = dict.fromkeys(pair for _, _, pairs in script.KNOWN for pair in pairs)
    rows = [script.Row(name, law, 2, "what is wrong") for name, law in shown]
    monkeypatch.setattr(script, "findings", lambda _: rows)
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(script.logging, "disable", lambda _: None)
    assert script.main(["--write"]) == 0
    return rows


def test_a_page_that_is_true_is_no_difference(script: ModuleType, rows: list[Any]) -> None:
    assert script.main([]) == 0
    rows[0] = replace(rows[0], text="other words")
    assert script.main([]) == 0


def test_a_new_a_rarer_and_a_vanished_defect_are_differences(
    script: ModuleType, rows: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows.append(script.Row("hotswap", "swap-forgets", 1, "rows of another adapter"))
    assert script.main([]) == 1
    assert (
        "hotswap: swap-forgets was broken 0 times, and is 1 times; look" in capsys.readouterr().out
    )
    rows[-1:] = []
    rows[0] = replace(rows[0], count=1)
    assert script.main([]) == 1
    assert "PEFT: swap-equals-load was broken 2 times, and is 1 times" in capsys.readouterr().out
    del rows[0]
    assert script.main([]) == 1
    told = capsys.readouterr().out
    assert "PEFT: swap-equals-load was broken 2 times, and is 0 times" in told
    assert "known, and not seen: a swap ignores `rank_pattern`" in told
    assert script.main(["--write"]) == 1  # a page without a known defect is not written in silence


def test_the_page_in_the_documentation_shows_every_known_defect_and_none_of_hotswap(
    script: ModuleType,
) -> None:
    page = SCRIPT.parent.parent / "docs" / "upstream-defects.md"
    counts = script._counts(page.read_text(encoding="utf-8"))
    assert {pair for _, _, pairs in script.KNOWN for pair in pairs} <= counts.keys()
    assert not [name for name, _ in counts if name.startswith("hotswap")]
