"""Small programs, by kind of mistake or of correct code: each block of a page is a program of its own."""

from __future__ import annotations

import re

import pytest

from hotswap.lint.check import check_text
from tests.support.lint_samples import KINDS, Program, programs, wanted_in

PROGRAMS = programs(KINDS)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_a_program_is_reported_where_it_says(program: Program) -> None:
    found = {(f.line, f.code) for f in check_text(program.text, path=f"{program.name}.py")}
    assert found == wanted_in(program.text)


def test_every_page_has_programs_that_fire_and_programs_that_stay_silent() -> None:
    for page in {program.page for program in PROGRAMS}:
        fires = [bool(wanted_in(p.text)) for p in PROGRAMS if p.page == page]
        assert any(fires), page
        assert not all(fires), page


def test_pages_are_read_as_markdown_too() -> None:
    (page,) = [path for path in KINDS.glob("*.md") if path.stem == "names"]
    found = {(f.line, f.code) for f in check_text(page.read_text(), path=page)}
    lines = page.read_text().splitlines()
    assert found == {
        (n, code)
        for n, line in enumerate(lines, 1)
        for code in re.findall(r"# want (HSW\d+)", line)
    }
