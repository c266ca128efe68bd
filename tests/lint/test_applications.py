"""Whole applications of many kinds: what is wrong with one is found, and the right one is silent.

They were written in nineteen rounds before the linter had seen them; docs/lint.md says what it found then.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.applications import APPLICATIONS, STRANGERS, applications, score

PAGES = sorted(APPLICATIONS.glob("*.txt"))
ALONE = sorted(STRANGERS.glob("*.txt"))


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


def test_programs_that_stand_alone_are_many_and_not_all_of_them_wrong() -> None:
    made = [program for page in ALONE for program in applications(page)]
    wrong = [program for program in made if program.wanted]
    assert len(made) > 150
    assert 0.4 < len(wrong) / len(made) < 0.7


@pytest.mark.parametrize(
    "page", [*PAGES, *ALONE], ids=lambda page: f"{page.parent.stem}-{page.stem}"
)
def test_every_mistake_is_found_and_nothing_else(page: Path, tmp_path: Path) -> None:
    result = score(page, tmp_path)
    assert result.extra == []
    assert result.missed == []
