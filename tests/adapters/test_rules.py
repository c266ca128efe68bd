"""The rules of adapter files: registry, documentation, samples and changelog agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hotswap.adapters.rules import DOCUMENTATION, table
from hotswap.findings import RULES, WARNINGS
from tests.support.adapter_samples import SAMPLES

CODES = [code for code in RULES if code.startswith(("HSW0", "HSW1"))]


ROOT = Path(__file__).parents[2]


def test_registry_documentation_samples_and_changelog_agree() -> None:
    assert list(DOCUMENTATION) == CODES
    assert {*SAMPLES, "HSW009"} == set(CODES)
    changelog = ROOT / "CHANGELOG.md"
    if changelog.exists():
        spans = re.findall(r"HSW(\d{3}) to HSW(\d{3})", changelog.read_text(encoding="utf-8"))
        named = {f"HSW{n:03}" for a, b in spans for n in range(int(a), int(b) + 1)}
        assert set(CODES) <= named


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the documentation is not here")
def test_the_table_in_the_documentation_is_the_registry() -> None:
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- rules: [^\n]*-->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert shown == table()


def test_warnings_are_codes() -> None:
    assert set(RULES) >= WARNINGS
