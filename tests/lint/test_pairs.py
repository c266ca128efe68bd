"""Recall and precision on generated pairs: what the change made wrong is found, what was right is silent."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from hotswap.lint.check import check_text
from tests.support.program_pairs import CHANGES, Pair, pairs

PAIRS = list(pairs(2))


def found(text: str) -> set[tuple[int | None, str]]:
    return {(f.line, f.code) for f in check_text(text, path="program.py")}


def test_pairs_are_python_and_differ_in_what_is_wrong() -> None:
    assert len(PAIRS) > 500
    for pair in PAIRS:
        ast.parse(pair.right)
        ast.parse(pair.wrong)
        assert pair.expected, pair.name
        assert pair.right != pair.wrong


def test_nearly_every_mistake_is_found_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    missed: Counter[str] = Counter()
    extra: Counter[str] = Counter()
    hits = more = 0
    for pair in PAIRS:
        told = found(pair.wrong)
        hits += pair.expected <= told
        more += len(told - pair.expected)
        missed[pair.name.rpartition(" ")[0]] += not pair.expected <= told
        extra[pair.name.rpartition(" ")[0]] += len(told - pair.expected)
    with capsys.disabled():
        print(f"\n{len(PAIRS)} mistakes made: recall={hits / len(PAIRS):.3f}, {more} findings more")
        print({k: n for k, n in missed.items() if n}, {k: n for k, n in extra.items() if n})
    assert hits / len(PAIRS) >= 0.95
    assert hits / (hits + more) >= 0.98


def test_every_correct_program_is_silent() -> None:
    told = {pair.name: found(pair.right) for pair in PAIRS}
    assert {name: codes for name, codes in told.items() if codes} == {}


@pytest.mark.parametrize("library", CHANGES)
def test_a_generated_mistake_is_what_it_says(library: str) -> None:
    """The marks of the generator follow from the change: its codes are those of the table."""
    of_library = [pair for pair in PAIRS if pair.name.startswith(f"{library}:")]
    assert {code for pair in of_library for _, code in pair.expected} >= {
        "HSW201",
        "HSW205",
        "HSW208",
    }
    assert all(len(pair.expected) == 1 for pair in of_library)


def show(pair: Pair) -> str:  # pragma: no cover  for a person at a failing test
    return "\n".join(f"{n:3} {line}" for n, line in enumerate(pair.wrong.splitlines(), 1))
