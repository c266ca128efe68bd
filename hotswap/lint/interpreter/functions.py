"""The program's own functions and classes, called by executing their bodies."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.closures import closed, enclose, keep
from hotswap.lint.interpreter.conditions import assume_something, is_among
from hotswap.lint.interpreter.enums import values_of
from hotswap.lint.interpreter.fixtures import fixture, not_asked_for
from hotswap.lint.interpreter.managers import split_at_yield
from hotswap.lint.interpreter.objects import (
    class_of,
    last_name,
    line_of,
    narrow,
    read_attribute,
    reveal,
    web_app,
)
from hotswap.lint.interpreter.run import GRAD_MODES, Run
from hotswap.lint.interpreter.state import Frame, State, Table, merge, reachable

DEEPEST = 8
_ROUTES = frozenset({"api_route", "delete", "get", "patch", "post", "put", "route", "websocket"})
DEPENDS = v.Ref("fastapi.Depends")
PROVIDERS = "dependency_injector.providers."


def inline(run: Run, func: v.Func, args: v.Args, *, entry: bool = False) -> list[State]:
    """Call a function of this file by executing its body; as an ``entry``, without what comes of nothing."""
    node = func.node
    run.executed.add(node)
    if ("dispatch", node) in run.s.heap and args.positional:
        return _dispatched(run, func, args)
    if func.around is not None:
        first = [] if func.owner is None else [func.owner]
        return run.invoke(func.around, replace(args, positional=[*first, *args.positional]))
    same = any(node is other and func.cell is None for other, _ in run.running)
    if len(run.running) >= DEEPEST or same:
        for value in args.all():
            reveal(run, value)
        return run.done(run.fresh())
    parent = min(func.frame, len(run.s.frames) - 1)
    own = run.s.frames[parent].home
    if run.modules[own].negligible(node):
        return run.done(run.fresh())
    marks = [] if isinstance(node, ast.Lambda) else [last_name(d) for d in node.decorator_list]
    memo: Any = None
    if any("cache" in mark for mark in marks):
        memo = ("memo", node, tuple(v.key_of(each) for each in args.positional))
        if memo in run.s.heap:
            return run.done(run.s.heap[memo])
    grad, depth, turn, compiler = run.s.grad, len(run.s.frames), run.turn, run.s.compiler
    run.s.compiler = func.compiler or compiler
    run.s.grad = (*grad, *(GRAD_MODES[mark] for mark in marks if mark in GRAD_MODES))
    home = run.home
    if func.cell is not None:
        parent = enclose(run.s, func.cell, parent, own)
    at = len(run.s.frames)
    run.s.frames.append(Frame(parent, home=own))
    run.at(own)
    run.s.frames[-1].names = Table(_bound(run, node.args, func, args))
    run.running.append((node, func.owner))
    run.turn = (*turn, args.node)
    run.defined.append([])
    run.yielded.append([])
    manages = not {"contextmanager", "asynccontextmanager", "fixture"}.isdisjoint(marks)
    manages = manages or last_name(args.node) == "fixture"
    body, given, rest = _body(run, node, manages)
    if entry and rest is None:
        body = _without_end(run, node, body)
    ends = run.block(body, run.s)
    _call_later(run, run.defined.pop(), ends)
    yielded = run.yielded.pop()
    run.at(home)
    run.turn = turn
    run.running.pop()
    returned = [end for end in ends if end.exit != "raise"]
    for end in returned or ends[:1]:
        if manages and rest is not None:
            run.s = end
            names = dict(end.frames[at].names)
            end.result = v.Entered(run.ev(given), None, tuple(rest), names, func.frame)
        elif yielded and end.result is None:  # what it goes over, as far as it is known
            end.result = v.Seq(tuple(yielded))
        keep(end, depth)
        end.result = closed(end, end.result, depth, (*turn, args.node))
        del end.frames[depth:]
        end.grad, end.compiler = grad, compiler
        if returned:
            end.exit = None
            if memo is not None and end.result is not None:
                end.put(memo, end.result)
        else:  # it raises on every path: what follows is not reached
            end.result = None
    returned = returned or ends[:1]
    run.s = returned[0]
    return merge(returned, run.fresh)


def _body(
    run: Run, node: v.Function, manages: bool
) -> tuple[list[ast.stmt], ast.expr | None, list[ast.stmt] | None]:
    """Return what a function does; a context manager only enters, and has a value and a rest."""
    if ("body", node) not in run.cache:
        split = None
        if isinstance(node, ast.Lambda):
            body: list[ast.stmt] = [ast.copy_location(ast.Return(node.body), node.body)]
        else:
            body, split = node.body, split_at_yield(node.body) if manages else None
        run.cache["body", node] = split or (body, None, None)
    return run.cache["body", node]  # type: ignore[no-any-return]


def _without_end(run: Run, node: v.Function, body: list[ast.stmt]) -> list[ast.stmt]:
    """Leave out the last statements of a function if they do nothing to models."""
    if ("entry", node) not in run.cache:
        needed = [n for n, statement in enumerate(body, 1) if not run.matters.inert(statement)]
        run.cache["entry", node] = body[: max(needed, default=0)]
    return run.cache["entry", node]  # type: ignore[no-any-return]


def register(run: Run, func: v.Func) -> None:
    """Note what a generic function calls for arguments of a class: ``functools.singledispatch``."""
    spec = func.node.args
    for mark in getattr(func.node, "decorator_list", ()):
        called = mark.func if isinstance(mark, ast.Call) else mark
        generic = (
            run.ev(called.value)
            if last_name(called) == "register" and isinstance(called, ast.Attribute)
            else None
        )
        cls = (
            mark.args[0]
            if isinstance(mark, ast.Call) and mark.args
            else spec.args[0].annotation
            if spec.args
            else None
        )
        if isinstance(generic, v.Func) and cls is not None:
            key = ("dispatch", generic.node)
            known = run.s.heap.get(key) or v.Seq(())
            run.s.put(key, v.Seq((v.Seq((run.ev(cls), func)), *known.items)))


def _dispatched(run: Run, func: v.Func, args: v.Args) -> list[State]:
    """Call what is registered for the class of the first argument, as far as that is known."""
    unknown = False
    for row in run.s.heap["dispatch", func.node].items:
        asked = v.Args(args.node, [args.positional[0], row.items[0]], {})
        fits = v.truth(run.invoke_one(v.Ref("isinstance"), asked))
        if fits:
            return run.invoke(row.items[1], args)
        unknown = unknown or fits is None
    if not unknown:
        run.s.exit = "raise"
    for value in args.all():
        reveal(run, value)
    return run.done(run.fresh())


def decorated(run: Run, func: v.Func, decorators: list[ast.expr]) -> v.Func:
    """Return what the decorators of the program that concern models make of a function."""
    for decorator in reversed(decorators):
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        value = run.ev(called) if isinstance(called, ast.Name | ast.Attribute) else None
        if not isinstance(value, v.Func) or value.node is func.node:
            continue
        if not run.modules[run.foreign.get(value.node, run.main)].touches(value.node):
            continue
        run.decorating += 1
        made = run.ev(decorator) if isinstance(decorator, ast.Call) else value
        call = ast.copy_location(ast.Call(ast.Name("decorator", ast.Load()), [], []), decorator)
        around = run.invoke_one(made, v.Args(call, [func], {})) if made is not None else None
        run.decorating -= 1
        if isinstance(around, v.Func) and around.node is not func.node:
            func = replace(func, around=around)
    return func


def _call_later(run: Run, defined: list[v.Func], ends: list[State]) -> None:
    """Run the functions that a function defined and did not call: somebody calls them afterwards."""
    for func in defined if not run.decorating else ():
        if func.node in run.executed or not run.matters.touches(func.node):
            continue
        for end in [end for end in ends if end.exit != "raise"]:
            state = end.copy()
            state.exit = state.result = None
            run.finish(call_from_outside(run, func, call_from_outside(run, func, [state])))


def call_from_outside(
    run: Run, func: v.Func, paths: list[State], given: Mapping[Any, v.Value] | None = None
) -> list[State]:
    """Call a function on every path, with unknown arguments but for those that are given."""
    call = ast.copy_location(ast.Call(ast.Name("entry"), [], []), func.node)
    ends = []
    for run.s in paths:
        before = run.s.grad
        run.s.grad = before[-1:] if run.grad == "grad" and _is_handler(func.node) else ()
        args = v.Args(call, [], dict(given or {}), starred=True)
        after = inline(run, func, args, entry=True)
        for end in after:
            end.grad = before
        ends += after
    for end in ends:
        _leave_behind(end, [func.owner, end.result])
        end.exit = end.result = None
    return merge(ends, run.fresh)


def _is_handler(node: v.Function) -> bool:
    """Tell whether a web framework calls the function: it does so in the usual gradient mode."""
    marks = [mark for mark in getattr(node, "decorator_list", ()) if isinstance(mark, ast.Call)]
    return any(isinstance(m.func, ast.Attribute) and m.func.attr in _ROUTES for m in marks)


def _leave_behind(state: State, kept: list[v.Value | None]) -> None:
    """Forget what was done at last to a model that nobody can run any more."""
    waiting = {o: f for o, f in state.models.items() if f.deferred and not f.open}
    left = waiting.keys() - (reachable(state, kept) if waiting else set())
    for oid in left:
        deferred = tuple(d for d in waiting[oid].deferred if d.code != "HSW212")
        state.know(oid, replace(waiting[oid], deferred=deferred))


def _bound(run: Run, spec: ast.arguments, func: v.Func, args: v.Args) -> dict[str, v.Value]:
    """Bind a function's parameters."""
    if args.starred and getattr(func.node, "name", "").startswith("test"):
        for used in not_asked_for(run, func):
            given_by(run, used)
    positional = [*spec.posonlyargs, *spec.args]
    values = list(args.positional)
    if func.owner is not None:
        values.insert(0, func.owner)
    elif args.starred and (task := _task_of(run, func.node)):
        values.insert(0, task)
    bound = dict(zip((p.arg for p in positional), values, strict=False))
    defaults = dict(zip(reversed(positional), reversed(spec.defaults), strict=False))
    defaults |= {p: d for p, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if d}
    parameters = {p.arg: p for p in (*positional, *spec.kwonlyargs)}
    bound |= {name: value for name, value in args.keywords.items() if name in parameters}
    if spec.vararg:
        rest = v.Seq(tuple(values[len(positional) :]))
        bound[spec.vararg.arg] = run.fresh() if args.starred else rest
    if spec.kwarg:
        extra = v.Dict({n: each for n, each in args.keywords.items() if n not in parameters})
        bound[spec.kwarg.arg] = run.fresh() if args.starred else extra
    for name, parameter in parameters.items():
        if name not in bound:
            default = defaults.get(parameter)
            given = default is not None and not args.starred
            asked = None if given else fixture(run, func.owner, name)
            if args.starred and asked is None:
                asked = _dependency(run, default, parameter.annotation)
            if asked is not None:
                bound[name] = given_by(run, asked)
            else:
                required = default is None
                value = run.ev(default) if default is not None else run.fresh()
                if given or is_provider(value):
                    bound[name] = provided(run, value, args.node)
                else:
                    bound[name] = _unknown_of(run, parameter, required=required)
    return bound


