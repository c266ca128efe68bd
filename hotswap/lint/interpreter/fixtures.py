"""Fixtures of pytest: what a test is given under the name of a parameter."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.objects import class_of, last_name, line_of
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
    for each in line_of(cls) if cls is not None else ():
        found = run.s.heap.get((each.oid, key(name)))
        if isinstance(found, v.Func):
            return replace(found, owner=owner)
    for frame in reversed(run.s.frames):
        found = frame.names.get(key(name))
        if isinstance(found, v.Func):
            return found
    return None


def not_asked_for(run: Run, func: v.Func) -> Iterator[v.Func]:
    """Yield the fixtures that a test uses without being given them: of all tests, and those of its marks."""
    cls = class_of(run, func.owner)
    tests: list[ast.AST] = [func.node, *(each.node for each in (line_of(cls) if cls else []))]
    values = [value for frame in run.s.frames for value in frame.names.values()]
    made: list[ast.AST] = [each.node for each in values if isinstance(each, v.Func)]
    made += [node for test in tests[1:] for node in getattr(test, "body", ())]
    names = [str(fixture_name(node)) for node in made if _used_by_all(node)]
    marks = [mark for test in tests for mark in getattr(test, "decorator_list", ())]
    marked = [given for mark in marks if last_name(mark) == "usefixtures" for given in mark.args]
    for name in dict.fromkeys([*names, *(str(getattr(each, "value", "")) for each in marked)]):
        asked = fixture(run, func.owner, name)
        yield from [asked] if asked is not None else []


def _used_by_all(node: ast.AST) -> bool:
    """Tell whether every test uses a fixture."""
    return any(
        keyword.arg == "autouse" and getattr(keyword.value, "value", True)
        for mark in getattr(node, "decorator_list", ())
        if isinstance(mark, ast.Call)
        for keyword in mark.keywords
    )
