"""Enumerations: members are objects of their own, and an unknown member has one of their values."""

from __future__ import annotations

import ast

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.objects import last_name, line_of, read_attribute
from hotswap.lint.interpreter.run import Run

_ENUMS = frozenset({"Enum", "Flag", "IntEnum", "IntFlag", "StrEnum"})


def is_enum(cls: v.Class) -> bool:
    return any(last_name(base) in _ENUMS for each in line_of(cls) for base in each.node.bases)


def member_of(run: Run, cls: v.Class, name: str, value: v.Value) -> v.Value | None:
    """Return a member of an enumeration, which is itself and no other; None in any other class."""
    if name.startswith("_") or not is_enum(cls):
        return None
    if v.text_of(value) is not None and any(
        last_name(base) in ("str", "StrEnum") for each in line_of(cls) for base in each.node.bases
    ):
        return value  # as good as the text
    member = instance_of(run, cls)
    run.s.put((member.oid, "name"), v.Const(name))
    run.s.put((member.oid, "value"), value)
    return member


def values_of(run: Run, cls: v.Class) -> v.Seq:
    """Return the values of an enumeration's members; none of any other class."""
    names = (
        t.id
        for n in cls.node.body
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    )
    members = [run.s.heap.get((cls.oid, name)) for name in names] if is_enum(cls) else []
    return v.Seq(tuple(read_attribute(run, each, "value") for each in members if each is not None))


def instance_of(run: Run, cls: v.Class) -> v.Obj:
    """Return a new instance of a class, before its ``__init__``."""
    obj = run.new("instance")
    run.s.put((obj.oid, "__class__"), cls)
    return obj