def is_provider(value: v.Value) -> bool:
    """Tell whether a value is a provider of a container, which makes what is asked for."""
    return (
        isinstance(value, v.Partial)
        and isinstance(value.func, v.Ref)
        and value.func.name.startswith(PROVIDERS)
    )


def provided(run: Run, value: v.Value, node: ast.AST) -> v.Value:
    """Return what a provider makes; anything else is what it is."""
    if not is_provider(value):
        return value
    call = ast.copy_location(ast.Call(ast.Name("provider"), [], []), node)
    return run.invoke_one(value, v.Args(call, [], {}))


def _task_of(run: Run, node: v.Function) -> v.Value | None:
    """Return what a task of celery is bound to: an instance of its class."""
    for mark in getattr(node, "decorator_list", ()):
        keywords = {k.arg: k.value for k in mark.keywords} if isinstance(mark, ast.Call) else {}
        cls = run.ev(keywords["base"]) if {"base", "bind"} <= keywords.keys() else None
        if isinstance(cls, v.Class):
            call = ast.copy_location(ast.Call(ast.Name("task"), [], []), mark)
            return run.invoke_one(cls, v.Args(call, [], {}))
    return None


def _dependency(run: Run, *written: ast.expr | None) -> v.Func | None:
    """Return the function that makes what a web framework gives to a parameter."""
    for node in written:
        value = run.ev(node) if isinstance(node, ast.Call | ast.Name | ast.Subscript) else None
        for each in value.items if isinstance(value, v.Seq) else (value,):
            if isinstance(each, v.Partial) and each.func == DEPENDS and each.args:
                return each.args[0] if isinstance(each.args[0], v.Func) else None
    return None


