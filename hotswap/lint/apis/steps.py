"""The steps of hot-swapping: what each does to a model, which the judge is shown."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from hotswap.lint import typestate as ts
from hotswap.lint.apis.shapes import shape_of
from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.conditions import among, holds
from hotswap.lint.interpreter.objects import become, component
from hotswap.lint.interpreter.run import Run
from hotswap.lint.typestate import Adapter, By, Compiled, Event, Facts, Prepared, Ran, Shape

INNER = ("base_model", "base_model.model", "model")
"""What a PeftModel forwards its attributes to: compiled, it counts as compiled itself."""
EXPORTED = "export()"
"""The part of a model that stands for its exported program."""
_KEEP = ("always_keep_tensor_constants", "aot_inductor.use_runtime_constant_folding")
"""Options of inductor that keep constants out of the code."""
_LAYERS = re.compile(
    r"layer|block|^h\[|\.h\[|base_model|^model$|^model\.model|language_model|transformer"
)


def carrier(run: Run, obj: v.Obj) -> v.Obj:
    """Return the model that carries the adapters: of a pipeline, its denoiser."""
    return component(run, obj, "transformer") if run.facts(obj).kind == "pipeline" else obj


def compile_value(run: Run, value: v.Value, node: ast.AST, how: ts.How) -> v.Value:
    """Compile a model, a part of one, or a function."""
    if isinstance(value, v.Part):
        if value.path == "forward":
            _compile(run, value.owner, node, "forward")
        elif value.path in INNER:
            _compile(run, value.owner, node, "in place")
        elif _LAYERS.search(value.path):
            _compile(run, value.owner, node, "blocks")
        return value
    if isinstance(value, v.Func):
        return replace(value, compiler=node)
    obj = become(run, value, "unknown")
    if obj is None:
        return value
    _compile(run, obj, node, how)
    return v.Obj(obj.oid, wrapped=True) if how == "wrapper" else obj


def _compile(run: Run, obj: v.Obj, node: ast.AST, how: ts.How) -> None:
    facts = run.facts(obj)
    if facts.kind != "pipeline":
        run.emit(obj, Event("compile", node, facts, "torch.compile", obj.wrapped))
        run.put(obj, ts.compiled(run.facts(obj), Compiled(node, how)))
        run.flush(obj, "compile")


def compile_in_place(run: Run, obj: v.Obj, args: v.Args, api: str) -> v.Value:
    """Compile a model where it is, as a whole or block by block."""
    _compile(run, obj, args.node, "blocks" if api == "compile_repeated_blocks" else "in place")
    return v.Const(None)


def call_model(run: Run, obj: v.Obj, node: ast.AST, *, grad: str | None) -> None:
    """Call the model; a pipeline calls its denoiser."""
    facts = run.facts(obj)
    if run.s.compiler is not None and facts.compiled is None and facts.kind != "pipeline":
        _compile(run, obj, run.s.compiler, "function")
        facts = run.facts(obj)
    if facts.kind == "pipeline":
        for model in denoisers(run, obj):
            call_model(run, model, node, grad=None)
    elif facts.compiled is None or (facts.compiled.how == "wrapper" and not obj.wrapped):
        run.judge.log.add("run")
    else:
        run.emit(obj, Event("run", node, facts, "call", obj.wrapped, grad=grad))
        run.flush(obj, "run")
        facts = run.facts(obj)
        if facts.ran is None:
            run.put(obj, replace(facts, ran=Ran(node, grad)))


def preparation(args: v.Args, by: By, *, default: int | None) -> Prepared:
    """Return what the arguments of a preparing function say."""
    target = args.get(0 if by in ("diffusers", "transformers") else None, "target_rank")
    check = args.get(None, "check_compiled")
    strict = not args.starred and (check is None or check == v.Const("error"))
    if target is None:
        return Prepared(None if args.starred else default, args.node, by, strict)
    drawn_from = target.drawn_from if isinstance(target, v.Const) else ()
    return Prepared(v.whole_of(target), args.node, by, strict, drawn_from)


def prepare(run: Run, value: v.Value | None, args: v.Args, by: By) -> v.Value:
    """Prepare the adapters that are loaded: PEFT's function, or hotswap's."""
    obj = become(run, value, "unknown")
    if obj is None:
        return run.fresh()
    obj = carrier(run, obj)
    facts = run.facts(obj)
    ranks = [adapter.shape.rank for adapter in facts.adapters[:1] if by == "peft"]
    how = preparation(args, by, default=ranks[0] if ranks else None)
    api = "prepare_model_for_compiled_hotswap" if by == "peft" else "hotswap.prepare"
    run.emit(obj, Event("prepare", args.node, facts, api, obj.wrapped, prepared=how))
    facts = run.facts(obj)
    if facts.adapters:
        run.put(obj, ts.prepared(facts, how))
    elif facts.open:
        facts = replace(facts, adapters=(Adapter(None, args.node),), open=True)
        run.put(obj, ts.prepared(facts, how))
    else:  # it raises: go on as if the first load came before it
        run.put(obj, replace(facts, enabled=replace(how, strict=False)))
    return run.fresh()


def enable(run: Run, obj: v.Obj, args: v.Args, api: str) -> v.Value:
    """Enable hot-swapping for the first load: diffusers and transformers."""
    by: By = "transformers" if api == "enable_peft_hotswap" else "diffusers"
    how = preparation(args, by, default=128)
    models = [obj]
    if run.facts(obj).kind == "pipeline":  # components that it is given later are enabled too
        run.put(obj, replace(run.facts(obj), enabled=how))
        models = list(denoisers(run, obj))
    for model in models:
        facts = run.facts(model)
        run.emit(model, Event("enable", args.node, facts, api, model.wrapped, prepared=how))
        facts = replace(run.facts(model), auto_swap=by == "transformers")
        if facts.kind == "peft" or (facts.adapters and not facts.open and how.strict):
            run.put(model, ts.prepared(facts, how))  # it raises: go on as if it were in time
        else:  # if it is compiled already, that has been said here, not at the load
            strict = how.strict and not facts.compiled
            run.put(model, replace(facts, enabled=replace(how, strict=strict)))
    return v.Const(None)


def denoisers(run: Run, pipe: v.Obj) -> Iterator[v.Obj]:
    """Yield the components of a pipeline that adapters change."""
    yield component(run, pipe, "transformer")
    if (pipe.oid, "transformer_2") in run.s.heap:
        yield component(run, pipe, "transformer_2")


_POSITIONS = {
    "load_adapter": (1, None),
    "load_lora_adapter": (None, 2),
    "load_lora_weights": (1, 2),
}
"""Where the name and ``hotswap`` are among the arguments of a load."""


def load(run: Run, obj: v.Obj, args: v.Args, api: str) -> v.Value:
    """Load an adapter: anew or, with ``hotswap``, in place of one."""
    into = args.get(None, "load_into_transformer_2")
    if run.facts(obj).kind == "pipeline" and into is not None:
        obj = component(run, obj, "transformer_2" if holds(run, into) else "transformer")
    obj = carrier(run, obj)
    facts = run.facts(obj)
    at = _POSITIONS[api]
    given = args.get(at[0], "adapter_name")
    name = v.text_of(given)
    named = None if given is None and args.starred else given not in (None, v.Const(None))
    hotswap = args.get(at[1], "hotswap")
    swaps = _swaps(run, hotswap, facts, name, named)
    if args.starred and hotswap is None:
        swaps = None
    path = args.get(0, "pretrained_model_name_or_path_or_dict") or args.get(0, "peft_model_id")
    shape = shape_of(run, path, args.node.args[0] if args.node.args else None)
    if shape.rank is None and (weight := args.get(None, "weight_name")) is not None:
        shape = shape_of(run, weight)
    if name is None and named is False and swaps is not True:
        by_diffusers = facts.kind != "peft" and api != "load_adapter"
        name = f"default_{len(facts.adapters)}" if by_diffusers else "default"
    kind: Literal["swap", "load"] = "swap" if swaps else "load"
    told = Event(kind, args.node, facts, api, obj.wrapped, name, named, swaps, shape)
    token = v.key_of(given) if given is not None and name is None else None
    code = run.emit(obj, replace(told, token=token, among=among(run, given)))
    facts = run.facts(obj)
    if swaps is True or (swaps is None and facts.adapter(name)):
        run.put(obj, ts.swapped(facts, name, args.node))
    elif not facts.named(name, token) or not (facts.kind == "peft" or code == "HSW216"):
        undone = facts.removed.prepared if facts.removed else None
        mended = undone if code == "HSW206" else None
        run.put(obj, ts.loaded(facts, Adapter(name, args.node, shape, mended, token)))
    return run.fresh()


def _swaps(
    run: Run, hotswap: v.Value | None, facts: Facts, name: str | None, named: bool | None
) -> bool | None:
    if hotswap is not None and hotswap != v.Const("auto"):
        return holds(run, hotswap)
    if facts.auto_swap and not facts.open:
        return None if named and name is None else facts.adapter(name or "default") is not None
    return None if facts.open and facts.kind in ("transformers", "unknown") else False


def swap(
    run: Run, value: v.Value | None, args: v.Args, api: str, *, path: int = 1, name: int | None = 2
) -> v.Value:
    """Swap an adapter in place by a function: PEFT's, or hotswap's."""
    obj = become(run, value, "unknown")
    if obj is None:
        return run.fresh()
    obj = carrier(run, obj)
    given = args.get(name, "adapter_name")
    text = v.text_of(given)
    named = None if given is None and args.starred else given not in (None, v.Const(None))
    if api.startswith("hotswap.") and given is None:
        named = True  # the only adapter, whatever it is called
    node = args.node.args[path] if len(args.node.args) > path else None
    shape = shape_of(run, args.get(path, "model_name_or_path"), node)
    config = args.get(3 if "state_dict" in api else None, "config")
    if isinstance(config, Shape):
        shape = config
    event = Event("swap", args.node, run.facts(obj), api, obj.wrapped, text, named, True, shape)
    run.emit(obj, replace(event, among=among(run, given)))
    run.put(obj, ts.swapped(run.facts(obj), text, args.node))
    return run.fresh()


def use_bank(run: Run, obj: v.Obj, args: v.Args, method: str) -> v.Value:
    """Stage an adapter in a bank, or put it in place."""
    if method == "add":
        node = args.node.args[1] if len(args.node.args) > 1 else None
        shape = shape_of(run, args.get(1, "adapter"), node)
        api = "AdapterBank.add"
        run.emit(obj, Event("swap", args.node, run.facts(obj), api, named=True, shape=shape))
    return run.fresh()


def toggle(run: Run, obj: v.Obj, args: v.Args, api: str) -> v.Value:
    """Change which adapters are active or loaded."""
    obj = carrier(run, obj)
    names = _names(args.get(0, "adapter_names") or args.get(0, "adapter_name"))
    before = facts = run.facts(obj)
    if not facts.adapters and not facts.open:
        run.judge.log.add("absent")
    if api.startswith("unload"):
        facts = ts.unloaded(facts)
    elif api.startswith("delete_adapter"):
        facts = ts.unloaded(facts, names) if names else replace(facts, open=True)
    elif api.startswith("set_adapter") and names:
        facts = replace(facts, active=names)
    run.put(obj, facts)
    if before.merged is None or not api.startswith("unload"):  # what was merged stays as it is
        run.emit(obj, Event("toggle", args.node, before, api, obj.wrapped, names=names))
    return run.fresh()


def scale(run: Run, obj: v.Obj, node: ast.AST, api: str, value: v.Value | None) -> None:
    """Write a number into a layer's scaling."""
    if not run.facts(obj).adapters and not run.facts(obj).open:
        run.judge.log.add("absent")
    text = "tensor" if value == v.TENSOR else "float" if v.is_number(value) else ""
    run.emit(obj, Event("scale", node, run.facts(obj), api, obj.wrapped, value=text))


