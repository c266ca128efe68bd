"""Whole applications of many kinds: what is wrong with one is found, and the right one is silent.

They were written in twelve rounds before the linter had seen them; docs/lint.md says what it found then.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.applications import APPLICATIONS, applications, score

PAGES = sorted(APPLICATIONS.glob("*.txt"))
MISSED = {"eighth": 1, "eleventh": 1}
"""Mistakes that are not found: a name that another branch may have loaded, a counter that passes a limit."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_an_application_has_one_mistake_or_none(page: Path) -> None:
    made = list(applications(page))
    assert len(made) >= 24
    for right, wrong in zip(made[::2], made[1::2], strict=True):
        assert not right.wanted
        assert len(wrong.wanted) <= 1
        assert right.files != wrong.files, right.name
        for name, lines in (*right.files.items(), *wrong.files.items()):
            if name.endswith(".py") and not any(line.lstrip().startswith("%") for line in lines):
                ast.parse("\n".join(lines))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_mistake_is_found_and_nothing_else(page: Path, tmp_path: Path) -> None:
    result = score(page, tmp_path)
    assert result.extra == []
    assert len(result.missed) == MISSED.get(page.stem, 0), result.missed
