"""Calls: of attributes, containers, models, and of the unknown."""

from __future__ import annotations

import ast
import itertools
from dataclasses import replace

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.assign import mutate
from hotswap.lint.interpreter.enums import instance_of
from hotswap.lint.interpreter.fixtures import fixture
from hotswap.lint.interpreter.functions import given_by, inherited, inline
from hotswap.lint.interpreter.instances import instantiate, is_module, make
from hotswap.lint.interpreter.managers import enter
from hotswap.lint.interpreter.names import (
    CALLS_ITS_ARGUMENT,
    FACTORIES,
    HARMLESS,
    MUTATES,
    OBSERVES,
    PUTS,
    TAKES,
)
from hotswap.lint.interpreter.objects import (
    become,
    changed,
    component,
    last_name,
    read_attribute,
    reveal,
)
from hotswap.lint.interpreter.run import Callables, Run
from hotswap.lint.interpreter.state import State
from hotswap.lint.typestate import Facts, Shape

_CALLABLE = v.Class | v.Func | v.Obj | v.Part | v.Partial | v.Ref


def call(run: Run, node: ast.Call, owner: v.Value | None = None) -> list[State]:
    """Evaluate a call, of a method of ``owner`` if that is known; each outcome has its ``result``."""
    func = node.func
    if not isinstance(func, ast.Attribute):
        args = arguments(run, node)
        return run.invoke(run.ev(func), args)
    if last_name(func.value) == "super" and (method := inherited(run, func.attr)):
        return inline(run, method, arguments(run, node))
    if func.attr == "__new__" and last_name(func.value) in ("super", "object"):
        cls = run.ev(node.args[0]) if node.args else None
        return run.done(instance_of(run, cls) if isinstance(cls, v.Class) else run.fresh())
    owner = run.ev(func.value) if owner is None else owner
    args = arguments(run, node)
    return _call_attribute(run, run.known(owner), func.attr, args)


def arguments(run: Run, node: ast.Call) -> v.Args:
    """Evaluate the arguments of a call."""
    args = v.Args(node, [], {})
    run.here(node)
    for given in node.args:
        value = run.ev(given.value if isinstance(given, ast.Starred) else given)
        if not isinstance(given, ast.Starred):
            args.positional.append(value)
        elif isinstance(value, v.Seq):
            args.positional += value.items
        else:
            args.starred = True
    for keyword in node.keywords:
        value = run.ev(keyword.value)
        if keyword.arg is not None:
            args.keywords[keyword.arg] = value
        elif isinstance(value, v.Dict):
            args.keywords |= {str(k): each for k, each in value.items.items()}
        else:
            args.starred = True
    for value in args.all():
        if isinstance(value, v.Func) and isinstance(value.node, ast.Lambda):
            run.define(value)
    return args


def _call_attribute(run: Run, owner: v.Value, name: str, args: v.Args) -> list[State]:
    """Call ``owner.name(...)``."""
    if isinstance(owner, v.Class) and name in FACTORIES:
        made = make(run, owner, args)
        if made is not None:
            return run.done(made)
    if isinstance(owner, v.Opaque) and (kind := run.language.kind_with(name, args)):
        owner = become(run, owner, kind) or owner
    if isinstance(owner, v.Seq | v.Dict | v.Const):
        return run.done(_container_method(run, owner, name, args))
    if (kept := _kept_in(run, owner, name, args)) is not None:
        return run.done(kept)
    if name == "_replace" and isinstance(owner, v.Obj):
        return run.done(changed(run, owner, args.keywords))
    target = read_attribute(run, owner, name)
    forwarded = isinstance(target, v.Part) and target.owner != owner
    if isinstance(owner, v.Obj) and not (forwarded or isinstance(target, v.Func | v.Obj)):
        model = run.facts(owner).kind != "instance" or is_module(run, owner)
        if model or run.language.kind_with(name, args):
            target = v.Part(owner, name)
    return run.invoke(target, args)


def _kept_in(run: Run, owner: v.Value, name: str, args: v.Args) -> v.Value | None:
    """Put a model into a queue, a variable of a context or the like, or take the last one out of it."""
    if not isinstance(owner, v.Opaque):
        return None
    place = (owner.oid, "kept")
    given = args.positional[0] if args.positional else None
    if name in PUTS and isinstance(given, v.Obj):
        inside = run.s.heap.get(place)
        alike = not isinstance(inside, v.Obj) or _facts(run, inside) == _facts(run, given)
        run.s.put(place, given if alike else run.fresh())
        return run.fresh()
    return run.s.heap.get(place) if name in TAKES and v.text_of(given) is None else None


def _facts(run: Run, obj: v.Obj) -> Facts:
    """Return what is known of a model: of a pipeline, of its denoiser."""
    facts = run.facts(obj)
    return run.facts(component(run, obj, "transformer")) if facts.kind == "pipeline" else facts


