"""Calls: of attributes, models, libraries, and of the unknown."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from hotswap.lint.interpreter.containers import container_method
from hotswap.lint.interpreter.functions import inherited, inline, instantiate, is_module, make
from hotswap.lint.interpreter.names import HARMLESS, OBSERVES
from hotswap.lint.interpreter.objects import become, last_name, read_attribute, reveal
from hotswap.lint.interpreter.run import Run
from hotswap.lint.interpreter.state import State
from hotswap.lint.interpreter.values import (
    Args,
    Class,
    Const,
    Dict,
    Func,
    GradMode,
    Method,
    Number,
    Obj,
    Opaque,
    Part,
    Partial,
    Ref,
    Seq,
    Tensor,
    Value,
)
from hotswap.lint.typestate import Shape

_CALLS_ITS_ARGUMENT = {
    "run_in_executor": 1,
    "run_in_threadpool": 0,
    "run_sync": 0,
    "submit": 0,
    "to_thread": 0,
}
"""Functions that call a function they are given, and which of their arguments that is."""
_FACTORIES = ("from_pretrained", "from_single_file", "from_pipe")


def call(run: Run, node: ast.Call) -> list[State]:
    """Evaluate a call; each outcome is a state with its ``result``."""
    func = node.func
    if not isinstance(func, ast.Attribute):
        args = arguments(run, node)
        return run.invoke(run.ev(func), args)
    if last_name(func.value) == "super" and (method := inherited(run, func.attr)):
        return inline(run, method, arguments(run, node))
    owner = run.ev(func.value)
    args = arguments(run, node)
    return _call_attribute(run, run.known(owner), func.attr, args)


def arguments(run: Run, node: ast.Call) -> Args:
    """Evaluate the arguments of a call."""
    args = Args(node, [], {})
    for given in node.args:
        value = run.ev(given.value if isinstance(given, ast.Starred) else given)
        if not isinstance(given, ast.Starred):
            args.positional.append(value)
        elif isinstance(value, Seq):
            args.positional += value.items
        else:
            args.starred = True
    for keyword in node.keywords:
        value = run.ev(keyword.value)
        if keyword.arg is not None:
            args.keywords[keyword.arg] = value
        elif isinstance(value, Dict):
            args.keywords |= {str(k): v for k, v in value.items.items()}
        else:
            args.starred = True
    return args


def _call_attribute(run: Run, owner: Value, name: str, args: Args) -> list[State]:
    """Call ``owner.name(...)``."""
    if isinstance(owner, Class) and name in _FACTORIES:
        made = make(run, owner, args)
        if made is not None:
            return run.done(made)
    if isinstance(owner, Opaque) and (kind := run.library.kind_with(name, args)):
        owner = become(run, owner, kind) or owner
    if isinstance(owner, Seq | Dict | Const | Number | Tensor):
        return run.done(container_method(run, owner, name, args))
    target = read_attribute(run, owner, name)
    if isinstance(owner, Obj) and not isinstance(target, Func):
        model = run.facts(owner).kind != "instance"
        if model or is_module(run, owner) or run.library.kind_with(name, args):
            result = run.library.method(run, owner, name, args)
            if model or result is not None:
                return run.done(result if result is not None else run.fresh())
    return run.invoke(target, args)


def _call_model(run: Run, obj: Obj, args: Args) -> list[State]:
    if run.facts(obj).kind == "instance":
        for name in ("__call__", "forward"):
            target = read_attribute(run, obj, name)
            if isinstance(target, Func):
                if run.facts(obj).compiled:
                    run.library.call(run, obj, args.node)
                return inline(run, target, args)
    run.library.call(run, obj, args.node)
    return run.done(run.fresh())


def _call_inside(run: Run, part: Part, args: Args) -> list[State]:
    result = run.library.method_inside(run, part, args)
    return run.done(result if result is not None else run.fresh())


def _call_partial(run: Run, partial: Partial, args: Args) -> list[State]:
    positional = [*partial.args, *args.positional]
    keywords = {**partial.keywords, **args.keywords}
    return run.invoke(partial.func, Args(args.node, positional, keywords, args.starred))


def _call_imported(run: Run, ref: Ref, args: Args) -> list[State]:
    result = run.library.function(run, ref.name, args)
    return run.done(result) if result is not None else _call_unknown(run, ref, args)


def _call_unknown(run: Run, func: Value, args: Args) -> list[State]:
    """Call something that is not in this file: it may do anything to the models it is given."""
    name = func.name.rpartition(".")[2] if isinstance(func, Ref) else last_name(args.node)
    if name == "Thread":
        given = args.get(None, "args")
        rest = list(given.items) if isinstance(given, Seq) else []
        _call_argument(run, args.get(None, "target"), Args(args.node, rest, {}))
    elif name in _CALLS_ITS_ARGUMENT:
        index = _CALLS_ITS_ARGUMENT[name]
        rest = args.positional[index + 1 :]
        _call_argument(run, args.get(index, "func"), Args(args.node, rest, args.keywords))
    harmless = isinstance(func, Ref) and func.name.split(".")[0] in HARMLESS
    if not harmless and not OBSERVES.match(name):
        for value in args.all():
            reveal(run, value)
    return run.done(run.fresh())


def _call_argument(run: Run, target: Value | None, args: Args) -> None:
    if isinstance(target, Func | Part | Partial | Obj):
        run.invoke_one(target, args)


CALLABLES: dict[type[Any], Callable[[Run, Any, Args], list[State]]] = {
    **dict.fromkeys(
        (Const, Dict, GradMode, Method, Number, Opaque, Seq, Shape, Tensor), _call_unknown
    ),
    Class: instantiate,
    Func: inline,
    Obj: _call_model,
    Part: _call_inside,
    Partial: _call_partial,
    Ref: _call_imported,
}
