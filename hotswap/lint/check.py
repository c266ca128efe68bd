"""Check source code: read the files, run the programs in them, and turn problems into findings."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hotswap.findings import Finding, Related
from hotswap.lint.chunk import Chunk, Unread, lines_of
from hotswap.lint.files import concerns, find, parse, read
from hotswap.lint.program import analyse
from hotswap.lint.settings import Settings
from hotswap.lint.typestate import Problem


def check_source(
    paths: str | Path | Iterable[str | Path],
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    settings: Settings | None = None,
) -> list[Finding]:
    """Return the misuses of adapter hot-swapping in files and folders, sorted by place.

    Reads Python, notebooks, and the Python in Markdown, reStructuredText and Quarto; nothing is imported
    or run. ``select`` and ``ignore`` take codes, prefixes of codes (``HSW29``) or names of rules; without
    ``select`` the rules that are on by default apply. What could not be analysed is a finding too, a
    warning (``HSW200``). Raises ``OSError`` for a path that cannot be read.
    """
    given = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    chosen = settings or Settings(select, (), ignore)
    found: set[Finding] = set()
    for path in find(given, chosen.exclude, chosen.root):
        try:
            chunks, unread = read(path)
        except OSError as error:
            if path in given:
                raise
            chunks, unread = [], [Unread(str(path), f"it cannot be read: {error.strerror}")]
        found.update(_findings(chunks, unread, chosen.codes_in(path)))
    return sorted(found)


def check_text(
    text: str,
    *,
    path: str | Path = "<string>",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    settings: Settings | None = None,
) -> list[Finding]:
    """Return the misuses in a text, which is read as the path's suffix says (Python if it has none)."""
    data = text.encode("utf-8", "surrogatepass")
    return check_bytes(data, Path(path), settings=settings or Settings(select, (), ignore))


def check_bytes(data: bytes, path: Path, *, settings: Settings) -> list[Finding]:
    """Return the misuses in what is, or would be, the content of a file."""
    chunks, unread = parse(data, path) if concerns(data) else ([], [])
    return sorted(set(_findings(chunks, unread, settings.codes_in(path))))


def _findings(
    chunks: Iterable[Chunk], unread: Iterable[Unread], codes: frozenset[str]
) -> Iterator[Finding]:
    for chunk in chunks:
        yield from findings_in(chunk, codes)
    for lost in unread if "HSW200" in codes else ():
        told = f"{lost.reason}, so that nothing in it is checked", "mend it, or leave it out"
        place = lost.line, lost.column, lost.line, lost.column + 1
        yield Finding(lost.where, "HSW200", *told, *place, lost.snippet)


def findings_in(chunk: Chunk, codes: frozenset[str]) -> list[Finding]:
    """Analyse one program."""
    folder = chunk.path.parent if chunk.path.name else None
    problems = analyse(chunk.tree, chunk.text, folder)
    found = [
        _finding(chunk, code, node, problem)
        for (code, node), problem in problems.items()
        if code in codes and not chunk.noqa.suppresses(code, set(lines_of(node)))
    ]
    return [*found, *_unused(chunk, codes)] if "HSW293" in codes else found


def _finding(chunk: Chunk, code: str, node: ast.AST, problem: Problem) -> Finding:
    where, line, column, *end = chunk.span(node)
    related = tuple(Related(*chunk.span(other)[:3], told) for other, told in problem.related)
    told = where, code, problem.message, problem.remedy
    return Finding(*told, line, column, end[0], end[1], chunk.line_of(node), related)


def _unused(chunk: Chunk, codes: frozenset[str]) -> Iterator[Finding]:
    """Yield the comments that suppress rules and have suppressed nothing."""
    for number, prefix in chunk.noqa.unused(codes - {"HSW293"}):
        if chunk.noqa.suppresses("HSW293", [number]):
            continue
        where, line = chunk.locate(number)
        text = chunk.lines[number - 1]
        start = text.rfind("#") + 1
        told = f"the comment suppresses {prefix}, which is not found here", "take it out"
        yield Finding(where, "HSW293", *told, line, start, line, len(text) + 1, text)
