"""What a class makes, by its qualified name: a pipeline, a model, a model with an adapter."""

from __future__ import annotations

import ast
import builtins
import re
from dataclasses import replace

from hotswap.lint import typestate as ts
from hotswap.lint.apis.shapes import shape_of
from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.names import UNMISTAKABLE
from hotswap.lint.interpreter.objects import become, class_of, component, component_key, line_of
from hotswap.lint.interpreter.run import Run
from hotswap.lint.typestate import Adapter, Event, Facts, Kind

_MODEL = re.compile(r"^Auto\w*Model|For[A-Z]\w*$|LMHeadModel$|Model$")
_COMPONENT = re.compile(r"UNet|Transformer")
_HAS_ADAPTERS = re.compile(r"lora|adapter|peft", re.IGNORECASE)
DENOISING = ("unet", "transformer", "transformer_2")


def kind_made_by(name: str) -> Kind | None:
    """Say what kind of model a class makes; None for a class that makes none."""
    root, last = name.split(".")[0], name.rsplit(".", 1)[-1]
    if last.startswith(("PeftModel", "AutoPeftModel", "PeftMixedModel")):
        return "peft"
    if root == "torch":
        return "module" if ".nn." in name and last[:1].isupper() else None
    if root != "transformers" and (last.endswith("Pipeline") or last.startswith("AutoPipeline")):
        return "pipeline"
    if root == "diffusers" or UNMISTAKABLE.search(last):
        if _COMPONENT.search(last):
            return "component"
        if root == "diffusers":
            return "module" if last.endswith("Model") or last.startswith("Autoencoder") else None
    if root in ("transformers", last) and _MODEL.search(last):
        return "transformers"
    return None


def make(run: Run, name: str, args: v.Args) -> v.Value | None:
    """Create a model by its class, or return None if the class makes none."""
    kind = kind_made_by(name)
    if kind is None:
        return None
    if kind == "peft" and not name.rpartition(".")[2].startswith("AutoPeft"):
        return wrap(run, args, args.get(0, "model"))
    obj = run.new(kind)
    run.s.put((obj.oid, "__made_by__"), name.rpartition(".")[2])
    path = args.get(0, "pretrained_model_name_or_path")
    if kind == "peft":
        adapter = Adapter(_name(args.get(1, "adapter_name")), args.node, shape_of(run, path))
        run.put(obj, ts.loaded(run.facts(obj), adapter))
    elif kind == "pipeline":
        _assemble(run, obj, args)
        component(run, obj, "transformer")
    elif kind == "transformers" and _HAS_ADAPTERS.search(v.text_of(path) or ""):
        run.put(obj, replace(run.facts(obj), open=True))
    run.judge.log.add("create")
    return obj


def _assemble(run: Run, pipe: v.Obj, args: v.Args) -> None:
    """Give a pipeline the components that it is made of: another pipeline's, or those that are named."""
    source = args.get(0, "pipeline")
    for keyword in args.node.keywords:
        given = keyword.value
        if keyword.arg is None and isinstance(given, ast.Attribute) and given.attr == "components":
            source = run.ev(given.value)
    if isinstance(source, v.Obj) and run.facts(source).kind == "pipeline":
        component(run, source, "transformer")
        for key, shared in list(run.s.heap.items()):
            if isinstance(key, tuple) and len(key) == 2 and key[0] == source.oid:
                run.s.put((pipe.oid, key[1]), shared)
    for name, value in args.keywords.items():
        part = become(run, value, "component") if name in DENOISING else None
        if part is not None:
            run.s.put((pipe.oid, component_key(name)), part)


def wrap(run: Run, args: v.Args, base: v.Value | None, *, path: int = 1, name: int = 2) -> v.Obj:
    """Put a PEFT model with a first adapter around a base model."""
    below = run.facts(base) if isinstance(base, v.Obj) else Facts()
    obj = run.new("peft")
    key = next((k for k in ("peft_config", "config") if k in args.keywords), "model_id")
    node = args.node.args[path] if len(args.node.args) > path else None
    shape = shape_of(run, args.get(path, key), node)
    facts = replace(run.facts(obj), enabled=below.enabled, told=below.told)
    if below.compiled:
        how: ts.How = "in place" if isinstance(base, v.Obj) and base.wrapped else "blocks"
        facts = replace(facts, compiled=replace(below.compiled, how=how), ran=below.ran)
        run.put(obj, facts)
        step = Event("load", args.node, facts, "PeftModel", False, "default", True, False, shape)
        run.emit(obj, step)
        facts = run.facts(obj)
    text = None if args.starred else _name(args.get(name, "adapter_name"))
    run.put(obj, ts.loaded(facts, Adapter(text, args.node, shape)))
    run.judge.log.add("create")
    return obj


def _name(given: v.Value | None) -> str | None:
    return "default" if given is None else v.text_of(given)


_BASES = {"DiffusionPipeline": "pipeline", "PeftModel": "peft", "PreTrainedModel": "transformers"}
"""Classes of which all models of a kind are instances."""


def is_instance(run: Run, value: v.Value, cls: v.Value) -> bool | None:
    """Tell whether a value is an instance of a class; None if that is unknown."""
    name = cls.name if isinstance(cls, v.Ref) else ""
    last = name.rpartition(".")[2]
    if isinstance(value, v.Const):
        builtin = getattr(builtins, name, None)
        return isinstance(value.value, builtin) if isinstance(builtin, type) else None
    if not isinstance(value, v.Obj):
        return None
    facts, own = run.facts(value), class_of(run, value)
    if isinstance(cls, v.Class):
        return cls in line_of(own) if own is not None else None
    if facts.kind in ("unknown", "instance") or own is not None:
        return None
    if last in ("Module", "OptimizedModule"):
        return facts.kind != "pipeline" if last == "Module" else value.wrapped or None
    kind = kind_made_by(name)
    if kind is None or value.wrapped:
        return None
    if kind != facts.kind or last in _BASES or run.s.heap.get((value.oid, "__made_by__")) == last:
        return kind == facts.kind
    return None
