"""Instances of the program's classes: how they are made, and what their fields are."""

from __future__ import annotations

import ast
from dataclasses import replace

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.enums import instance_of, is_enum
from hotswap.lint.interpreter.functions import inline
from hotswap.lint.interpreter.objects import FIELDS, class_of, last_name, line_of, read_attribute
from hotswap.lint.interpreter.run import Run
from hotswap.lint.interpreter.state import State

FIELD = v.Ref("dataclasses.field")
AFTER_INIT = ("__post_init__", "__attrs_post_init__", "model_post_init")
"""What dataclasses, attrs and pydantic call once the fields are set."""


def instantiate(run: Run, cls: v.Class, args: v.Args) -> list[State]:
    """Create an instance of a class of this file."""
    made = make(run, cls, args)
    if isinstance(made, v.Obj):
        return run.done(made)
    if is_enum(cls):  # one of its members
        return run.done(run.fresh())
    only = ("the instance of", cls.oid)
    if only in run.s.heap:
        return run.done(run.s.heap[only])
    new = read_attribute(run, cls, "__new__")
    if isinstance(new, v.Func):
        ends = []
        for end in inline(run, replace(new, owner=cls), args):
            run.s, obj = end, end.result
            made = obj if isinstance(obj, v.Obj) and class_of(run, obj) == cls else None
            ends += _initialised(run, made or instance_of(run, cls), cls, args)
        return ends
    obj = instance_of(run, cls)
    if _is_single(run, cls):
        run.s.put(only, obj)
    return _initialised(run, obj, cls, args)


def _is_single(run: Run, cls: v.Class) -> bool:
    """Tell whether there is one instance of a class: its metaclass, or a decorator, keeps it."""
    for each in line_of(cls):
        marks = [*each.node.decorator_list, *(k.value for k in each.node.keywords)]
        if any("singleton" in last_name(mark).lower() for mark in marks):
            return True
        for mark in (k.value for k in each.node.keywords if k.arg == "metaclass"):
            meta = run.ev(mark)
            if isinstance(meta, v.Class) and any(
                isinstance(n, ast.FunctionDef) and n.name == "__call__" for n in meta.node.body
            ):
                return True
    return False


def _initialised(run: Run, obj: v.Obj, cls: v.Class, args: v.Args) -> list[State]:
    init = read_attribute(run, obj, "__init__")
    if isinstance(init, v.Func):
        ends = inline(run, init, args)
    else:
        given = dict(zip(_fields(cls), args.positional, strict=False)) | args.keywords
        for name, value in given.items():
            run.s.put((obj.oid, name), value)
        make_fields(run, obj, cls)
        if any(last_name(base) == "NamedTuple" for base in cls.node.bases):
            names = tuple(v.Const(name) for name in _fields(cls))
            run.s.put((obj.oid, FIELDS), v.Seq(names))
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
        elif v.whole_of(field) is not None and (obj.oid, name) not in run.s.heap:
            run.s.put((obj.oid, name), field)  # a number that may be counted with


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
