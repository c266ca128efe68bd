"""The program's own functions and classes, called by executing their bodies."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.conditions import assume_something
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
FIELD = v.Ref("dataclasses.field")
DEPENDS = v.Ref("fastapi.Depends")
AFTER_INIT = ("__post_init__", "__attrs_post_init__", "model_post_init")
"""What dataclasses, attrs and pydantic call once the fields are set."""


def inline(run: Run, func: v.Func, args: v.Args, *, entry: bool = False) -> list[State]:
    """Call a function of this file by executing its body; as an ``entry``, without what comes of nothing."""
    node = func.node
    run.executed.add(node)
    if len(run.running) >= DEEPEST or any(node is other for other, _ in run.running):
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
            names = dict(end.frames[depth].names)
            end.result = v.Entered(run.ev(given), None, tuple(rest), names, func.frame)
        elif yielded and end.result is None:  # what it goes over, as far as it is known
            end.result = v.Seq(tuple(yielded))
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


def _call_later(run: Run, defined: list[v.Func], ends: list[State]) -> None:
    """Run the functions that a function defined and did not call: somebody calls them afterwards."""
    for func in defined:
        if func.node in run.executed or not run.matters.touches(func.node):
            continue
        for end in [end for end in ends if end.exit != "raise"]:
            state = end.copy()
            state.exit = state.result = None
            run.finish(call_from_outside(run, func, call_from_outside(run, func, [state])))


def call_from_outside(run: Run, func: v.Func, paths: list[State]) -> list[State]:
    """Call a function with unknown arguments on every path."""
    call = ast.copy_location(ast.Call(ast.Name("entry"), [], []), func.node)
    ends = []
    for run.s in paths:
        run.s.grad = ()
        ends += inline(run, func, v.Args(call, [], {}, starred=True), entry=True)
    for end in ends:
        _leave_behind(end, [func.owner, end.result])
        end.exit = end.result = None
    return merge(ends, run.fresh)


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
                bound[name] = (
                    run.ev(default) if given else _unknown_of(run, parameter, required=required)
                )
    return bound


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
    named = isinstance(annotation, ast.Name | ast.Attribute)
    return narrow(run, value, run.ev(annotation)) if named else value


def instantiate(run: Run, cls: v.Class, args: v.Args) -> list[State]:
    """Create an instance of a class of this file."""
    made = make(run, cls, args)
    if isinstance(made, v.Obj):
        return run.done(made)
    obj = run.new("instance")
    run.s.put((obj.oid, "__class__"), cls)
    init = read_attribute(run, obj, "__init__")
    if isinstance(init, v.Func):
        ends = inline(run, init, args)
    else:
        given = dict(zip(_fields(cls), args.positional, strict=False)) | args.keywords
        for name, value in given.items():
            run.s.put((obj.oid, name), value)
        make_fields(run, obj, cls)
        ends = [run.s]
        for name in AFTER_INIT:
            after = read_attribute(run, obj, name)
            if isinstance(after, v.Func):
                ends = inline(run, after, v.Args(args.node, [], {}, starred=True))
    for end in ends:
        end.result = obj
    return ends


def make_fields(run: Run, obj: v.Obj, cls: v.Class) -> None:
    """Make what the fields of a dataclass have that are not given."""
    for name in _fields(cls):
        made = (run.s.heap.get((each.oid, name)) for each in line_of(cls))
        field = next((each for each in made if each is not None), None)
        if (
            isinstance(field, v.Partial)
            and field.func == FIELD
            and (obj.oid, name) not in run.s.heap
        ):
            factory = field.keywords.get("default_factory")
            none = v.Args(ast.copy_location(ast.Call(ast.Name("field"), [], []), cls.node), [], {})
            default = field.keywords.get("default") or run.fresh()
            value = default if factory is None else run.invoke_one(factory, none)
            run.s.put((obj.oid, name), value)


def _fields(cls: v.Class) -> list[str]:
    """Return the fields of a dataclass or named tuple, in order."""
    bodies = [statement for each in reversed(line_of(cls)) for statement in each.node.body]
    targets = [s.target for s in bodies if isinstance(s, ast.AnnAssign)]
    return list(dict.fromkeys(t.id for t in targets if isinstance(t, ast.Name)))


def make(run: Run, cls: v.Class, args: v.Args) -> v.Value | None:
    """Create a model of a class of this file that derives from a class of models of a library."""
    for base in cls.bases:
        made = None
        if isinstance(base, v.Ref) and not base.name.endswith(".Module"):
            made = run.language.make(run, base.name, args)
        if isinstance(made, v.Obj):
            run.s.put((made.oid, "__class__"), cls)
        if made is not None:
            return made
    return None


def is_module(run: Run, obj: v.Obj) -> bool:
    """Tell whether the object is an instance of a class of this file that derives from a ``Module``."""
    cls = class_of(run, obj)
    return cls is not None and any(last_name(base) == "Module" for base in cls.node.bases)


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