def _container_method(run: Run, owner: v.Value, name: str, args: v.Args) -> v.Value:
    """Call a method of a container; what changes it in place changes what its name is bound to."""
    func = args.node.func
    holder = func.value if isinstance(func, ast.Attribute) else None
    held = holder if isinstance(holder, ast.Name | ast.Attribute) else None
    if isinstance(owner, v.Seq) and name == "append" and args.positional:
        if held is not None:
            mutate(run, held, v.Seq((*owner.items, args.positional[0])))
        return v.Const(None)
    if isinstance(owner, v.Seq) and name == "pop" and owner.items and held is not None:
        at = v.whole_of(args.positional[0]) if args.positional else -1
        if at in (0, -1):
            rest = owner.items[1:] if at == 0 else owner.items[:-1]
            mutate(run, held, v.Seq(rest))
            return owner.items[at]
    if isinstance(owner, v.Dict):
        if name == "values":
            return v.Seq(tuple(owner.items.values()))
        if name == "keys":
            return v.Seq(tuple(v.Const(key) for key in owner.items))
        if name == "items":
            return v.Seq(tuple(v.Seq((v.Const(k), each)) for k, each in owner.items.items()))
        if name == "get" and args.positional and isinstance(args.positional[0], v.Const):
            default = args.positional[1] if len(args.positional) > 1 else v.Const(None)
            return owner.items.get(args.positional[0].value, default)
        if name == "setdefault" and len(args.positional) == 2 and held is not None:
            key, value = args.positional
            if isinstance(key, v.Const):
                mutate(run, held, v.Dict({key.value: value, **owner.items}))
                return owner.items.get(key.value, value)
        given = args.positional[0] if args.positional else v.Dict({})
        if name == "update" and held is not None and isinstance(given, v.Dict) and not args.starred:
            mutate(run, held, v.Dict({**owner.items, **given.items, **args.keywords}))
            return v.Const(None)
    if name in MUTATES and held is not None:
        mutate(run, held, run.fresh())
    return run.fresh()


def _call_object(run: Run, obj: v.Obj, args: v.Args) -> list[State]:
    model = v.Part(obj, "__call__")
    if run.facts(obj).kind == "instance":
        for name in ("__call__", "forward"):
            target = read_attribute(run, obj, name)
            if isinstance(target, v.Func):
                compiled = run.facts(obj).compiled
                if compiled is not None:
                    run.invoke(model, args)
                    target = replace(target, compiler=compiled.where)
                if name == "forward" and not run.modules[
                    run.foreign.get(target.node, run.main)
                ].touches(target.node):
                    break  # it computes, and calls no model
                return inline(run, target, args)
    return run.invoke(model, args)


def _call_partial(run: Run, partial: v.Partial, args: v.Args) -> list[State]:
    positional = [*partial.args, *args.positional]
    keywords = {**partial.keywords, **args.keywords}
    return run.invoke(partial.func, v.Args(args.node, positional, keywords, args.starred))


def _given_to_instances(run: Run, value: v.Value) -> None:
    """Note what stands beside a class in a table: what its instances are initialised with."""
    rows = value.items if isinstance(value, v.Seq) else ()
    for row in rows:
        inside = row.items if isinstance(row, v.Seq) else ()
        for cls, given in itertools.pairwise(inside):
            if isinstance(cls, v.Class) and isinstance(given, v.Dict):
                run.s.put((cls.oid, "initialize()"), given)


def call_unknown(run: Run, func: v.Value, args: v.Args) -> list[State]:
    """Call something that is not in this file: it may do anything to the models it is given."""
    name = func.name.rpartition(".")[2] if isinstance(func, v.Ref) else last_name(args.node)
    if name == "Thread":
        given = args.get(None, "args")
        rest = list(given.items) if isinstance(given, v.Seq) else []
        keywords = args.get(None, "kwargs")
        named = (
            {str(k): e for k, e in keywords.items.items()} if isinstance(keywords, v.Dict) else {}
        )
        if isinstance(target := args.get(None, "target"), _CALLABLE):
            run.invoke_one(target, v.Args(args.node, rest, named))
    elif name == "getfixturevalue" and run.running:
        asked = fixture(run, run.running[-1][1], v.text_of(args.get(0, "argname")) or "")
        if asked is not None:
            return run.done(given_by(run, asked))
    elif name in ("enter_context", "enter_async_context") and args.positional:
        entered = enter(run, args.positional[0])
        return run.done(entered.value if isinstance(entered, v.Entered) else entered)
    elif name in CALLS_ITS_ARGUMENT:
        index = CALLS_ITS_ARGUMENT[name]
        rest = args.positional[index + 1 :]
        target = args.get(index, "func")
        if isinstance(target, _CALLABLE):
            return run.invoke(target, v.Args(args.node, rest, args.keywords))
    result = run.fresh()
    for each in args.all():
        _given_to_instances(run, each)
        if isinstance(each, v.Class) and any(
            isinstance(base, v.Ref) and base.name.endswith("RequestHandler") for base in each.bases
        ):  # the server that a handler of its requests is given
            owner = run.running[-1][1] if name == "__init__" and run.running else None
            run.s.put((each.oid, "server"), owner or result)
    harmless = isinstance(func, v.Ref) and func.name.split(".")[0] in HARMLESS
    if not harmless and not OBSERVES.match(name):
        for value in args.all():
            reveal(run, value)
    return run.done(result)


CALLABLES: Callables = {
    **dict.fromkeys(
        (v.AtLeast, v.Const, v.Dict, v.Module, v.Opaque, v.Seq, v.Sort, Shape), call_unknown
    ),
    v.Class: instantiate,
    v.Func: inline,
    v.Obj: _call_object,
    v.Partial: _call_partial,
}
"""How each kind of value is called that is no library's."""
