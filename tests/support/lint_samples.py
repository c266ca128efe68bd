"""The sample files of the linter: what is expected stands on the line, as ``# want HSW201``."""

from __future__ import annotations

import re
from pathlib import Path

from hotswap.findings import Finding

SAMPLES = Path(__file__).parents[1] / "samples" / "rules"
PROGRAMS = Path(__file__).parents[1] / "samples" / "programs"
_WANT = re.compile(r"# want (HSW\d+)")


def wanted(path: Path) -> set[tuple[int, str]]:
    """Return line and code of everything that the file says is wrong with it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {(n, code) for n, line in enumerate(lines, 1) for code in _WANT.findall(line)}


def places(findings: list[Finding]) -> set[tuple[int, str]]:
    """Return line and code of findings."""
    return {(finding.line or 0, finding.code) for finding in findings}
