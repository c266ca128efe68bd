"""Context managers: what happens when a ``with`` block is entered and left."""

from __future__ import annotations

import ast

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.objects import read_attribute
from hotswap.lint.interpreter.run import Run
from hotswap.lint.interpreter.state import Frame, State, Table

Split = tuple[list[ast.stmt], ast.expr | None, list[ast.stmt]]


def split_at_yield(body: list[ast.stmt]) -> Split | None:
    """Return what a generator does before its yield, what it yields, and what it does afterwards."""
    for index, statement in enumerate(body):
        before, after = body[:index], body[index + 1 :]
        if isinstance(statement, ast.Expr | ast.Assign) and isinstance(statement.value, ast.Yield):
            return before, statement.value.value, after
        if isinstance(statement, ast.Try) and (inner := split_at_yield(statement.body)):
            return before + inner[0], inner[1], [*inner[2], *statement.finalbody, *after]
        if isinstance(statement, ast.With | ast.AsyncWith) and (
            inner := split_at_yield(statement.body)
        ):
            entered = [
                ast.copy_location(ast.Assign([item.optional_vars], item.context_expr), statement)
                for item in statement.items
                if item.optional_vars
            ]
            return [*before, *entered, *inner[0]], inner[1], inner[2] + after
    return None


def enter(run: Run, manager: v.Value) -> v.Value:
    """Enter a context manager; an instance of a class of the program runs its ``__enter__``."""
    for name in ("__enter__", "__aenter__") if isinstance(manager, v.Obj) else ():
        method = read_attribute(run, manager, name)
        if isinstance(method, v.Func):
            value = run.invoke_one(method, _no_arguments(method.node))
            return v.Entered(value, read_attribute(run, manager, name.replace("enter", "exit")))
    return manager


def leave(run: Run, entered: v.Entered, state: State) -> list[State]:
    """Leave a context manager on a path; what it does then is done however the block ends."""
    run.s = state
    exit_, result, state.exit = state.exit, state.result, None
    if isinstance(entered.exit, v.Func):
        ends = run.invoke(entered.exit, _no_arguments(entered.exit.node))
    elif entered.rest:
        depth = len(state.frames)
        parent = min(entered.frame, depth - 1)
        home, own = run.home, state.frames[parent].home
        state.frames.append(Frame(parent, Table(entered.names), home=own))
        run.at(own)
        ends = run.block(list(entered.rest), state)
        run.at(home)
        for end in ends:
            del end.frames[depth:]
    else:
        ends = [state]
    for end in ends:
        end.exit, end.result = exit_, result
    return ends


def _no_arguments(node: ast.AST) -> v.Args:
    call = ast.copy_location(ast.Call(ast.Name("manager", ast.Load()), [], []), node)
    return v.Args(call, [], {}, starred=True)
