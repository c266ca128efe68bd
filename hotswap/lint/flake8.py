"""The flake8 plugin: the rules that are on by default, under the prefix HSW."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import hotswap
from hotswap.lint.check import findings_in
from hotswap.lint.chunk import Chunk
from hotswap.lint.files import concerns
from hotswap.lint.settings import Settings


class Plugin:
    """What flake8 calls for each file: with the tree and the lines that it has read already."""

    name: ClassVar[str] = "hotswap"
    version: ClassVar[str] = hotswap.__version__

    def __init__(self, tree: ast.Module, filename: str, lines: Sequence[str]) -> None:
        self.chunk = Chunk(Path(filename), "".join(lines), tree)

    def run(self) -> Iterator[tuple[int, int, str, type[Any]]]:
        """Yield line, column (from 0), text and type; flake8 sorts and applies ``noqa``."""
        if not concerns(self.chunk.text.encode("utf-8", "replace")):
            return
        codes = Settings().codes
        for found in findings_in(self.chunk):
            if found.code in codes:
                text = f"{found.code} {found.message}; {found.remedy}"
                yield found.line or 1, (found.column or 1) - 1, text, type(self)
