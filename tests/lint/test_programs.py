"""Precision and recall on realistic programs: gradio, FastAPI and cog applications, scripts, tests."""

from __future__ import annotations

import pytest

from hotswap.lint.check import check_source
from tests.support.lint_samples import PROGRAMS, places, wanted

FILES = sorted(PROGRAMS.glob("*.py"))


def test_the_programs_are_many_and_half_of_them_right() -> None:
    right = [path for path in FILES if not wanted(path)]
    assert len(FILES) >= 60
    assert 0.4 <= len(right) / len(FILES) <= 0.6


def test_precision_and_recall(capsys: pytest.CaptureFixture[str]) -> None:
    hits = false = missed = 0
    for path in FILES:
        want, got = wanted(path), places(check_source(path))
        hits, false, missed = (
            hits + len(want & got),
            false + len(got - want),
            missed + len(want - got),
        )
    precision, recall = hits / (hits + false), hits / (hits + missed)
    with capsys.disabled():
        print(f"\n{len(FILES)} programs, {hits + missed} mistakes: {precision=:.3f} {recall=:.3f}")
    assert precision >= 0.95
    assert recall >= 0.9
