"""Check source code: read the files, run the programs in them, and turn problems into findings."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

from hotswap.findings import Finding, Related
from hotswap.lint.files import Chunk, concerns, find, parse, read
from hotswap.lint.program import analyse
from hotswap.lint.rules import RULES
from hotswap.lint.typestate import Problem


def check_source(
    paths: str | Path | Iterable[str | Path],
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> list[Finding]:
    """Return the misuses of adapter hot-swapping in files and folders, sorted by place.

    Reads ``.py``, ``.ipynb`` and the Python blocks of ``.md``; nothing is imported or run. ``select`` and
    ``ignore`` take codes, prefixes of codes (``HSW29``) or names of rules; without ``select`` the rules
    that are on by default apply. Raises ``OSError`` for a path that cannot be read.
    """
    given = [paths] if isinstance(paths, str | Path) else paths
    codes = chosen(select, ignore)
    return _findings((chunk for path in find(given) for chunk in read(path)), codes)


def check_text(
    text: str,
    *,
    path: str | Path = "<string>",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> list[Finding]:
    """Return the misuses in a text, which is read as the path's suffix says (Python if it has none)."""
    data = text.encode("utf-8", "surrogatepass")
    codes = chosen(select, ignore)
    return _findings(parse(data, Path(path)) if concerns(data) else (), codes)


def _findings(chunks: Iterable[Chunk], codes: frozenset[str]) -> list[Finding]:
    return sorted({f for chunk in chunks for f in findings_in(chunk, codes)})


def chosen(select: Sequence[str], ignore: Sequence[str]) -> frozenset[str]:
    """Return the codes of the rules that apply; raises ``ValueError`` for one that does not exist."""
    wanted = {code for word in select for code in _matching(word)}
    if not select:
        wanted = {rule.code for rule in RULES.values() if rule.default}
    return frozenset(wanted - {code for word in ignore for code in _matching(word)})


def _matching(word: str) -> list[str]:
    found = [r.code for r in RULES.values() if r.name == word or r.code.startswith(word.upper())]
    if not found:
        raise ValueError(f"no rule matches {word!r}; `hotswap explain` lists the codes and names")
    return found


def findings_in(chunk: Chunk, codes: frozenset[str]) -> list[Finding]:
    """Analyse one program."""
    folder = chunk.path.parent if chunk.path.name else None
    problems = analyse(chunk.tree, chunk.text, folder)
    return [
        _finding(chunk, code, node, problem)
        for (code, node), problem in problems.items()
        if code in codes and not chunk.suppressed(node, code)
    ]


def _finding(chunk: Chunk, code: str, node: ast.AST, problem: Problem) -> Finding:
    where, line, column, *end = chunk.span(node)
    related = tuple(Related(*chunk.span(other)[:3], told) for other, told in problem.related)
    told = where, code, problem.message, problem.remedy
    return Finding(*told, line, column, end[0], end[1], chunk.line_of(node), related)
