"""What the methods of lists and dictionaries do."""

from __future__ import annotations

import ast

from hotswap.lint.interpreter.assign import mutate
from hotswap.lint.interpreter.run import Run
from hotswap.lint.interpreter.values import Args, Const, Dict, Seq, Value

_CHANGES_LIST = frozenset({"extend", "insert", "pop", "remove", "clear", "sort", "reverse"})
_CHANGES_DICT = frozenset({"update", "pop", "setdefault", "clear"})


def container_method(run: Run, owner: Value, name: str, args: Args) -> Value:
    """Call a method of a container; what changes it in place changes what its name is bound to."""
    func = args.node.func
    holder = func.value if isinstance(func, ast.Attribute) else None
    held = holder if isinstance(holder, ast.Name | ast.Attribute) else None
    if isinstance(owner, Seq):
        if name == "append" and args.positional:
            if held is not None:
                mutate(run, held, Seq((*owner.items, args.positional[0])))
            return Const(None)
        if name in _CHANGES_LIST and held is not None:
            mutate(run, held, run.fresh())
    if isinstance(owner, Dict):
        if name == "values":
            return Seq(tuple(owner.items.values()))
        if name == "keys":
            return Seq(tuple(Const(key) for key in owner.items))
        if name == "items":
            return Seq(tuple(Seq((Const(k), v)) for k, v in owner.items.items()))
        if name == "get" and args.positional and isinstance(args.positional[0], Const):
            default = args.positional[1] if len(args.positional) > 1 else Const(None)
            return owner.items.get(args.positional[0].value, default)
        if name in _CHANGES_DICT and held is not None:
            mutate(run, held, run.fresh())
    return run.fresh()
