"""What functions of Python and its libraries do to values, by their qualified names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.assign import set_attribute
from hotswap.lint.interpreter.conditions import holds
from hotswap.lint.interpreter.expressions import joined_path
from hotswap.lint.interpreter.objects import read_attribute
from hotswap.lint.interpreter.run import Run

MOST_NUMBERS = 8
Effect = Callable[[Run, v.Args], v.Value]


def _first(args: v.Args) -> v.Value | None:
    return args.positional[0] if args.positional else None


def _extreme(pick: Callable[..., Any]) -> Effect:
    def call(run: Run, args: v.Args) -> v.Value:
        values = args.positional
        if len(values) == 1:
            values = v.elements(values[0]) or []
        numbers = [n for each in values if (n := v.whole_of(each)) is not None]
        if not numbers or len(numbers) < len(values):
            return run.fresh()
        return v.Const(pick(numbers), tuple(numbers))

    return call


def _enumerate(run: Run, args: v.Args) -> v.Value:
    first = v.whole_of(args.get(1, "start")) or 0
    over = v.elements(_first(args))
    if over is None:
        over = [run.fresh(), v.Const(first + 1)]
    return v.Seq(tuple(v.Seq((v.Const(first + i), e)) for i, e in enumerate(over)))


def _range(run: Run, args: v.Args) -> v.Value:
    ends = [n for each in args.positional if (n := v.whole_of(each)) is not None]
    if ends and len(ends) == len(args.positional):
        return v.Seq(tuple(v.Const(i) for i in range(*ends)[:MOST_NUMBERS]))
    return v.Seq((v.Const(0), v.Const(1))) if len(args.positional) == 1 else run.fresh()


def _zip(run: Run, args: v.Args) -> v.Value:
    columns = [v.elements(each) for each in args.positional]
    length = min((len(c) for c in columns if c is not None), default=2)
    rows = (
        v.Seq(tuple(c[i] if c is not None else run.fresh() for c in columns)) for i in range(length)
    )
    return v.Seq(tuple(rows))


def _sequence(run: Run, args: v.Args) -> v.Value:
    over = v.elements(args.positional[0]) if args.positional else []
    return run.fresh() if over is None else v.Seq(tuple(over))


def _dict(run: Run, args: v.Args) -> v.Value:
    base = _first(args) or v.Dict({})
    if not isinstance(base, v.Dict) or args.starred:
        return run.fresh()
    return v.Dict({**base.items, **args.keywords})


def _bool(run: Run, args: v.Args) -> v.Value:
    value = _first(args) or v.Const(False)
    known = holds(run, value)
    return value if known is None else v.Const(known)


def _length(run: Run, args: v.Args) -> v.Value:
    value = _first(args)
    over = None if isinstance(value, v.Part) else v.elements(value)
    if over is not None:
        return v.Const(len(over))
    key = v.key_of(value) if value is not None else None
    return run.fresh() if key is None else run.memo(("len", key))


def _getattr(run: Run, args: v.Args) -> v.Value:
    name = v.text_of(args.get(1, "name"))
    return run.fresh() if name is None else read_attribute(run, args.positional[0], name)


def _setattr(run: Run, args: v.Args) -> v.Value:
    if len(args.positional) == 3 and (name := v.text_of(args.positional[1])) is not None:
        set_attribute(run, args.positional[0], name, args.positional[2])
    return v.Const(None)


def _hasattr(run: Run, args: v.Args) -> v.Value:
    keys = tuple(v.key_of(each) for each in args.positional)
    if len(keys) != 2 or None in keys:
        return run.fresh()
    owner, name = args.positional[0], v.text_of(args.positional[1])
    if isinstance(owner, v.Obj):
        facts = run.facts(owner)
        if name == "_orig_mod" and not facts.open:
            return v.Const(owner.wrapped)
        if facts.kind == "instance" and (owner.oid, name) in run.s.heap:
            return v.Const(True)
    return run.memo(("hasattr", *keys))


def _path(run: Run, args: v.Args) -> v.Value:
    return joined_path(run, args.positional) if args.positional else run.fresh()


def _partial(run: Run, args: v.Args) -> v.Value:
    if not args.positional:
        return run.fresh()
    func, *rest = args.positional
    return v.Partial(func, tuple(rest), args.keywords)


def _same(run: Run, args: v.Args) -> v.Value:
    return _first(args) or run.fresh()


def _copy(run: Run, args: v.Args) -> v.Value:
    value = _first(args)
    if isinstance(value, v.Obj):
        twin = run.new("unknown")
        run.put(twin, replace(run.facts(value), deferred=()))
        return twin
    return value or run.fresh()


FUNCTIONS: dict[str, Effect] = {
    "bool": _bool,
    "copy.deepcopy": _copy,
    "dict": _dict,
    "enumerate": _enumerate,
    "float": lambda run, args: v.Number(),
    "functools.partial": _partial,
    "getattr": _getattr,
    "hasattr": _hasattr,
    "len": _length,
    "list": _sequence,
    "max": _extreme(max),
    "min": _extreme(min),
    "os.path.join": _path,
    "pathlib.Path": _path,
    "range": _range,
    "setattr": _setattr,
    "sorted": _sequence,
    "str": _same,
    "tqdm": _same,
    "tqdm.auto.tqdm": _same,
    "tqdm.tqdm": _same,
    "tuple": _sequence,
    "zip": _zip,
}
