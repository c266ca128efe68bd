"""What the methods of models and pipelines do, by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from hotswap.lint.interpreter import typestate as ts
from hotswap.lint.interpreter.evaluate import path_key
from hotswap.lint.interpreter.objects import Args
from hotswap.lint.interpreter.typestate import (
    Shape,
)
from hotswap.lint.interpreter.values import Const, Obj, Part, Value

if TYPE_CHECKING:
    from hotswap.lint.interpreter.models import Models


def _load(m: Models, obj: Obj, args: Args, name: str) -> Value:
    return m.do_load(obj, args, name)


def _unload(m: Models, obj: Obj, args: Args, name: str) -> Value:
    carrier = m.denoiser(obj)
    m.put(carrier, ts.unloaded(m.facts(carrier)))
    return Const(None)


def _enable(m: Models, obj: Obj, args: Args, name: str) -> Value:
    return m.do_enable(obj, args, name)


def _toggle(m: Models, obj: Obj, args: Args, name: str) -> Value:
    return m.do_toggle(obj, args, name)


def _merge(m: Models, obj: Obj, args: Args, name: str) -> Value:
    m.do_merge(obj, args.node)
    return Const(None)


def _unmerge(m: Models, obj: Obj, args: Args, name: str) -> Value:
    m.do_merge(obj, None)
    return Const(None)


def _add(m: Models, obj: Obj, args: Args, name: str) -> Value:
    config = next((v for v in args.all() if isinstance(v, Shape)), None)
    texts = [v.value for v in args.all() if isinstance(v, Const) and isinstance(v.value, str)]
    unknown = len(list(args.all())) > 1 or args.starred
    return m.do_add(obj, args, name, config, texts[0] if texts else None if unknown else "default")


def _compile_in_place(m: Models, obj: Obj, args: Args, name: str) -> Value:
    how: ts.How = "blocks" if name == "compile_repeated_blocks" else "in place"
    m.do_compile(obj, args.node, how)
    return Const(None)


def _merge_and_unload(m: Models, obj: Obj, args: Args, name: str) -> Value:
    plain = m.new("transformers")
    m.put(
        plain,
        replace(
            m.facts(obj), kind="transformers", adapters=(), active=(), merged=None, enabled=None
        ),
    )
    return plain


def _modules(m: Models, obj: Obj, args: Args, name: str) -> Value:
    return Part(obj, name)


def _save(m: Models, obj: Obj, args: Args, name: str) -> Value:
    facts = m.facts(obj)
    key = path_key(args.get(0, "save_directory"))
    for adapter in facts.adapters if key is not None and args.positional else ():
        if adapter.name != "default":
            key = path_key(m.joined_path([args.positional[0], Const(adapter.name)]))
        m.s.put(("saved", key), adapter.shape)
    return Const(None)


METHODS: dict[str, Callable[[Models, Obj, Args, str], Value]] = {
    "add_adapter": _add,
    "compile": _compile_in_place,
    "compile_repeated_blocks": _compile_in_place,
    "delete_adapter": _toggle,
    "delete_adapters": _toggle,
    "disable_adapter": _toggle,
    "disable_adapter_layers": _toggle,
    "disable_adapters": _toggle,
    "disable_lora": _toggle,
    "enable_adapter_layers": _toggle,
    "enable_adapters": _toggle,
    "enable_lora": _toggle,
    "enable_lora_hotswap": _enable,
    "enable_peft_hotswap": _enable,
    "fuse_lora": _merge,
    "load_adapter": _load,
    "load_lora_adapter": _load,
    "load_lora_weights": _load,
    "merge_adapter": _merge,
    "merge_and_unload": _merge_and_unload,
    "modules": _modules,
    "named_modules": _modules,
    "save_pretrained": _save,
    "set_adapter": _toggle,
    "set_adapters": _toggle,
    "unfuse_lora": _unmerge,
    "unload": _merge_and_unload,
    "unload_lora": _unload,
    "unload_lora_weights": _unload,
    "unmerge_adapter": _unmerge,
}
"""What a method of a model does, by its name."""
PROMOTING: dict[str, ts.Kind] = {
    "compile_repeated_blocks": "component",
    "enable_lora_hotswap": "pipeline",
    "enable_peft_hotswap": "transformers",
    "fuse_lora": "pipeline",
    "load_adapter": "unknown",
    "load_lora_adapter": "component",
    "load_lora_weights": "pipeline",
    "set_adapters": "pipeline",
    "unfuse_lora": "pipeline",
    "unload_lora_weights": "pipeline",
}
"""Methods by whose call something unknown is known to be a model."""
