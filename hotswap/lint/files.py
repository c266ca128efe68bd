"""Files of source code: which there are, what each mentions, and the programs in it."""

from __future__ import annotations

import io
import os
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from pathspec import GitIgnoreSpec

from hotswap.lint.chunk import Chunk, Unread, parsed
from hotswap.lint.documents import read_markdown, read_rst
from hotswap.lint.notebooks import read_notebook

_MARKDOWN = (".markdown", ".md", ".mdx", ".qmd")
SUFFIXES = (".py", ".pyi", ".pyw", ".ipynb", *_MARKDOWN, ".rst")
EXCLUDED = (
    ".*/", "__pycache__/", "build/", "dist/", "node_modules/", "site-packages/", "venv/",
)  # fmt: skip
"""Folders that are not searched, in the language of .gitignore."""
Spec: TypeAlias = tuple[Path, GitIgnoreSpec]
_COMPILE = (
    b"compile_repeated_blocks",
    b"import compile",
    b"_dynamo",
    b"aot_compile",
    b"aoti_compile",
    b"export.save",
    b"torch.export import",
)
_COMPILES = re.compile(rb"\.compile(?!\w)(?<!\bre\.compile)")
"""A method that compiles anything but a regular expression."""
_FIRST = (b"hotswap", b"HSW2", b"compile", b"export")
"""What is looked for before the rest: one of them is in every file that a rule can be about."""
_ADAPTER = (
    b"load_lora", b"load_adapter", b"add_adapter", b"set_adapter", b"PeftModel", b"get_peft_model",
    b"inject_adapter",
)  # fmt: skip
Words: TypeAlias = frozenset[str]


def find(
    paths: Iterable[str | Path], exclude: Sequence[str] = (), root: Path | None = None
) -> Iterator[Path]:
    """Yield the files that are named, and those with source code below the folders that are named.

    Below a folder, what a ``.gitignore`` or ``exclude`` says is left out (patterns as in .gitignore, relative
    to ``root``), and what is no regular file.
    """
    for given in paths:
        path = Path(given)
        if path.is_dir():
            usual = (path, GitIgnoreSpec.from_lines(EXCLUDED))
            told = (root or path, GitIgnoreSpec.from_lines(exclude))
            yield from _below(path, [usual, *_ignored_above(path)], told)
        else:
            yield path


def _below(folder: Path, specs: list[Spec], told: Spec) -> Iterator[Path]:
    specs = [*specs, *_gitignore(folder)]
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    folders = []
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            folders += [] if _is_ignored(path, [*specs, told], "/") else [path]
        elif (
            entry.name.endswith(SUFFIXES)
            and entry.is_file()
            and not _is_ignored(path, [*specs, told])
        ):
            yield path
    for inner in folders:
        yield from _below(inner, specs, told)


def _is_ignored(path: Path, specs: list[Spec], end: str = "") -> bool:
    """Ask the lists from the nearest to the farthest; the first that knows the path decides."""
    for base, spec in reversed(specs):
        inside = os.path.relpath(path, base).replace(os.sep, "/")
        ignored = spec.check_file(f"{inside}{end}").include
        if ignored is not None:
            return ignored
    return False


def _gitignore(folder: Path) -> list[Spec]:
    try:
        lines = (folder / ".gitignore").read_text(encoding="utf-8", errors="replace").splitlines()
        return [(folder, GitIgnoreSpec.from_lines(lines))]
    except (OSError, ValueError):
        return []


def _ignored_above(folder: Path) -> list[Spec]:
    """Return the lists of the folders above, up to the root of the repository."""
    above = [folder.absolute(), *folder.absolute().parents]
    depth = next((n for n, place in enumerate(above) if (place / ".git").exists()), 0)
    specs = [found for place in reversed(above[1 : depth + 1]) for found in _gitignore(place)]
    return [] if _is_ignored(above[0], specs, "/") else specs  # a folder that is named is searched


def mentions(data: bytes) -> Words:
    """Return what a file mentions of what rules are about."""
    found = {
        "hotswap": b"hotswap" in data or b"HSW2" in data,
        "compile": bool(_COMPILES.search(data)) or any(word in data for word in _COMPILE),
        "adapter": any(word in data for word in _ADAPTER),
    }
    return frozenset(word for word, there in found.items() if there)


def suffices(words: Words) -> bool:
    """Tell whether a rule could be about a program that mentions these."""
    return "hotswap" in words or words >= {"compile", "adapter"}


def concerns(data: bytes) -> bool:
    """Tell whether a file mentions anything that a rule could be about."""
    return any(word in data for word in _FIRST) and suffices(mentions(data))


def parse(data: bytes, path: Path) -> tuple[list[Chunk], list[Unread]]:
    """Parse the programs in the bytes of a file, by its suffix."""
    text = _decoded(data)
    if path.suffix == ".ipynb":
        return read_notebook(text, path)
    if path.suffix in _MARKDOWN:
        return list(read_markdown(text, path, concerns)), []
    if path.suffix == ".rst":
        return list(read_rst(text, path, concerns)), []
    tree = parsed(text, str(path))
    return ([], [tree]) if isinstance(tree, Unread) else ([Chunk(path, text, tree)], [])


def _decoded(data: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        text = data.decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff").replace("\f", " ")