def given_by(run: Run, asked: v.Func) -> v.Value:
    """Return what a fixture makes, once for each test."""
    memo = ("fixture", asked.node, run.turn[:2])
    if memo not in run.s.heap:
        call = ast.copy_location(ast.Call(ast.Name("fixture"), [], []), asked.node)
        made = run.invoke_one(asked, v.Args(call, [], {}, starred=True))
        run.s.put(memo, made.value if isinstance(made, v.Entered) else made)
    return run.known(run.s.heap[memo])


def _unknown_of(run: Run, parameter: ast.arg, *, required: bool) -> v.Value:
    annotation = parameter.annotation
    value = run.handed(parameter.arg) if run.matters.fills(parameter.arg) else run.fresh()
    if isinstance(annotation, ast.Name) and annotation.id == "float":
        return v.NUMBER
    if parameter.arg == "app" and (app := web_app(run)) is not None:
        return app  # of a hook of a web framework
    if parameter.arg == "state" and (app := run.s.heap.get("web app")) is not None:
        return read_attribute(run, app, "state")
    if required and (annotation is None or isinstance(annotation, ast.Name)):
        assume_something(run, value)
    if not isinstance(annotation, ast.Name | ast.Attribute | ast.Subscript):
        return value
    cls = run.ev(annotation)
    if isinstance(cls, v.Seq):
        is_among(run, value, cls)
    elif isinstance(cls, v.Class) and isinstance(value, v.Opaque):
        is_among(run, run.memo((value.oid, "value")), values_of(run, cls))
    return value if isinstance(annotation, ast.Subscript) else narrow(run, value, cls)


def inherited(run: Run, name: str) -> v.Func | None:
    """Return the method that ``super().name`` stands for in the method that is running."""
    node, owner = run.running[-1] if run.running else (None, None)
    cls = class_of(run, owner)
    line = line_of(cls) if cls is not None else []
    defines = [i for i, c in enumerate(line) if node in c.node.body]
    for base in line[defines[0] + 1 :] if defines else ():
        found = run.s.heap.get((base.oid, name))
        if isinstance(found, v.Func):
            return replace(found, owner=owner)
    return None
