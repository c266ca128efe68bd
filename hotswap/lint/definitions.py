"""The functions and classes that a module defines: which call which, and which set models up."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from hotswap.lint.outline import root
from hotswap.lint.relevance import Relevance

Def = ast.FunctionDef | ast.AsyncFunctionDef


def outermost(functions: Sequence[Def], matters: Callable[[Def], Relevance]) -> list[Def]:
    """Return the functions that none of the others calls; ``matters`` is of the module of each."""
    return [f for f in functions if not any(_calls(matters(g), g, f.name) for g in functions)]


def _calls(matters: Relevance, node: Def, name: str) -> bool:
    """Tell whether another function of that name is called in a function's lines."""
    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    calls = matters.outline.calls.get(name, ())
    return node.name != name and any(call.lineno in lines for call in calls)


def sets_up(matters: Relevance, node: Def, instance: str | None) -> bool:
    """Tell whether the function makes a model and keeps it, on the instance or outside of itself."""
    if not matters.touches(node, "make") or not matters.keeps(node):
        return False
    stored = [
        n
        for n in ast.walk(node)
        if isinstance(n, ast.Assign) and not isinstance(n.value, ast.Constant)
    ]
    made = {n for n in stored if matters.touches(n, "make")}
    if not made:
        return False
    outer = {instance} if instance else _outer_names(node)
    local = {t.id for n in made for t in n.targets if isinstance(t, ast.Name)} - outer
    kept = [n for n in stored if n in made or local & _names_in(n.value)]
    return any(
        root(target) in outer and (not instance or isinstance(target, ast.Attribute))
        for n in kept
        for target in n.targets
    )


def functions_of(body: list[ast.stmt]) -> Iterator[Def]:
    """Yield the functions that statements define."""
    for node in body:
        if isinstance(node, Def):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from functions_of(node.body)


def _outer_names(node: Def) -> set[str]:
    """Return the names that a function does not bind itself."""
    spec = node.args
    bound = {a.arg for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)}
    names: set[str] = set()
    declared: set[str] = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Global):
            declared |= set(n.names)
        elif isinstance(n, ast.Name):
            (bound if isinstance(n.ctx, ast.Store) else names).add(n.id)
    return (names - bound) | declared


def _names_in(node: ast.expr) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
