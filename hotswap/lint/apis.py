"""What the functions of Python, torch, PEFT and hotswap do, by their qualified names."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hotswap.lint.interpreter.objects import Args
from hotswap.lint.interpreter.state import State
from hotswap.lint.interpreter.typestate import Facts, Shape
from hotswap.lint.interpreter.values import (
    Const,
    Dict,
    Number,
    Obj,
    Part,
    Partial,
    Ref,
    Seq,
    Value,
    key_of,
)

if TYPE_CHECKING:
    from hotswap.lint.interpreter.calls import Caller


def _torch_compile(w: Caller, args: Args) -> list[State]:
    model = args.get(0, "model")
    if model is None:
        return w.done(Partial(Ref("torch.compile"), (), args.keywords))
    disabled = args.get(None, "disable")
    if disabled is not None and w.holds(disabled) is not False:
        return w.done(model)
    backend = args.get(None, "backend")
    if isinstance(backend, Const) and backend.value == "torch_tensorrt":
        return w.done(w.fresh())
    return w.done(w.do_compile(model, args.node, "wrapper"))


def _dynamo_optimize(w: Caller, args: Args) -> list[State]:
    return w.done(Partial(Ref("torch.compile"), (), {}))


def _dynamo_reset(w: Caller, args: Args) -> list[State]:
    for key, facts in list(w.s.heap.items()):
        if isinstance(facts, Facts) and facts.compiled:
            left = tuple(d for d in facts.deferred if d.until != "run")
            w.s.put(key, replace(facts, ran=None, deferred=left))
    return w.done(Const(None))


def _prepare(w: Caller, args: Args) -> list[State]:
    return w.done(w.do_prepare(args.get(0, "model"), args, "peft"))


def _hotswap_prepare(w: Caller, args: Args) -> list[State]:
    return w.done(w.do_prepare(args.get(0, "model"), args, "hotswap"))


def _hotswap_swap(w: Caller, args: Args) -> list[State]:
    return w.done(w.do_swap(args.get(0, "model"), args, "hotswap.swap", path=1, name=None))


def _hotswap_load(w: Caller, args: Args) -> list[State]:
    obj = w.wrap(args, args.get(0, "base_model"), path=2, name=99)
    w.do_prepare(obj, args, "hotswap")
    return w.done(obj)


def _swap(w: Caller, args: Args) -> list[State]:
    return w.done(w.do_swap(args.get(0, "model"), args, "hotswap_adapter", path=1, name=2))


def _swap_state_dict(w: Caller, args: Args) -> list[State]:
    api = "hotswap_adapter_from_state_dict"
    return w.done(w.do_swap(args.get(0, "model"), args, api, path=1, name=2))


def _get_peft_model(w: Caller, args: Args) -> list[State]:
    return w.done(w.wrap(args, args.get(0, "model"), path=1, name=2))


def _inject(w: Caller, args: Args) -> list[State]:
    obj = w.become(args.get(1, "model"), "module")
    if obj is None:
        return w.done(w.fresh())
    name = args.get(2, "adapter_name") or Const("default")
    text = name.value if isinstance(name, Const) else None
    w.do_add(obj, args, "inject_adapter_in_model", args.get(0, "peft_config"), text)
    return w.done(obj)


def _lora_config(w: Caller, args: Args) -> list[State]:
    rank, alpha = args.get(None, "r"), args.get(None, "lora_alpha")
    if args.starred or args.get(None, "rank_pattern") or args.get(None, "alpha_pattern"):
        return w.done(Shape(origin=w.fresh().oid))
    return w.done(Shape(_whole(rank), _whole(alpha), w.fresh().oid))


def _whole(value: Value | None) -> int | None:
    """Return a whole number; peft's default of rank and alpha is 8."""
    if value is None:
        return 8
    return value.value if isinstance(value, Const) and type(value.value) is int else None


def _extreme(pick: Callable[..., Any]) -> Callable[[Caller, Args], list[State]]:
    def call(w: Caller, args: Args) -> list[State]:
        values = args.positional
        if len(values) == 1:
            inner = w.elements(values[0])
            values = inner if inner is not None else []
        numbers = [v.value for v in values if isinstance(v, Const) and type(v.value) is int]
        if not numbers or len(numbers) < len(values):
            return w.done(w.fresh())
        return w.done(Const(pick(numbers), tuple(numbers)))

    return call


def _enumerate(w: Caller, args: Args) -> list[State]:
    elements = w.elements(args.positional[0]) if args.positional else None
    start = args.get(1, "start")
    first = start.value if isinstance(start, Const) and type(start.value) is int else 0
    if elements is None:
        return w.done(Seq((Seq((Const(first), w.fresh())), Seq((Const(first + 1), w.fresh())))))
    return w.done(Seq(tuple(Seq((Const(first + i), e)) for i, e in enumerate(elements))))


def _range(w: Caller, args: Args) -> list[State]:
    ends = [v.value for v in args.positional if isinstance(v, Const) and type(v.value) is int]
    if len(ends) == len(args.positional) and ends:
        return w.done(Seq(tuple(Const(i) for i in range(*ends)[:8])))
    if len(args.positional) == 1:
        return w.done(Seq((Const(0), Const(1))))
    return w.done(w.fresh())


