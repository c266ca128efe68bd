"""Documents: the Python in Markdown, reStructuredText and Quarto, and in notebooks written as Markdown."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from hotswap.lint.chunk import Chunk, Unread, parsed
from hotswap.lint.notebooks import as_python

_FENCE = re.compile(
    r"^[ \t>]*(?P<mark>```+|~~~+|:::+(?=\{code))[ \t]*(?P<brace>\{?)\.?(?P<info>[\w+-]*)"
    r"(?:\}[ \t]*(?P<of>[\w+-]+))?[^`\n]*\n(?P<body>.*?)(?:^[ \t>]*(?P=mark)[`~:]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_DIRECTIVE = re.compile(
    r"^(?P<indent>[ \t]*)\.\. (?:code-block|code|ipython|prompt|sourcecode|testcode)::"
    r"[ \t]*(?P<info>[\w+-]*)[^\n]*\n"
    r"(?P<body>(?:(?P=indent)[ \t]+[^\n]*\n|[ \t]*\n)+)",
    re.MULTILINE,
)
_OPTION = re.compile(r"^[ \t]*:[\w-]+:.*$", re.MULTILINE)
_PYTHON = ("python", "py", "python3", "pycon", "ipython", "ipython3")
_PLACEHOLDER = re.compile(r"<(?P<inside>[\w./ -]+)>")
Concerns = Callable[[bytes], bool]


def read_markdown(text: str, path: Path, concerns: Concerns) -> Iterator[Chunk]:
    """Yield the fenced blocks, each a program; cells that are executed together are one."""
    cells = []
    for fence in _FENCE.finditer(text):
        info, body = fence["info"].lower(), fence["body"]
        if info in ("code", "code-block") and fence["of"]:  # a directive of MyST
            info, body = fence["of"].lower(), _OPTION.sub("", body)
        cell = fence["brace"] and (
            info == "code-cell" or (path.suffix == ".qmd" and info in _PYTHON)
        )
        if cell:
            cells.append((fence.start("body"), body))
        elif info in _PYTHON and concerns(body.encode()):
            yield from _block(path, text, fence.start("body"), body)
    if cells:
        yield from _together(path, text, cells)


def read_rst(text: str, path: Path, concerns: Concerns) -> Iterator[Chunk]:
    """Yield the blocks of code, each a program."""
    for block in _DIRECTIVE.finditer(text):
        if block["info"].lower() in (*_PYTHON, "") and concerns(block["body"].encode()):
            yield from _block(path, text, block.start("body"), _OPTION.sub("", block["body"]))


def _together(path: Path, text: str, cells: list[tuple[int, str]]) -> Iterator[Chunk]:
    """Put cells where they stand in the file, with nothing in between."""
    lines: list[str] = []
    for start, body in cells:
        code = as_python(re.sub(r"\A---\n.*?^---$", "", _OPTION.sub("", body), flags=re.M | re.S))
        if isinstance(parsed(code, str(path)), Unread):
            continue
        lines += [""] * (text.count("\n", 0, start) - len(lines)) + code.rstrip("\n").split("\n")
    tree = parsed("\n".join(lines), str(path))
    if not isinstance(tree, Unread):
        yield Chunk(path, "\n".join(lines), tree)


def _block(path: Path, text: str, start: int, body: str) -> Iterator[Chunk]:
    """Parse a block; a session loses its prompts, a placeholder ``<name>`` becomes a string."""
    lines = body.removesuffix("\n").split("\n")
    code = textwrap.dedent("\n".join(lines))
    indent = max(len(a) - len(b) for a, b in zip(lines, code.split("\n"), strict=True))
    if re.search(r"^>>> ", code, re.MULTILINE):
        code = "\n".join(
            line[4:] if line.startswith((">>> ", "... ")) else "" for line in code.split("\n")
        )
        indent += 4
    tree = parsed(code, str(path))
    if isinstance(tree, Unread):
        code = _PLACEHOLDER.sub(lambda m: f'"{m["inside"]}"', code)
        tree = parsed(code, str(path))
    if not isinstance(tree, Unread):
        above = text.count("\n", 0, start)
        ast.increment_lineno(tree, above)
        yield Chunk(path, "\n" * above + code, tree, indent=indent)
