"""Conditions: what is true on a path, what is equal, and what a branch that was taken tells."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.objects import last_name, narrow
from hotswap.lint.interpreter.run import Run

_PURE = frozenset({"bool", "getattr", "hasattr", "isinstance", "len"})
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def holds(run: Run, value: v.Value) -> bool | None:
    """Tell whether the value is true on this path."""
    known = v.truth(value)
    if known is not None:
        return known
    key = v.key_of(value)
    return run.s.assumed.get(key) if key is not None else None


def assume(run: Run, node: ast.expr, outcome: bool) -> None:
    """Remember on this path that the condition holds, or does not."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        assume(run, node.operand, not outcome)
    elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) == outcome:
        for part in node.values:
            assume(run, part, outcome)
    elif isinstance(node, ast.NamedExpr):
        assume(run, node.value, outcome)
    elif outcome and isinstance(node, ast.Call) and last_name(node.func) == "isinstance":
        for value, cls in [[run.ev(arg) for arg in node.args]] if len(node.args) == 2 else ():
            narrow(run, value, cls)
    elif isinstance(node, ast.Compare) and _one_of(run, node, outcome):
        return
    elif _repeatable(run, node) and (key := v.key_of(run.ev(node))) is not None:
        run.s.assumed[key] = outcome
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.IsNot | ast.NotEq):
            same = _sameness(run, run.ev(node.left), run.ev(node.comparators[0]))
            if same is not None and (key := v.key_of(same)) is not None:
                run.s.assumed[key] = not outcome


def _one_of(run: Run, node: ast.Compare, outcome: bool) -> bool:
    """Remember which constants a value is one of, if the condition tells."""
    if len(node.ops) > 1 or not isinstance(node.ops[0], ast.In if outcome else ast.NotIn):
        return False
    if not _repeatable(run, node):
        return False
    return is_among(run, run.ev(node.left), run.ev(node.comparators[0]))


def is_among(run: Run, value: v.Value, container: v.Value) -> bool:
    """Remember on this path that an unknown value is one of the texts in a container."""
    texts = [v.text_of(each) for each in v.elements(container) or ()]
    if not isinstance(value, v.Opaque) or not texts or None in texts:
        return False
    run.s.assumed["among", value.oid, tuple(texts)] = True
    return True


def among(run: Run, value: v.Value | None) -> tuple[str, ...]:
    """Return the texts that an unknown value is one of, as far as is known."""
    if not isinstance(value, v.Opaque):
        return ()
    keys = (key for key in run.s.assumed if isinstance(key, tuple) and key[:1] == ("among",))
    return next((key[2] for key in keys if key[1] == value.oid), ())


def assume_something(run: Run, value: v.Value) -> None:
    """Remember on this path that an unknown value is not None."""
    same = _sameness(run, value, v.Const(None))
    if same is not None and (key := v.key_of(same)) is not None:
        run.s.assumed[key] = False


def _repeatable(run: Run, node: ast.expr) -> bool:
    """Tell whether evaluating the condition again has no effect and the same value."""
    if node not in run.cache:
        run.cache[node] = not any(
            isinstance(n, ast.Await | ast.NamedExpr)
            or (isinstance(n, ast.Call) and last_name(n.func) not in _PURE)
            for n in ast.walk(node)
        )
    return bool(run.cache[node])


def boolean(run: Run, node: ast.BoolOp) -> v.Value:
    """Evaluate ``and`` and ``or``."""
    decided = isinstance(node.op, ast.Or)
    value: v.Value = v.Const(None)
    unknown: list[v.Value] = []
    for part in node.values:
        value = run.ev(part)
        known = holds(run, value)
        if known is decided:
            return v.Const(decided) if unknown and isinstance(value, v.Const) else value
        if known is None:
            unknown.append(value)
    if not unknown or (len(unknown) == 1 and unknown[0] is value):
        return value
    keys = tuple(v.key_of(u) for u in unknown)
    return run.fresh() if None in keys else run.memo(("bool", decided, keys))


