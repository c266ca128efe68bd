"""A module is short enough to be read at once, and every folder says what it is for."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

import hotswap
import pytest_hotswap
import tests
from tests.support.source import modules

LIMIT = 450
LONGER: dict[str, str] = {
    "tests.support.rank_models": "what one rank does, called by name in its process: many small functions",
}
"""Module that may be longer → the reason."""
MODULES = modules(hotswap) | modules(pytest_hotswap) | modules(tests)
OWN = {name: file for name, file in MODULES.items() if not name.startswith("tests.samples.")}
"""Without the samples of the linter, which are written as others write."""


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def too_long(lengths: Mapping[str, int], longer: Mapping[str, str]) -> list[str]:
    """What is wrong: a module above the limit without a reason, or a reason without such a module."""
    above = {name: length for name, length in lengths.items() if length > LIMIT}
    return [
        *(f"{name} has {length} lines" for name, length in above.items() if not longer.get(name)),
        *(f"{name} needs no exception" for name in longer if name not in above),
    ]


def job(source: str) -> str | None:
    """What a folder is for, if its docstring says so in one sentence."""
    said = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
    return said if said.endswith(".") and " " in said and ". " not in said else None


def test_no_module_is_longer_than_the_limit_without_a_reason() -> None:
    found = too_long({name: lines(file) for name, file in OWN.items()}, LONGER)
    assert not found, "\n".join(found)


def test_a_long_module_and_an_idle_exception_are_seen(tmp_path: Path) -> None:
    module = tmp_path / "long.py"
    module.write_text("x = 1\n" * (LIMIT + 1))
    assert too_long({"a": lines(module), "b": LIMIT}, {}) == [f"a has {LIMIT + 1} lines"]
    assert too_long({"a": lines(module)}, {"a": "a table"}) == []
    assert too_long({"b": LIMIT}, {"b": "a table"}) == ["b needs no exception"]


@pytest.mark.parametrize(
    "folder", sorted({file.parent for file in OWN.values()}), ids=lambda folder: folder.name
)
def test_a_folder_says_its_job_in_one_sentence(folder: Path) -> None:
    assert job((folder / "__init__.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source", ["", '""""""', '"""No full stop"""', '"""Two. Sentences."""', '"""Word."""']
)
def test_a_folder_that_says_nothing_is_seen(source: str) -> None:
    assert job(source) is None
    assert job('"""What it does: this and that.\n\nMore of it. And more."""') is not None
