"""Statements, branches and loops, executed on every path."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.assign import assign, given_back
from hotswap.lint.interpreter.conditions import assume, holds
from hotswap.lint.interpreter.enums import member_of
from hotswap.lint.interpreter.fixtures import fixture_name, key
from hotswap.lint.interpreter.functions import decorated, register
from hotswap.lint.interpreter.managers import enter, leave
from hotswap.lint.interpreter.names import MUTATES, imported
from hotswap.lint.interpreter.objects import last_name
from hotswap.lint.interpreter.outcomes import branches, guard, outcomes
from hotswap.lint.interpreter.patterns import captured, matches
from hotswap.lint.interpreter.run import GRAD_MODES, Run
from hotswap.lint.interpreter.state import Exit, Frame, State, Table, count_on, merge

MOST_TURNS = 8
_RAISES = frozenset(
    {"raises", "assertRaises", "assertRaisesRegex", "assertWarns", "warns", "assertWarnsRegex"}
)
_EXITS: dict[type[ast.stmt], Exit] = {
    ast.Break: "break",
    ast.Continue: "continue",
    ast.Raise: "raise",
}
_LEAVES_OR_BINDS = (*_EXITS, ast.Return, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
Block = TypeVar("Block", bound=ast.stmt)


def _passed_by(
    execute: Callable[[Run, Block], list[State]],
) -> Callable[[Run, Block], list[State]]:
    """Pass by a block that neither leaves nor does anything that matters; what it assigns is unknown."""

    def execute_or_pass(run: Run, node: Block) -> list[State]:
        if run.matters.touches(node):
            return execute(run, node)
        if node not in run.cache:
            run.cache[node] = _stored_in(node)
        stored = run.cache[node]
        if stored is None:
            return execute(run, node)
        for target in stored:
            assign(run, target, run.fresh())
        return [run.s]

    return execute_or_pass


def _stored_in(node: ast.AST) -> list[ast.expr] | None:
    """Return what the statements of a block assign to; None if one leaves it, yields or defines something."""
    found: list[ast.expr] = []
    waiting = [node]
    while waiting:
        inside = waiting.pop()
        if isinstance(inside, _LEAVES_OR_BINDS) or isinstance(
            getattr(inside, "value", None), ast.Yield | ast.YieldFrom
        ):
            return None
        if isinstance(inside, ast.Assign):
            found += inside.targets
        elif isinstance(inside, ast.Expr):
            found += _changed_in(inside)
        elif isinstance(inside, ast.AugAssign | ast.AnnAssign | ast.For | ast.AsyncFor):
            found.append(inside.target)
        elif isinstance(inside, ast.With | ast.AsyncWith):
            found += [item.optional_vars for item in inside.items if item.optional_vars]
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(inside, name, ())
    return found


def _changed_in(node: ast.Expr) -> Iterator[ast.expr]:
    """Yield the containers that an expression changes in place."""
    for call in ast.walk(node):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        holder = call.func.value
        if call.func.attr in MUTATES and isinstance(holder, ast.Name | ast.Attribute):
            yield holder


def passed_over(run: Run, node: ast.stmt, state: State) -> State:
    """Return the path after a statement of which nothing is known: it may have done anything."""
    run.s = state
    for inside in ast.walk(node):
        if isinstance(inside, ast.Name | ast.Attribute) and isinstance(inside.ctx, ast.Store):
            assign(run, inside, run.fresh())
    for oid, facts in list(state.models.items()):
        state.know(oid, replace(facts, open=True))
    return state


def _expression(run: Run, node: ast.Expr) -> list[State]:
    if isinstance(node.value, ast.Constant) or run.matters.idle(node):
        return [run.s]
    return [after for after, _ in outcomes(run, node.value)]


def _assign(run: Run, node: ast.Assign | ast.AnnAssign) -> list[State]:
    if run.matters.idle(node):
        return [run.s]
    ends = []
    for state, value in outcomes(run, node.value) if node.value is not None else ():
        run.s = state
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if isinstance(value, v.Opaque) and len(targets) == 1:
            value = given_back(run, targets[0], node.value) or value
        for target in targets:
            assign(run, target, value)
        ends.append(run.s)
    return ends or [run.s]


def _augmented(run: Run, node: ast.AugAssign) -> list[State]:
    if run.matters.idle(node):
        return [run.s]
    operation = ast.BinOp(node.target, node.op, node.value)
    result = run.ev(ast.copy_location(operation, node))
    if isinstance(node.target, ast.Name | ast.Attribute) or v.is_number(result):
        assign(run, node.target, result)
    return [run.s]


def _return(run: Run, node: ast.Return) -> list[State]:
    ends = []
    for state, value in outcomes(run, node.value):
        state.exit, state.result = state.exit or "return", value
        ends.append(state)
    return ends


def _leave(run: Run, node: ast.Break | ast.Continue | ast.Raise) -> list[State]:
    if isinstance(node, ast.Raise) and node.exc is not None:
        run.ev(node.exc)
    run.s.exit = _EXITS[type(node)]
    return [run.s]


def _assert(run: Run, node: ast.Assert) -> list[State]:
    if run.matters.idle(node):
        return [run.s]
    run.ev(node.test)
    assume(run, node.test, True)
    return [run.s]


@_passed_by
def _if(run: Run, node: ast.If) -> list[State]:
    ends = []
    for outcome, state in branches(run, node.test):
        ends += run.block(node.body if outcome else node.orelse, state)
    return ends


@_passed_by
def _for(run: Run, node: ast.For | ast.AsyncFor) -> list[State]:
    over = run.ev(node.iter)
    values = v.elements(over)
    if values is None:
        return _turns(run, node, [run.fresh() for _ in range(3)], node.target, ends=False)
    if isinstance(over, v.Part):
        values = values[:1]
    if len(values) > MOST_TURNS:  # it goes on, and what counts its turns does
        return _turns(run, node, [*values[:MOST_TURNS], run.fresh()], node.target, ends=False)
    return _turns(run, node, values, node.target)


@_passed_by
def _while(run: Run, node: ast.While) -> list[State]:
    if holds(run, run.ev(node.test)) is False:
        return run.block(node.orelse, run.s)
    return _turns(run, node, [None, None, None], None, ends=False)


def _turns(
    run: Run,
    loop: ast.For | ast.AsyncFor | ast.While,
    values: Sequence[v.Value | None],
    target: ast.expr | None,
    *,
    ends: bool = True,
) -> list[State]:
    """Take the turns of a loop; if it may go on, the last is for what counts them, and for nothing else."""
    live, left, broken = [run.s], list[State](), list[State]()
    turn, before = run.turn, None if ends else run.s.copy()
    for number, value in enumerate(values):
        if before is not None and number == len(values) - 1 and not count_on(live, before):
            break
        run.turn = (*turn, loop.body[0], number)
        known, steps = [state.snapshot() for state in live], _done(run)
        after: list[State] = []
        for state in live:
            run.s = state
            if target is not None and value is not None:
                assign(run, target, value)
            for end in run.block(loop.body, run.s):
                stays = {None: after, "continue": after, "break": broken}.get(end.exit, left)
                if stays is not left:
                    end.exit = None
                stays.append(end)
        live = merge(after, run.fresh)
        if steps == _done(run) and known == [state.models for state in live]:
            for state in live:  # the other turns do no more
                run.s = state
                if target is not None:
                    assign(run, target, run.fresh())
            break
    run.turn = turn
    finished = [end for state in live for end in run.block(loop.orelse, state)]
    return merge(finished + broken, run.fresh) + left


def _done(run: Run) -> tuple[int, int]:
    """Count the steps up to now, and what the running function has yielded."""
    return run.judge.steps, len(run.yielded[-1]) if run.yielded else 0


@_passed_by
def _with(run: Run, node: ast.With | ast.AsyncWith) -> list[State]:
    grad, exits = run.s.grad, list[v.Entered]()
    for item in node.items:
        value = enter(run, run.ev(item.context_expr))
        if isinstance(value, v.Entered):
            exits.append(value)
            value = value.value
        elif isinstance(value, v.Sort) and value.name in GRAD_MODES.values():
            run.s.grad = (*run.s.grad, value.name)
        if item.optional_vars is not None:
            assign(run, item.optional_vars, value)
    if any(last_name(item.context_expr) in _RAISES for item in node.items):
        before = run.s.copy()
        run.s.muted += 1
        run.block(node.body, run.s)
        return [before]
    ends = run.block(node.body, run.s)
    for entered in reversed(exits):
        ends = [end for state in ends for end in leave(run, entered, state)]
    for end in ends:
        end.grad = grad
    return ends


@_passed_by
def _try(run: Run, node: ast.Try) -> list[State]:
    before = run.s.copy()
    if node.handlers:
        guard(run, run.s, node, True)
        guard(run, before, node, False)
    ends = []
    for end in run.block(node.body, run.s):
        ends += [end] if end.exit else run.block(node.orelse, end)
    for handler in node.handlers:
        state = before.copy()
        state.muted += 1
        if handler.name:
            state.frames[-1].bind(handler.name, run.fresh())
        for end in run.block(handler.body, state):
            end.muted -= 1
            ends.append(end)
    finished: list[State] = []
    for end in merge(ends, run.fresh):
        exit_, result = end.exit, end.result
        end.exit = end.result = None
        for last in run.block(node.finalbody, end):
            if last.exit is None:
                last.exit, last.result = exit_, result
            finished.append(last)
    return finished


@_passed_by
def _match(run: Run, node: ast.Match) -> list[State]:
    subject = ast.Name(f"subject of line {node.lineno}", ast.Load())
    run.s.frames[-1].bind(subject.id, run.ev(node.subject))
    live, ends = [run.s], list[State]()
    for case in node.cases:
        test = matches(subject, case.pattern)
        after: list[State] = []
        for state in live:
            run.s = state
            for outcome, path in branches(run, test) if test is not None else [(True, state)]:
                if not outcome:
                    after.append(path)
                    continue
                for name in captured(case.pattern):
                    path.frames[-1].bind(name, run.fresh())
                run.s = path
                for fits, end in branches(run, case.guard) if case.guard else [(True, path)]:
                    if fits:
                        ends += run.block(case.body, end)
                    else:
                        after.append(end)
        live = merge(after, run.fresh)
    return live + ends


def _import(run: Run, node: ast.Import | ast.ImportFrom) -> list[State]:
    frame = run.s.frames[-1]
    for name, qualified in imported(node):
        frame.bind(name, v.Ref(qualified))
    for name, home, inner in run.bindings.get(node, ()):
        if name == "*":
            for each, value in run.s.frames[home].names.items():
                frame.bind(each, value)
            continue
        value = run.s.frames[home].names.get(inner) if inner else v.Module(home, name)
        if value is not None:
            frame.bind(name, value)
    return [run.s]


def _declare(run: Run, node: ast.Global | ast.Nonlocal) -> list[State]:
    frame = run.s.frames[-1]
    home = frame.home if isinstance(node, ast.Global) else max(frame.parent, 0)
    frame.outer |= dict.fromkeys(node.names, home)
    return [run.s]


def _function(run: Run, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[State]:
    run.here(node)
    func = v.Func(node, None, len(run.s.frames) - 1, _compiler(run, node))
    func = decorated(run, func, node.decorator_list)
    register(run, func)
    run.s.frames[-1].bind(node.name, func)
    if (name := fixture_name(node)) is not None:
        run.s.frames[-1].bind(key(name), func)
    if run.defined:
        run.define(func)
    return [run.s]


def _compiler(run: Run, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST | None:
    """Return the decorator that compiles a function."""
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if run.ev(called) in (v.Ref("torch.compile"), v.Ref("torch._dynamo.optimize")):
            return decorator
    return None


def _class(run: Run, node: ast.ClassDef) -> list[State]:
    cls = v.Class(run.fresh().oid, node, tuple(run.ev(base) for base in node.bases))
    own: dict[str, v.Value] = {}
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            run.here(child)
            compiler = _compiler(run, child)
            func = v.Func(child, None, len(run.s.frames) - 1, compiler)
            func = decorated(run, func, child.decorator_list)
            run.s.put((cls.oid, child.name), func)
            if (name := fixture_name(child)) is not None:
                run.s.put((cls.oid, key(name)), func)
        elif isinstance(child, ast.Assign | ast.AnnAssign) and child.value:
            target = child.targets[0] if isinstance(child, ast.Assign) else child.target
            if isinstance(target, ast.Name):
                run.s.frames.append(Frame(len(run.s.frames) - 1, Table(own), home=run.home))
                own[target.id] = run.ev(child.value)
                run.s.frames.pop()
                member = member_of(run, cls, target.id, own[target.id])
                run.s.put((cls.oid, target.id), member or own[target.id])
    run.s.frames[-1].bind(node.name, cls)
    return [run.s]


def _delete(run: Run, node: ast.Delete) -> list[State]:
    for target in node.targets:
        if isinstance(target, ast.Name):
            assign(run, target, v.Const(None))
    return [run.s]


STATEMENTS: dict[type[ast.AST], Callable[[Run, Any], list[State]]] = {
    ast.AnnAssign: _assign,
    ast.Assert: _assert,
    ast.Assign: _assign,
    ast.AsyncFor: _for,
    ast.AsyncFunctionDef: _function,
    ast.AsyncWith: _with,
    ast.AugAssign: _augmented,
    ast.Break: _leave,
    ast.ClassDef: _class,
    ast.Continue: _leave,
    ast.Delete: _delete,
    ast.Expr: _expression,
    ast.For: _for,
    ast.FunctionDef: _function,
    ast.Global: _declare,
    ast.If: _if,
    ast.Import: _import,
    ast.ImportFrom: _import,
    ast.Match: _match,
    ast.Nonlocal: _declare,
    ast.Raise: _leave,
    ast.Return: _return,
    ast.Try: _try,
    ast.TryStar: _try,
    ast.While: _while,
    ast.With: _with,
}
