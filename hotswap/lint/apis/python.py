"""What functions of Python and its libraries do to values, by their qualified names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.assign import set_attribute
from hotswap.lint.interpreter.conditions import holds
from hotswap.lint.interpreter.expressions import any_of, joined_path
from hotswap.lint.interpreter.functions import PROVIDERS, provided
from hotswap.lint.interpreter.instances import FIELD
from hotswap.lint.interpreter.objects import (
    FIELDS,
    changed,
    class_of,
    has_component,
    read_attribute,
)
from hotswap.lint.interpreter.run import Run

MOST_NUMBERS = 8
_ONCE = ("Resource", "Singleton", "ThreadLocalSingleton", "ThreadSafeSingleton")
_ANEW = ("Callable", "Factory")
_FIELDS = (
    *("attr.field", "attr.ib", "attrs.field", "dataclasses.field"),
    *("pydantic.Field", "pydantic.PrivateAttr"),
)
_AWAITED = ("create_task", "ensure_future", "run", "shield", "wait_for")
TUPLE = v.Ref("collections.namedtuple()")
Effect = Callable[[Run, v.Args], v.Value]


def _first(run: Run, args: v.Args) -> v.Value:
    return args.positional[0] if args.positional else run.fresh()


def _extreme(pick: Callable[..., Any]) -> Effect:
    def call(run: Run, args: v.Args) -> v.Value:
        values = args.positional
        if len(values) == 1:
            values = v.elements(values[0]) or []
        numbers = [n for each in values if (n := v.whole_of(each)) is not None]
        if not numbers or len(numbers) < len(values):
            return any_of(run, values)
        return v.Const(pick(numbers), tuple(numbers))

    return call


def _enumerate(run: Run, args: v.Args) -> v.Value:
    first = v.whole_of(args.get(1, "start")) or 0
    over = v.elements(_first(run, args))
    if over is None:
        over = [run.fresh(), v.Const(first + 1)]
    return v.Seq(tuple(v.Seq((v.Const(first + i), e)) for i, e in enumerate(over)))


def _range(run: Run, args: v.Args) -> v.Value:
    ends = [n for each in args.positional if (n := v.whole_of(each)) is not None]
    if ends and len(ends) == len(args.positional):
        return v.Seq(tuple(v.Const(i) for i in range(*ends)[: MOST_NUMBERS + 1]))
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
    base = args.positional[0] if args.positional else v.Dict({})
    if not isinstance(base, v.Dict) or args.starred:
        return run.fresh()
    return v.Dict({**base.items, **args.keywords})


def _bool(run: Run, args: v.Args) -> v.Value:
    value = args.get(0, "") or v.Const(False)
    known = holds(run, value)
    return value if known is None else v.Const(known)


def _length(run: Run, args: v.Args) -> v.Value:
    value = _first(run, args)
    over = None if isinstance(value, v.Part) else v.elements(value)
    if over is not None:
        return v.Const(len(over))
    key = v.key_of(value)
    return run.fresh() if key is None else run.memo(("len", key))


def _getattr(run: Run, args: v.Args) -> v.Value:
    name = v.text_of(args.get(1, "name"))
    if len(args.positional) == 3 and has_component(run, args.positional[0], name) is False:
        return args.positional[2]
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
    if (has := has_component(run, owner, name)) is not None:
        return v.Const(has)
    if isinstance(owner, v.Obj):
        facts = run.facts(owner)
        if name == "_orig_mod" and not facts.open:
            return v.Const(owner.wrapped)
        if facts.kind == "instance" and (owner.oid, name) in run.s.heap:
            return v.Const(True)
    return run.memo(("hasattr", *keys))


def _copy(run: Run, args: v.Args) -> v.Value:
    value = _first(run, args)
    if isinstance(value, v.Obj):
        twin = run.new("unknown")
        run.put(twin, replace(run.facts(value), deferred=()))
        return twin
    return value


def _replace(run: Run, args: v.Args) -> v.Value:
    obj = _first(run, args)
    return changed(run, obj, args.keywords) if isinstance(obj, v.Obj) else run.fresh()


def _default_dict(run: Run, args: v.Args) -> v.Value:
    factory = args.get(0, "default_factory")
    if not isinstance(factory, v.Func | v.Partial | v.Class):
        return run.fresh()
    obj = run.new("instance")
    run.s.put((obj.oid, "__missing__"), factory)
    return obj


def _named_tuple(run: Run, args: v.Args) -> v.Value:
    """Make a class of named tuples, whose fields stand in a text or a list."""
    given = args.get(1, "field_names")
    text = v.text_of(given)
    names = [v.Const(name) for name in text.replace(",", " ").split()] if text else None
    fields = v.elements(given) if names is None else names
    return run.fresh() if not fields else v.Partial(TUPLE, (v.Seq(tuple(fields)),), {})


def _field(run: Run, args: v.Args) -> v.Value:
    """Note how a field of a class is made: of dataclasses, attrs and pydantic."""
    keywords = dict(args.keywords)
    if "factory" in keywords:
        keywords["default_factory"] = keywords.pop("factory")
    return v.Partial(FIELD, tuple(args.all()), keywords)


def _tuple_of(run: Run, args: v.Args) -> v.Value:
    obj = run.new("instance")
    names, *values = args.positional
    run.s.put((obj.oid, FIELDS), names)
    texts = [v.text_of(each) for each in v.elements(names) or ()]
    for name, value in [*zip(texts, values, strict=False), *args.keywords.items()]:
        run.s.put((obj.oid, name), value)
    return obj


def _provider(name: str) -> Effect:
    """Keep what a container makes, and of what: dependency_injector."""
    made = v.Ref(f"{PROVIDERS}{name}()")
    return lambda run, args: v.Partial(made, (run.fresh(), *args.positional), args.keywords)


def _provided(run: Run, args: v.Args) -> v.Value:
    """Make what a provider provides, from what the providers that it is given do."""
    _, func, *given = args.positional
    rest = [provided(run, each, args.node) for each in given]
    keywords = {name: provided(run, each, args.node) for name, each in args.keywords.items()}
    return run.invoke_one(func, v.Args(args.node, rest, keywords, args.starred))


def _provided_once(run: Run, args: v.Args) -> v.Value:
    memo = ("provided", v.key_of(args.positional[0]))
    if memo not in run.s.heap:
        run.s.put(memo, _provided(run, args))
    return run.known(run.s.heap[memo])


def _namespace(run: Run, args: v.Args) -> v.Value:
    obj = run.new("instance")
    for name, value in args.keywords.items():
        run.s.put((obj.oid, name), value)
    return obj


def _map(run: Run, args: v.Args) -> v.Value:
    func, *columns = args.positional
    rows = v.elements(_zip(run, v.Args(args.node, columns, {}))) or []
    called = (v.Args(args.node, v.elements(row) or [], {}) for row in rows[:MOST_NUMBERS])
    return v.Seq(tuple(run.invoke_one(func, each) for each in called))


def _reduce(run: Run, args: v.Args) -> v.Value:
    func, over, *first = [*args.positional, v.Const(None)][:3]
    values = [*first[: len(args.positional) - 2], *(v.elements(over) or [])]
    if not values or len(values) > MOST_NUMBERS or v.elements(over) is None:
        return run.fresh()
    value, *rest = values
    for each in rest:
        value = run.invoke_one(func, v.Args(args.node, [value, each], {}))
    return value


def _type(run: Run, args: v.Args) -> v.Value:
    return class_of(run, _first(run, args)) or run.fresh()


def _module(run: Run, args: v.Args) -> v.Value:
    name = v.text_of(args.get(0, "name"))
    return run.fresh() if name is None else v.Ref(name)


def _choice(run: Run, args: v.Args) -> v.Value:
    return any_of(run, v.elements(_first(run, args)) or [])


def _at_exit(run: Run, args: v.Args) -> v.Value:
    func = _first(run, args)
    if isinstance(func, v.Func):
        run.executed.add(func.node)
    return func


def _leave(run: Run, args: v.Args) -> v.Value:
    """Do not return."""
    run.s.exit = "raise"
    return v.Const(None)


FUNCTIONS: dict[str, Effect] = {
    **{f"{PROVIDERS}{name}": _provider(name) for name in (*_ONCE, *_ANEW)},
    **{f"{PROVIDERS}{name}()": _provided_once for name in _ONCE},
    **{f"{PROVIDERS}{name}()": _provided for name in _ANEW},
    "accelerate.Accelerator": lambda run, args: v.Ref("accelerate.Accelerator()"),
    "accelerate.Accelerator().prepare": lambda run, args: (
        _first(run, args) if len(args.positional) == 1 else v.Seq(tuple(args.positional))
    ),
    "argparse.Namespace": _namespace,
    "argparse.ArgumentParser": lambda run, args: v.Ref("argparse.ArgumentParser()"),
    "argparse.ArgumentParser().error": _leave,
    "argparse.ArgumentParser().exit": _leave,
    "bool": _bool,
    **{f"asyncio.{name}": _first for name in _AWAITED},
    "asyncio.gather": lambda run, args: (
        run.fresh() if args.starred else v.Seq(tuple(args.positional))
    ),
    "atexit.register": _at_exit,
    "attrs.evolve": _replace,
    "collections.defaultdict": _default_dict,
    "collections.namedtuple": _named_tuple,
    "collections.namedtuple()": _tuple_of,
    "copy.deepcopy": _copy,
    "copy.replace": _replace,
    **dict.fromkeys(_FIELDS, _field),
    "dataclasses.replace": _replace,
    "dict": _dict,
    "enumerate": _enumerate,
    "exit": _leave,
    "float": lambda run, args: v.NUMBER,
    "functools.partial": lambda run, args: v.Partial(
        _first(run, args), tuple(args.positional[1:]), args.keywords
    ),
    "functools.reduce": _reduce,
    "getattr": _getattr,
    "hasattr": _hasattr,
    "importlib.import_module": _module,
    "len": _length,
    "list": _sequence,
    "map": _map,
    "max": _extreme(max),
    "min": _extreme(min),
    "os._exit": _leave,
    "os.abort": _leave,
    "os.path.join": lambda run, args: joined_path(run, args.positional),
    "pathlib.Path": lambda run, args: joined_path(run, args.positional),
    "pytest.exit": _leave,
    "pytest.fail": _leave,
    "pytest.skip": _leave,
    "quit": _leave,
    "random.choice": _choice,
    "range": _range,
    "setattr": _setattr,
    "sorted": _sequence,
    "str": _first,
    "sys.exit": _leave,
    "tqdm": _first,
    "tqdm.auto.tqdm": _first,
    "tqdm.tqdm": _first,
    "tuple": _sequence,
    "type": _type,
    "types.SimpleNamespace": _namespace,
    "typing.cast": lambda run, args: args.get(1, "val") or run.fresh(),
    "zip": _zip,
}