def negation(run: Run, value: v.Value) -> v.Value:
    """Return ``not value``."""
    known = holds(run, value)
    if known is not None:
        return v.Const(not known)
    if value == v.IN_TIME:
        return value
    key = v.key_of(value)
    return run.memo(("not", key)) if key is not None else run.fresh()


def compare(run: Run, node: ast.Compare) -> v.Value:
    """Evaluate a comparison."""
    left = run.ev(node.left)
    rights = [run.ev(right) for right in node.comparators]
    if len(rights) > 1:
        return run.fresh()
    right, op = rights[0], node.ops[0]
    if isinstance(left, v.AtLeast) or isinstance(right, v.AtLeast):
        return _reached(left, right, op) or run.fresh()
    if isinstance(op, ast.Is | ast.IsNot | ast.Eq | ast.NotEq):
        same = _same(left, right, identity=isinstance(op, ast.Is | ast.IsNot))
        equal = _sameness(run, left, right) if same is None else v.Const(same)
        if equal is None:
            return run.fresh()
        return equal if isinstance(op, ast.Is | ast.Eq) else negation(run, equal)
    if isinstance(left, v.Const) and isinstance(right, v.Const):
        try:
            return v.Const(bool(_COMPARISONS[type(op)](left.value, right.value)))
        except Exception:  # whatever the program's own comparison raises
            return run.fresh()
    if isinstance(op, ast.In | ast.NotIn):
        found = _contains(left, right)
        if found is not None:
            return v.Const(found == isinstance(op, ast.In))
    key = (type(op).__name__, v.key_of(left), v.key_of(right))
    return run.fresh() if None in key else run.memo(key)


_FROM_THE_OTHER_SIDE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}


def _reached(left: v.Value, right: v.Value, op: ast.cmpop) -> v.Value | None:
    """Compare a counter that grows with a limit, which it may come to some time."""
    kind = type(op)
    if isinstance(right, v.AtLeast):
        left, right, kind = right, left, _FROM_THE_OTHER_SIDE.get(kind, kind)
    limit = v.whole_of(right)
    if not isinstance(left, v.AtLeast) or limit is None:
        return None
    if kind in (ast.Gt, ast.LtE) and left.least > limit:
        return v.Const(kind is ast.Gt)
    if kind in (ast.GtE, ast.Lt) and left.least >= limit:
        return v.Const(kind is ast.GtE)
    if kind in (ast.Eq, ast.NotEq) and left.least > limit:
        return v.Const(kind is ast.NotEq)
    return v.IN_TIME


def _sameness(run: Run, left: v.Value, right: v.Value) -> v.Value | None:
    """Return the unknown truth of two values being the same; None if they have no identity."""
    keys = sorted((repr(v.key_of(left)), repr(v.key_of(right))))
    return None if "None" in keys else run.memo(("same", *keys))


def _same(left: v.Value, right: v.Value, *, identity: bool) -> bool | None:
    if isinstance(left, v.Const) and isinstance(right, v.Const):
        return bool(left.value is right.value if identity else left.value == right.value)
    for one, other in ((left, right), (right, left)):
        something = isinstance(
            other, v.Obj | v.Seq | v.Dict | v.Func | v.Class | v.Partial | v.Part
        )
        if one == v.Const(None) and something:
            return False
    return left.oid == right.oid if isinstance(left, v.Obj) and isinstance(right, v.Obj) else None


def _contains(item: v.Value, container: v.Value) -> bool | None:
    if isinstance(container, v.Dict | v.Seq) and not container.items:
        return False
    if not isinstance(item, v.Const):
        return None
    if isinstance(container, v.Dict):
        return item.value in container.items
    if isinstance(container, v.Seq) and all(isinstance(each, v.Const) for each in container.items):
        return any(
            isinstance(each, v.Const) and each.value == item.value for each in container.items
        )
    return None
