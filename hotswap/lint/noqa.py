"""Comments that suppress findings: ``# noqa`` on a line, and its forms for a whole file."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Iterator

from hotswap.findings import RULES

_NOQA = re.compile(
    r"#\s*(?:(?P<tool>hotswap|ruff|flake8)\s*:\s*)?noqa\b(?P<colon>\s*:(?P<codes>[^#]*))?",
    re.IGNORECASE,
)
_CODE = re.compile(r"\s*,?\s*([A-Z]+[0-9]+|HSW|[a-z]+(?:-[a-z]+)+)\b", re.IGNORECASE)
_NAMES = {name: code for code, name in RULES.items()}
_ALL = ("",)
"""The prefix of every code: what ``# noqa`` without codes suppresses."""


class Noqa:
    """The comments of a program that suppress findings, and which of them have."""

    def __init__(self, text: str) -> None:
        self.lines: dict[int, tuple[str, ...]] = {}
        """Line → the codes or prefixes that are suppressed there."""
        self.file: tuple[str, ...] = ()
        self._used: set[tuple[int, str]] = set()
        for line, comment, alone in _comments(text) if "noqa" in text.lower() else ():
            for found in _NOQA.finditer(comment):
                codes = tuple(_codes(found["codes"])) if found["colon"] else _ALL
                if not found["tool"]:
                    self.lines[line] = (*self.lines.get(line, ()), *codes)
                elif alone:
                    self.file += codes

    def suppresses(self, code: str, lines: Iterable[int]) -> bool:
        """Tell whether a comment on one of the lines, or one for the file, covers the code."""
        covered = any(code.startswith(prefix) for prefix in self.file)
        for line in lines:
            for prefix in self.lines.get(line, ()):
                if code.startswith(prefix):
                    self._used.add((line, prefix))
                    covered = True
        return covered

    def unused(self, codes: Iterable[str]) -> Iterator[tuple[int, str]]:
        """Yield the lines whose comment names one of the codes and has suppressed none, and what it names."""
        wanted = tuple(codes)
        for line, prefixes in self.lines.items():
            for prefix in prefixes:
                named = prefix and any(code.startswith(prefix) for code in wanted)
                if named and (line, prefix) not in self._used:
                    yield line, prefix


def _codes(text: str) -> Iterator[str]:
    """Yield codes as they are, and names as their codes; what comes after them is an explanation."""
    start = 0
    while found := _CODE.match(text, start):
        word = found[1]
        if "-" not in word:
            yield word.upper()
        elif word.lower() in _NAMES:
            yield _NAMES[word.lower()]
        start = found.end()


def _comments(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield the comments with their lines, and whether each stands alone on its line."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string, not token.line[: token.start[1]].strip()
    except (tokenize.TokenError, SyntaxError):
        return