def merge(run: Run, obj: v.Obj, args: v.Args, api: str) -> v.Value:
    """Merge the adapters into the weights, or take them out again."""
    obj = carrier(run, obj)
    merged = None if api.startswith("un") else args.node
    run.put(obj, replace(run.facts(obj), merged=merged))
    return v.Const(None)


def add(
    run: Run, obj: v.Obj, args: v.Args, api: str, config: v.Value | None, name: str | None
) -> v.Value:
    """Add an adapter made from a config."""
    shape = config if isinstance(config, Shape) else Shape()
    facts = run.facts(obj)
    run.emit(obj, Event("load", args.node, facts, api, obj.wrapped, name, True, False, shape))
    run.put(obj, ts.loaded(run.facts(obj), Adapter(name, args.node, shape)))
    return v.Const(None)


def package(run: Run, args: v.Args, config: str) -> v.Value:
    """Compile an exported program ahead of time: its adapters stay as they are, or are kept apart."""
    options = args.get(None, config)
    given = (
        [options.items.get(key, v.Const(False)) for key in _KEEP]
        if isinstance(options, v.Dict)
        else []
    )
    known = [holds(run, each) for each in given]
    unknown = args.starred if options is None else not known or None in known
    keeps = True if True in known else None if unknown else False
    _write(run, args.get(0, "exported_program"), args.node, "packaged", keeps)
    return run.fresh()


