"""Notebooks: their code cells as one program, without what only IPython understands.

They are read as JSON: nbformat refuses one without metadata, and reads one without its version as empty.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hotswap.lint.chunk import Chunk, Unread, parsed

_CELL_OF_PYTHON = re.compile(
    r"\s*%%(?:capture|debug|heat|lprun|memit|mprun|prun|px|scalene|snakeviz|time|timeit|wandb)\b"
)
"""Cell magics that run the cell as Python of the notebook."""
_LINE_OF_PYTHON = re.compile(
    r"%(?:debug|lprun|memit|mprun|prun|px|snakeviz|time|timeit)\b(?:\s+-\w+(?:\s+\d+)?)*"
)
"""Line magics that run what follows, after options."""
_ASSIGNED = re.compile(r"^(?P<target>\s*[\w.,\s\[\]\"']+?=\s*)(?P<sign>[!%])(?P<rest>.*)$")


def read_notebook(text: str, path: Path) -> tuple[list[Chunk], list[Unread]]:
    """Parse a notebook; a cell that is no Python is left out and told."""
    try:
        document = json.loads(text)
        sources = list(_sources(document))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [], [Unread(str(path), "it is no notebook")]
    lines: list[str] = []
    starts: list[tuple[int, int]] = []
    unread: list[Unread] = []
    for number, source in sources:
        tree = parsed(source, f"{path}::cell {number}")
        if isinstance(tree, Unread):
            unread.append(tree)
            continue
        starts.append((number, len(lines) + 1))
        lines += source.split("\n")
    joined = "\n".join(lines) + "\n"
    tree = parsed(joined, str(path))
    if isinstance(tree, Unread):
        return [], [*unread, tree]
    return ([Chunk(path, joined, tree, tuple(starts))] if starts else []), unread


def _sources(document: Any) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each code cell, of format 4 or of the worksheets of format 3."""
    cells = document["cells"] if "cells" in document else document["worksheets"][0]["cells"]
    for number, cell in enumerate(cells, 1):
        if cell["cell_type"] == "code":
            source = cell["source"] if "source" in cell else cell["input"]
            text = source if isinstance(source, str) else "".join(source)
            yield number, as_python(text.replace("\r\n", "\n"))


def as_python(source: str) -> str:
    """Take out what only IPython understands, line by line, so that lines keep their numbers."""
    lines = source.split("\n")
    first = next((n for n, line in enumerate(lines) if line.strip()), 0)
    if lines[first].lstrip().startswith("%%"):
        if not _CELL_OF_PYTHON.match(lines[first]):
            return ""
        lines[first] = "pass"
    if _is_python(
        "\n".join(lines)
    ):  # what looks like a magic may stand in a string or go on a line
        return "\n".join(lines)
    plain: list[str] = []
    for number, line in enumerate(lines):
        goes_on = number > 0 and lines[number - 1].endswith("\\") and plain[-1].endswith("pass")
        plain.append("pass" if goes_on else _plain(line))
    return "\n".join(plain)


def _plain(line: str) -> str:
    bare = line.lstrip()
    indent = line[: len(line) - len(bare)]
    assigned = _ASSIGNED.match(line)
    if assigned:
        return f"{assigned['target']}{_run_by(assigned['sign'] + assigned['rest']) or 'None'}"
    if bare.startswith(("%", "!", "?")) or (bare.endswith("?") and bare[:1] not in "#\"'"):
        return f"{indent}{_run_by(bare) or 'pass'}"
    return line


def _run_by(magic: str) -> str:
    """Return the Python that a line magic runs: what follows its options, the last perhaps with a value."""
    found = _LINE_OF_PYTHON.match(magic)
    rest = magic[found.end() :].strip() if found else ""
    return next((text for text in (rest, rest.partition(" ")[2]) if text and _is_python(text)), "")


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
