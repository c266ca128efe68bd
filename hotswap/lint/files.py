"""Files of source code: modules, notebooks and the Python blocks of Markdown; ``noqa`` comments."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SUFFIXES = (".py", ".ipynb", ".md")
_SKIPPED = {"__pycache__", "node_modules", "venv", "site-packages", "build", "dist"}
_COMPILE = re.compile(rb"(?<!\bre)\.compile\b|compile_repeated_blocks|\bimport compile\b|_dynamo")
_ADAPTER = re.compile(
    rb"load_lora|load_adapter|add_adapter|set_adapters?|PeftModel|get_peft_model|inject_adapter"
)
_NOQA = re.compile(
    r"#\s*noqa(?::\s*(?P<codes>[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*))?", re.IGNORECASE
)
_FENCE = re.compile(
    r"^[ \t>]*(?P<mark>```+|~~~+)[ \t]*\{?\.?(?P<info>[\w+-]*)[^`\n]*\n"
    r"(?P<body>.*?)(?:^[ \t>]*(?P=mark)[`~]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = ("python", "py", "python3", "pycon")
_PLACEHOLDER = re.compile(r"<(?P<inside>[\w./ -]+)>")


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
        first, last = _lines_of(node)
        where, line = self.locate(first)
        start = self._column(first, getattr(node, "col_offset", 0))
        end = self._column(last, getattr(node, "end_col_offset", 0))
        return where, line, start, line + last - first, end

    def line_of(self, node: ast.AST) -> str:
        """Return the line on which a node begins, as it stands in the file."""
        return " " * self.indent + self.lines[_lines_of(node)[0] - 1].rstrip()

    def _column(self, line: int, offset: int) -> int:
        """Turn an offset in UTF-8 bytes into a column in characters, from 1."""
        text = self.lines[line - 1].encode("utf-8", "surrogatepass")[:offset]
        return len(text.decode("utf-8", "ignore")) + self.indent + 1

    def suppressed(self, node: ast.AST, code: str) -> bool:
        """Tell whether a ``noqa`` comment on the node's first or last line covers the code."""
        for number in set(_lines_of(node)):
            found = _NOQA.search(self.lines[number - 1])
            if found is not None:
                codes = re.split(r"[,\s]+", (found["codes"] or code).upper())
                if any(code.startswith(prefix) for prefix in codes):
                    return True
        return False

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the text, as the parser counts them."""
        return self.text.split("\n")


def _lines_of(node: ast.AST) -> tuple[int, int]:
    first = getattr(node, "lineno", 1)
    return first, getattr(node, "end_lineno", None) or first


def find(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Yield the files that are named, and those with source code below the folders that are named."""
    for given in paths:
        path = Path(given)
        if not path.is_dir():
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(f for f in folders if f not in _SKIPPED and not f.startswith("."))
            for name in sorted(names):
                if name.endswith(SUFFIXES):
                    yield Path(folder, name)


def concerns(data: bytes) -> bool:
    """Tell whether a file mentions anything that a rule could be about."""
    if b"hotswap" in data:
        return True
    return (
        b"compile" in data
        and _ADAPTER.search(data) is not None
        and _COMPILE.search(data) is not None
    )


def read(path: Path) -> list[Chunk]:
    """Parse the programs of a file that mentions the APIs; what cannot be parsed is left out."""
    data = path.read_bytes()
    return parse(data, path) if concerns(data) else []


def parse(data: bytes, path: Path) -> list[Chunk]:
    """Parse the programs in the bytes of a file, by its suffix."""
    text = _decoded(data)
    if path.suffix == ".ipynb":
        return _notebook(text, path)
    if path.suffix == ".md":
        return list(_markdown(text, path))
    tree = _tree(text)
    return [Chunk(path, text, tree)] if tree is not None else []


def _decoded(data: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        text = data.decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff").replace("\f", " ")


def _tree(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _notebook(text: str, path: Path) -> list[Chunk]:
    try:
        cells = json.loads(text)["cells"]
        sources = [
            (number, _plain("".join(cell["source"])))
            for number, cell in enumerate(cells, 1)
            if cell["cell_type"] == "code"
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    lines: list[str] = []
    starts: list[tuple[int, int]] = []
    for number, source in sources:
        if _tree(source) is None:
            continue
        starts.append((number, len(lines) + 1))
        lines += source.splitlines() or [""]
    joined = "\n".join(lines) + "\n"
    tree = _tree(joined)
    return [Chunk(path, joined, tree, tuple(starts))] if tree is not None and starts else []


def _plain(source: str) -> str:
    """Take out what only IPython understands, line by line, so that lines keep their numbers."""
    if source.lstrip().startswith("%%") and not re.match(r"\s*%%(time|timeit|capture)\b", source):
        return ""
    lines = []
    for line in source.splitlines():
        bare = line.lstrip()
        indent = line[: len(line) - len(bare)]
        magic = bare.startswith(("%", "!")) or (bare.endswith("?") and bare[:1] not in "#\"'")
        lines.append(f"{indent}pass" if magic else line)
    return "\n".join(lines)


def _markdown(text: str, path: Path) -> Iterator[Chunk]:
    for fence in _FENCE.finditer(text):
        if fence["info"].lower() in _PYTHON and concerns(fence["body"].encode()):
            code, tree, indent = _block(fence["body"].removesuffix("\n").split("\n"))
            if tree is not None:
                start = text.count("\n", 0, fence.start("body"))
                ast.increment_lineno(tree, start)
                yield Chunk(path, "\n" * start + code, tree, indent=indent)


def _block(body: list[str]) -> tuple[str, ast.Module | None, int]:
    """Parse a block; a session loses its prompts, a placeholder ``<name>`` becomes a string."""
    code = textwrap.dedent("\n".join(body))
    indent = max(len(a) - len(b) for a, b in zip(body, code.split("\n"), strict=True))
    if re.search(r"^>>> ", code, re.MULTILINE):
        code = "\n".join(
            line[4:] if line.startswith((">>> ", "... ")) else "" for line in code.split("\n")
        )
        indent += 4
    tree = _tree(code)
    if tree is None:
        code = _PLACEHOLDER.sub(lambda m: f'"{m["inside"]}"', code)
        tree = _tree(code)
    return code, tree, indent