def save(run: Run, args: v.Args) -> v.Value:
    """Save an exported program: all its constants stay apart, with the ranks that they have."""
    _write(run, args.get(0, "ep"), args.node, "exported", True)
    return v.Const(None)


def _write(run: Run, program: v.Value | None, node: ast.AST, how: str, keeps: bool | None) -> None:
    if isinstance(program, v.Part) and program.path == EXPORTED:
        facts = run.facts(program.owner)
        run.emit(program.owner, Event("package", node, facts, how, keeps=keeps))


def exported(run: Run, args: v.Args) -> v.Value:
    """Export a model; of a module of the program around it, the model that it holds."""
    obj = args.get(0, "mod")
    if not isinstance(obj, v.Obj):
        return run.fresh()
    held = [
        value for key, value in run.s.heap.items() if key[0] == obj.oid and isinstance(value, v.Obj)
    ]
    models = [each for each in (obj, *held) if run.facts(each).adapters]
    return v.Part(models[0], EXPORTED) if models else run.fresh()


def _names(value: v.Value | None) -> tuple[str | None, ...] | None:
    if isinstance(value, v.Const) and isinstance(value.value, str):
        return (value.value,)
    if isinstance(value, v.Seq) and all(isinstance(each, v.Const) for each in value.items):
        return tuple(each.value for each in value.items if isinstance(each, v.Const))
    return None
