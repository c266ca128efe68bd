"""A chunk: one program of a file, with its tree and where its lines stand; or why there is none."""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hotswap.lint.noqa import Noqa


@dataclass(frozen=True)
class Chunk:
    """One program: its tree, the text it was parsed from, and where its lines stand."""

    path: Path
    text: str
    tree: ast.Module
    cells: tuple[tuple[int, int], ...] = ()
    """For a notebook, the number of each code cell and the line of the text on which it starts."""
    indent: int = 0
    """How many characters every line was indented by where it stands."""

    def locate(self, line: int) -> tuple[str, int]:
        """Return where a line of the text stands: the path (with the cell), and the line there."""
        cell, start = 0, 1
        for number, first in self.cells:
            if first <= line:
                cell, start = number, first
        name = f"{self.path}::cell {cell}" if self.cells else str(self.path)
        return name, line - start + 1

    def span(self, node: ast.AST) -> tuple[str, int, int, int, int]:
        """Return where a node stands: the path, first line and column, last line, column after it."""
        first, last = lines_of(node)
        where, line = self.locate(first)
        start = self._column(first, getattr(node, "col_offset", 0))
        end = self._column(last, getattr(node, "end_col_offset", 0))
        return where, line, start, line + last - first, end

    def line_of(self, node: ast.AST) -> str:
        """Return the line on which a node begins, as it stands in the file."""
        return " " * self.indent + self.lines[lines_of(node)[0] - 1].rstrip()

    def _column(self, line: int, offset: int) -> int:
        """Turn an offset in UTF-8 bytes into a column in characters, from 1."""
        text = self.lines[line - 1].encode("utf-8", "surrogatepass")[:offset]
        return len(text.decode("utf-8", "ignore")) + self.indent + 1

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the text, as the parser counts them."""
        return self.text.split("\n")

    @cached_property
    def noqa(self) -> Noqa:
        """The comments that suppress findings."""
        return Noqa(self.text)


@dataclass(frozen=True, slots=True)
class Unread:
    """A file, or a cell of one, that could not be read as Python: where, and why."""

    where: str
    reason: str
    line: int = 1
    column: int = 1
    snippet: str = ""


def lines_of(node: ast.AST) -> tuple[int, int]:
    """Return the first and last line of a node."""
    first = getattr(node, "lineno", 1)
    return first, getattr(node, "end_lineno", None) or first


def parsed(text: str, where: str) -> ast.Module | Unread:
    """Parse a text, or say why it is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except SyntaxError as error:
            line, column = error.lineno or 1, max(error.offset or 1, 1)
            lines = text.split("\n")
            snippet = lines[line - 1].rstrip() if line <= len(lines) else ""
            return Unread(where, f"it is no Python: {error.msg}", line, column, snippet)
        except ValueError as error:
            return Unread(where, f"it is no Python: {error}")
        except (RecursionError, MemoryError):
            return Unread(where, "it is nested too deeply")
