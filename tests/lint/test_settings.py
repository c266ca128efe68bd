"""``[tool.hotswap.lint]`` says which rules apply, and to which files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotswap.errors import HotswapError
from hotswap.lint.check import check_source
from hotswap.lint.settings import Settings, read_settings

SWAP = 'pipe.load_lora_weights("b", hotswap=True)\n'


EVERY = ["app.py", "tests/a.py", "vendor/b.py"]


def project(folder: Path, table: str) -> Settings:
    (folder / "pyproject.toml").write_text(f"[tool.hotswap.lint]\n{table}\n")
    for name in ("app.py", "tests/a.py", "vendor/b.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(SWAP)
    return read_settings(folder / "tests")


def names(folder: Path, settings: Settings) -> list[str]:
    found = check_source(folder, settings=settings)
    return [Path(f.where).relative_to(folder).as_posix() for f in found]


@pytest.mark.parametrize(
    ("table", "left"),
    [
        ("", EVERY),
        ('select = ["HSW201"]', []),
        (
            'select = ["HSW201"]\nextend-select = ["hotswap-without-name"]',
            ["app.py", "tests/a.py", "vendor/b.py"],
        ),
        ('ignore = ["HSW207"]', []),
        ('exclude = ["vendor/"]', ["app.py", "tests/a.py"]),
        ('exclude = ["/tests", "app.*"]', ["vendor/b.py"]),
        ('[tool.hotswap.lint.per-file-ignores]\n"tests/**" = ["HSW2"]', ["app.py", "vendor/b.py"]),
        (
            'per-file-ignores = {"*.py" = ["HSW201"], "app.py" = ["hotswap-without-name"]}',
            ["tests/a.py", "vendor/b.py"],
        ),
    ],
)
def test_the_table_is_obeyed(tmp_path: Path, table: str, left: list[str]) -> None:
    assert names(tmp_path, project(tmp_path, table)) == left


def test_a_pattern_is_relative_to_the_table_however_a_file_is_named(tmp_path: Path) -> None:
    settings = project(tmp_path, 'per-file-ignores = {"vendor/*.py" = ["HSW2"]}')
    (tmp_path / "src").mkdir()
    assert check_source(tmp_path / "src" / ".." / "vendor" / "b.py", settings=settings) == []


def test_a_file_that_is_named_is_read_although_it_is_excluded(tmp_path: Path) -> None:
    settings = project(tmp_path, 'exclude = ["vendor/"]')
    assert len(check_source(tmp_path / "vendor/b.py", settings=settings)) == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "colour = true",
            "has colour; it takes exclude, extend-select, ignore, per-file-ignores, select",
        ),
        ('select = "HSW201"', "select is 'HSW201', expected a list of texts"),
        ("per-file-ignores = []", "per-file-ignores is '[]', expected a table"),
        ('per-file-ignores = {"a.py" = "HSW2"}', "a.py is 'HSW2', expected a list of texts"),
        ("select = [", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(HotswapError) as raised:
        project(tmp_path, table)
    assert message in str(raised.value)


def test_an_unknown_rule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rule matches 'HSW999'"):
        names(tmp_path, project(tmp_path, 'select = ["HSW999"]'))


def test_without_a_table_the_usual_rules_apply(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == Settings()
