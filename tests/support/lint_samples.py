"""The sample files of the linter: what is expected stands on the line, as ``# want HSW201``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hotswap.findings import Finding

SAMPLES = Path(__file__).parents[1] / "samples" / "rules"
PROGRAMS = Path(__file__).parents[1] / "samples" / "programs"
KINDS = Path(__file__).parents[1] / "samples" / "kinds"
_WANT = re.compile(r"# want (HSW\d+)")


def wanted(path: Path) -> set[tuple[int, str]]:
    """Return line and code of everything that the file says is wrong with it."""
    return wanted_in(path.read_text(encoding="utf-8"))


def places(findings: list[Finding]) -> set[tuple[int, str]]:
    """Return line and code of findings."""
    return {(finding.line or 0, finding.code) for finding in findings}


@dataclass(frozen=True, slots=True)
class Program:
    """A block of a page of samples."""

    page: str
    line: int
    text: str

    @property
    def name(self) -> str:
        """The page, and the line on which the block begins."""
        return f"{self.page}-{self.line}"


def programs(folder: Path) -> list[Program]:
    """Return the programs on the pages of a folder."""
    found = []
    for path in sorted(folder.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        for block in re.finditer(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            line = page.count("\n", 0, block.start()) + 1
            found.append(Program(path.stem, line, block[1]))
    return found


def wanted_in(text: str) -> set[tuple[int, str]]:
    """Return line and code of everything that the text says is wrong with it."""
    return {(n, c) for n, line in enumerate(text.splitlines(), 1) for c in _WANT.findall(line)}