def _zip(w: Caller, args: Args) -> list[State]:
    columns = [w.elements(v) for v in args.positional]
    known = [c for c in columns if c is not None]
    length = min((len(c) for c in known), default=2)
    rows = [
        Seq(tuple(c[i] if c is not None else w.fresh() for c in columns)) for i in range(length)
    ]
    return w.done(Seq(tuple(rows)))


def _sequence(w: Caller, args: Args) -> list[State]:
    elements = w.elements(args.positional[0]) if args.positional else []
    return w.done(Seq(tuple(elements)) if elements is not None else w.fresh())


def _dict(w: Caller, args: Args) -> list[State]:
    base = args.positional[0] if args.positional else Dict({})
    if not isinstance(base, Dict) or args.starred:
        return w.done(w.fresh())
    return w.done(Dict({**base.items, **args.keywords}))


def _float(w: Caller, args: Args) -> list[State]:
    return w.done(Number())


def _bool(w: Caller, args: Args) -> list[State]:
    value = args.positional[0] if args.positional else Const(False)
    holds = w.holds(value)
    return w.done(Const(holds) if holds is not None else value)


def _length(w: Caller, args: Args) -> list[State]:
    elements = w.elements(args.positional[0]) if args.positional else None
    if elements is not None and not isinstance(args.positional[0], Part):
        return w.done(Const(len(elements)))
    key = key_of(args.positional[0]) if args.positional else None
    return w.done(w._memo(("len", key)) if key is not None else w.fresh())


def _getattr(w: Caller, args: Args) -> list[State]:
    name = args.get(1, "name")
    if isinstance(name, Const) and isinstance(name.value, str):
        return w.done(w.read_attribute(args.positional[0], name.value))
    return w.done(w.fresh())


def _setattr(w: Caller, args: Args) -> list[State]:
    if len(args.node.args) == 3 and isinstance(name := args.positional[1], Const):
        target = ast.copy_location(
            ast.Attribute(args.node.args[0], str(name.value), ast.Store()), args.node
        )
        w.assign(target, args.positional[2])
    return w.done(Const(None))


def _hasattr(w: Caller, args: Args) -> list[State]:
    keys = tuple(key_of(v) for v in args.positional)
    if len(args.positional) == 2 and None not in keys:
        owner, name = args.positional
        if isinstance(owner, Obj) and isinstance(name, Const):
            if name.value == "_orig_mod" and not w.facts(owner).open:
                return w.done(Const(owner.wrapped))
            if w.facts(owner).kind == "instance" and (owner.oid, name.value) in w.s.heap:
                return w.done(Const(True))
        return w.done(w._memo(("hasattr", *keys)))
    return w.done(w.fresh())


def _join_path(w: Caller, args: Args) -> list[State]:
    return w.done(w.joined_path(args.positional) if args.positional else w.fresh())


def _partial(w: Caller, args: Args) -> list[State]:
    if not args.positional:
        return w.done(w.fresh())
    func, *rest = args.positional
    return w.done(Partial(func, tuple(rest), args.keywords))


def _pipeline(w: Caller, args: Args) -> list[State]:
    model = args.get(1, "model")
    return w.done(model if isinstance(model, Obj) else w.fresh())


def _same(w: Caller, args: Args) -> list[State]:
    return w.done(args.positional[0] if args.positional else w.fresh())


def _copy(w: Caller, args: Args) -> list[State]:
    value = args.positional[0] if args.positional else None
    if isinstance(value, Obj):
        twin = w.new("unknown")
        w.put(twin, replace(w.facts(value), deferred=()))
        return w.done(twin)
    return w.done(value if value is not None else w.fresh())


FUNCTIONS: dict[str, Callable[[Caller, Args], list[State]]] = {
    "LoraConfig": _lora_config,
    "bool": _bool,
    "copy.deepcopy": _copy,
    "dict": _dict,
    "enumerate": _enumerate,
    "float": _float,
    "functools.partial": _partial,
    "get_peft_model": _get_peft_model,
    "getattr": _getattr,
    "hasattr": _hasattr,
    "inject_adapter_in_model": _inject,
    "hotswap.load": _hotswap_load,
    "hotswap.prepare": _hotswap_prepare,
    "hotswap.swap": _hotswap_swap,
    "hotswap_adapter": _swap,
    "hotswap_adapter_from_state_dict": _swap_state_dict,
    "len": _length,
    "os.path.join": _join_path,
    "pathlib.Path": _join_path,
    "str": _same,
    "list": _sequence,
    "max": _extreme(max),
    "min": _extreme(min),
    "prepare_model_for_compiled_hotswap": _prepare,
    "range": _range,
    "setattr": _setattr,
    "sorted": _sequence,
    "torch._dynamo.optimize": _dynamo_optimize,
    "torch._dynamo.reset": _dynamo_reset,
    "torch.compile": _torch_compile,
    "torch.compiler.reset": _dynamo_reset,
    "tqdm": _same,
    "tqdm.auto.tqdm": _same,
    "tqdm.tqdm": _same,
    "transformers.pipeline": _pipeline,
    "tuple": _sequence,
    "zip": _zip,
}
OF_PEFT = frozenset(
    {
        "LoraConfig", "get_peft_model", "hotswap_adapter", "hotswap_adapter_from_state_dict",
        "inject_adapter_in_model", "prepare_model_for_compiled_hotswap",
    }
)  # fmt: skip
