"""Fixes: move a preparation to before the compile, where nothing in between can notice."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from hotswap.findings import Finding
from hotswap.lint.check import check_source
from hotswap.lint.files import parse

FIXABLE = "HSW201"


def fix(findings: Sequence[Finding]) -> list[Path]:
    """Rewrite, in place, the Python files in which a finding can be fixed safely; return those.

    Only ``HSW201``, only within one block, and only if no statement between the compile and the
    preparation mentions the model; a file is written only if the finding is then gone.
    """
    changed = []
    for name in sorted(
        {f.where for f in findings if f.code == FIXABLE and f.where.endswith(".py")}
    ):
        path = Path(name)
        before = path.read_bytes()
        lines = {f.line for f in findings if f.where == name and f.code == FIXABLE}
        after = _moved(before, path, {line for line in lines if line is not None})
        if after is None:
            continue
        path.write_bytes(after)
        left = [f for f in check_source(path) if f.code == FIXABLE]
        if len(left) < len(lines):
            changed.append(path)
        else:
            path.write_bytes(before)
    return changed


def _moved(data: bytes, path: Path, lines: set[int]) -> bytes | None:
    """Return the bytes with every safe move made, from the last to the first; None if there is none."""
    chunks = parse(data, path)
    moves = sorted(_moves(chunks[0].tree, lines), reverse=True) if chunks else []
    text = data.splitlines(keepends=True)
    for first, start, end in moves:
        statement = text[start - 1 : end]
        if not statement[-1].endswith((b"\n", b"\r")):
            return None
        text[first - 1 : end] = [*statement, *text[first - 1 : start - 1]]
    return b"".join(text) if moves else None


def _moves(tree: ast.Module, lines: set[int]) -> Iterator[tuple[int, int, int]]:
    """Yield for each preparation that can move: the compile's first line, and its own first and last."""
    for node in ast.walk(tree):
        for _, block in ast.iter_fields(node):
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield from _moves_in(block, lines)


def _moves_in(block: list[ast.stmt], lines: set[int]) -> Iterator[tuple[int, int, int]]:
    for index, statement in enumerate(block):
        model = _prepared(statement) if statement.lineno in lines else None
        if model is None or not _alone(statement, block):
            continue
        for before in range(index - 1, -1, -1):
            if _compiled(block[before]) == model:
                if _alone(block[before], block):
                    last = statement.end_lineno or statement.lineno
                    yield block[before].lineno, statement.lineno, last
                break
            names = {n.id for n in ast.walk(block[before]) if isinstance(n, ast.Name)}
            if model in names or not isinstance(block[before], ast.Assign | ast.Expr):
                break
            if (
                names
                & _stored(block[before])
                & {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
            ):
                break


def _prepared(statement: ast.stmt) -> str | None:
    """Return the name of the model that the statement prepares, if that is all it does."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not call.args or not isinstance(call.args[0], ast.Name):
        return None
    func = call.func
    name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    known = name in ("prepare_model_for_compiled_hotswap", "prepare")
    return call.args[0].id if known else None


def _compiled(statement: ast.stmt) -> str | None:
    """Return the name of the model in ``m = torch.compile(m)`` or ``m.compile()``."""
    call = statement.value if isinstance(statement, ast.Assign | ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr != "compile" or not isinstance(call.func.value, ast.Name):
        return None
    if isinstance(statement, ast.Expr):
        return call.func.value.id
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    if not call.args or not isinstance(call.args[0], ast.Name) or not isinstance(target, ast.Name):
        return None
    return target.id if call.args[0].id == target.id else None


def _stored(statement: ast.stmt) -> set[str]:
    return {
        n.id
        for n in ast.walk(statement)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def _alone(statement: ast.stmt, block: list[ast.stmt]) -> bool:
    """Tell whether no other statement of the block shares the statement's lines."""
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    return not any(
        other is not statement and other.lineno <= last and (other.end_lineno or first) >= first
        for other in block
    )
