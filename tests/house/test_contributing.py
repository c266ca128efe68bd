"""CONTRIBUTING.md names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
NAMED = re.compile(
    r"(?<![\w./-])(?:(?:hotswap|pytest_hotswap|tests|docs|benchmarks)/[\w./-]*\w"
    r"|[\w-]+\.(?:md|toml|yml)|Makefile)\b"
)
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the page is not in this copy")


def missing(text: str) -> list[str]:
    return [name for name in dict.fromkeys(NAMED.findall(text)) if not (ROOT / name).exists()]


def test_every_path_that_is_named_exists() -> None:
    assert missing(PAGE.read_text(encoding="utf-8")) == []


def test_a_path_that_is_gone_is_seen() -> None:
    text = "`hotswap/findings.py`, `tests/house`, or hotswap/gone.py; see GONE.md, test_gone_….py."
    assert missing(text) == ["hotswap/gone.py", "GONE.md"]
