"""Fixtures of pytest: what a test is given under the name of a parameter."""

from __future__ import annotations

import ast

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.objects import class_of, last_name
from hotswap.lint.interpreter.run import Run


def fixture_name(node: ast.AST) -> str | None:
    """Return the name under which tests ask for what a function makes; None if it is no fixture."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    for decorator in node.decorator_list:
        if last_name(decorator) in ("fixture", "yield_fixture"):
            keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
            named = [
                k.value.value
                for k in keywords
                if k.arg == "name" and isinstance(k.value, ast.Constant)
            ]
            return str(named[0]) if named else node.name
    return None


def key(name: str) -> str:
    """Return the name under which a fixture is kept, beside the function of that name."""
    return f"fixture {name}"


def fixture(run: Run, owner: v.Value | None, name: str) -> v.Func | None:
    """Return the fixture that a test, or another fixture, is given under that name."""
    cls = class_of(run, owner)
    found = run.s.heap.get((cls.oid, key(name))) if cls is not None else None
    if isinstance(found, v.Func):
        return v.Func(found.node, owner, found.frame, found.compiler)
    for frame in reversed(run.s.frames):
        found = frame.names.get(key(name))
        if isinstance(found, v.Func):
            return found
    return None
