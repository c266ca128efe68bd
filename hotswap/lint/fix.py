"""Fixes: move a preparation to before the compile, where nothing in between can notice."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from hotswap.findings import Finding
from hotswap.lint.check import check_bytes
from hotswap.lint.files import parse
from hotswap.lint.settings import Settings

FIXABLE = "HSW201"
_PREPARES = re.compile(r"(?:[\w.]+\.)?(?:prepare|prepare_model_for_compiled_hotswap)\((\w+)[,)]")
_COMPILES = re.compile(r"(\w+)(?: = [\w.]+\.compile\(\1[,)]|\.compile\()")


def fixes(findings: Sequence[Finding]) -> dict[Path, bytes]:
    """Return what the Python files would be in which a finding can be fixed safely.

    Only ``HSW201``, only within one block, and only if no statement between the compile and the
    preparation mentions the model; and only if the finding is then gone.
    """
    places: dict[Path, set[int]] = defaultdict(set)
    for finding in findings:
        if finding.code == FIXABLE and finding.line and finding.where.endswith(".py"):
            places[Path(finding.where)].add(finding.line)
    fixed = {}
    for path, lines in sorted(places.items()):
        after = _moved(path.read_bytes(), path, lines)
        left = check_bytes(after, path, settings=Settings([FIXABLE])) if after is not None else []
        if after is not None and len(left) < len(lines):
            fixed[path] = after
    return fixed


def _moved(data: bytes, path: Path, lines: set[int]) -> bytes | None:
    """Return the bytes with every safe move made, from the last to the first; None if there is none."""
    chunks, _ = parse(data, path)
    moves = sorted(_moves(chunks[0].tree, lines), reverse=True) if chunks else []
    text = data.splitlines(keepends=True)
    for first, start, end in moves:
        while start - 1 > first and _says_why(text[start - 2], text[start - 1]):
            start -= 1
        statement = text[start - 1 : end]
        if not statement[-1].endswith((b"\n", b"\r")):
            return None
        text[first - 1 : end] = [*statement, *text[first - 1 : start - 1]]
    return b"".join(text) if moves else None


def _says_why(line: bytes, below: bytes) -> bool:
    """Tell whether a line is a comment that stands as far to the right as the line below."""
    bare = line.lstrip()
    return bare.startswith(b"#") and len(line) - len(bare) == len(below) - len(below.lstrip())


def _moves(tree: ast.Module, lines: set[int]) -> Iterator[tuple[int, int, int]]:
    """Yield for each preparation that can move: the compile's first line, and its own first and last."""
    for node in ast.walk(tree):
        for _, block in ast.iter_fields(node):
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                for index, statement in enumerate(block):
                    goal = _goal(block, index) if statement.lineno in lines else None
                    if goal is not None and _alone(statement, block) and _alone(goal, block):
                        yield goal.lineno, statement.lineno, statement.end_lineno or 0


def _goal(block: list[ast.stmt], index: int) -> ast.stmt | None:
    """Return the compile of the model before which the preparation can stand."""
    model, needed = _model(_PREPARES, block[index]), _names(block[index], ast.expr_context)
    for earlier in reversed(block[:index]) if model else ():
        if _model(_COMPILES, earlier) == model:
            return earlier
        simple = isinstance(earlier, ast.Assign | ast.Expr)
        if not simple or model in _names(earlier, ast.expr_context):
            return None
        if needed & _names(earlier, ast.Store):
            return None
    return None


def _model(what: re.Pattern[str], statement: ast.stmt) -> str | None:
    """Return the name of the model to which the statement does that and nothing else."""
    call = isinstance(statement, ast.Assign | ast.Expr) and isinstance(statement.value, ast.Call)
    found = what.match(ast.unparse(statement)) if call else None
    return found[1] if found else None


def _names(node: ast.stmt, context: type[ast.expr_context]) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def _alone(statement: ast.stmt, block: list[ast.stmt]) -> bool:
    """Tell whether no other statement of the block shares the statement's lines."""
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    return not any(
        other is not statement and other.lineno <= last and (other.end_lineno or first) >= first
        for other in block
    )
