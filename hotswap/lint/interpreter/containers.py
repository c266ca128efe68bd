"""What the methods of lists and dictionaries do."""

from __future__ import annotations

import ast

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.assign import mutate
from hotswap.lint.interpreter.run import Run

_CHANGES_LIST = frozenset({"extend", "insert", "pop", "remove", "clear", "sort", "reverse"})
_CHANGES_DICT = frozenset({"update", "pop", "setdefault", "clear"})


def container_method(run: Run, owner: v.Value, name: str, args: v.Args) -> v.Value:
    """Call a method of a container; what changes it in place changes what its name is bound to."""
    func = args.node.func
    holder = func.value if isinstance(func, ast.Attribute) else None
    held = holder if isinstance(holder, ast.Name | ast.Attribute) else None
    if isinstance(owner, v.Seq):
        if name == "append" and args.positional:
            if held is not None:
                mutate(run, held, v.Seq((*owner.items, args.positional[0])))
            return v.Const(None)
        if name in _CHANGES_LIST and held is not None:
            mutate(run, held, run.fresh())
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
        if name in _CHANGES_DICT and held is not None:
            mutate(run, held, run.fresh())
    return run.fresh()
