"""The outcomes of an expression or a condition: each is a path with what holds on it."""

from __future__ import annotations

import ast

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.calls import call
from hotswap.lint.interpreter.conditions import assume, holds, negation
from hotswap.lint.interpreter.expressions import class_like
from hotswap.lint.interpreter.run import Run
from hotswap.lint.interpreter.state import State
from hotswap.lint.typestate import Guard

Outcomes = list[tuple[State, v.Value]]


def outcomes(run: Run, node: ast.expr | None) -> Outcomes:
    """Evaluate an expression; calls of the program's functions and short circuits have several outcomes."""
    if isinstance(node, ast.Await | ast.NamedExpr | ast.UnaryOp) and run.matters.touches(node):
        return _wrapped(run, node)
    if isinstance(node, ast.IfExp):
        if isinstance(node.body, ast.Name) and isinstance(node.orelse, ast.Name):
            cls = class_like(run, [run.ev(node.body), run.ev(node.orelse)])
            if isinstance(cls, v.Ref):
                return [(run.s, cls)]
        results: Outcomes = []
        for chosen, state in branches(run, node.test):
            run.s = state
            results += outcomes(run, node.body if chosen else node.orelse)
        return results
    if isinstance(node, ast.BoolOp) and run.matters.touches(node):
        return _short_circuit(run, node)
    if not isinstance(node, ast.Call):
        value = run.ev(node)
        return [(run.s, value)]
    results = []
    ends: list[State] = []
    func = node.func
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Call | ast.Await):
        for state, owner in outcomes(run, func.value):
            run.s = state
            ends += call(run, node, owner)
    else:
        ends = call(run, node)
    for state in ends:
        run.s, returned, state.result = state, state.result, None
        results.append((state, v.Const(None) if returned is None else run.known(returned)))
    return results


def _wrapped(run: Run, node: ast.Await | ast.NamedExpr | ast.UnaryOp) -> Outcomes:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node.value
    results = []
    for state, value in outcomes(run, inner):
        run.s = state
        if isinstance(node, ast.NamedExpr):
            state.frames[-1].bind(node.target.id, value)
        elif isinstance(node, ast.UnaryOp):
            value = negation(run, value) if isinstance(node.op, ast.Not) else run.fresh()
        results.append((state, value))
    return results


def _short_circuit(run: Run, node: ast.BoolOp) -> Outcomes:
    decided = isinstance(node.op, ast.Or)
    live, results = [run.s], list[tuple[State, v.Value]]()
    for part in node.values[:-1]:
        after: list[State] = []
        for state in live:
            run.s = state
            for end, value in outcomes(run, part):
                for outcome, path in split(run, end, value, part):
                    if outcome is decided:
                        results.append((path, v.Const(decided) if end is not path else value))
                    else:
                        after.append(path)
        live = after
    for state in live:
        run.s = state
        results += outcomes(run, node.values[-1])
    return results


def branches(run: Run, test: ast.expr) -> list[tuple[bool, State]]:
    """Return the outcomes that a condition can have on this path, each with the path on which it has it."""
    return [
        branch for state, value in outcomes(run, test) for branch in split(run, state, value, test)
    ]


def split(run: Run, state: State, value: v.Value, test: ast.expr) -> list[tuple[bool, State]]:
    """Split a path at a condition whose value is unknown."""
    run.s = state
    known = holds(run, value)
    if known is not None or state.exit:
        if v.truth(value) is None:  # known from another condition that nobody could evaluate
            guard(run, state, test, bool(known))
        else:
            run.judge.decided.add((test, bool(known)))
        return [(bool(known), state)]
    found = []
    for outcome, path in ((True, state), (False, state.copy())):
        run.s = path
        assume(run, test, outcome)
        if value != v.IN_TIME:
            guard(run, path, test, outcome)
        found.append((outcome, path))
    return found


def guard(run: Run, state: State, node: ast.AST, branch: bool) -> None:
    """Note that the path was taken without knowing whether it can be."""
    loaded = [oid for oid, facts in state.models.items() if facts.adapters]
    state.guards = {**state.guards, node: Guard(branch, frozenset(loaded), run.turn)}
