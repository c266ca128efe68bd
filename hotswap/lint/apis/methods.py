"""What a method of a model or pipeline does, by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hotswap.lint.apis import steps
from hotswap.lint.interpreter.expressions import joined_path
from hotswap.lint.interpreter.run import Run
from hotswap.lint.interpreter.values import Args, Const, Obj, Part, Value, path_key, text_of
from hotswap.lint.typestate import How, Kind, Shape

Effect = Callable[[Run, Obj, Args, str], Value]


def _add(run: Run, obj: Obj, args: Args, name: str) -> Value:
    given = list(args.all())
    config = next((v for v in given if isinstance(v, Shape)), None)
    texts = [text for v in given if (text := text_of(v)) is not None]
    unknown = None if len(given) > 1 or args.starred else "default"
    return steps.add(run, obj, args, name, config, texts[0] if texts else unknown)


def _compile(run: Run, obj: Obj, args: Args, name: str) -> Value:
    how: How = "blocks" if name == "compile_repeated_blocks" else "in place"
    steps.compile_value(run, obj, args.node, how)
    return Const(None)


def _unload(run: Run, obj: Obj, args: Args, name: str) -> Value:
    """Return the base model, without adapters; what was compiled stays compiled."""
    plain = run.new("transformers")
    facts = replace(run.facts(obj), kind="transformers", adapters=(), active=())
    run.put(plain, replace(facts, merged=None, enabled=None))
    return plain


def _save(run: Run, obj: Obj, args: Args, name: str) -> Value:
    """Remember which folder has an adapter of which shape."""
    key = path_key(args.get(0, "save_directory"))
    for adapter in run.facts(obj).adapters if key is not None and args.positional else ():
        if adapter.name != "default":
            key = path_key(joined_path(run, [args.positional[0], Const(adapter.name)]))
        run.s.put(("saved", key), adapter.shape)
    return Const(None)


def _merge(run: Run, obj: Obj, args: Args, name: str) -> Value:
    return steps.merge(run, obj, None if name.startswith("un") else args.node)


def _unload_all(run: Run, obj: Obj, args: Args, name: str) -> Value:
    return steps.unload(run, obj)


def _modules(run: Run, obj: Obj, args: Args, name: str) -> Value:
    return Part(obj, name)


def call(run: Run, obj: Obj, args: Args, name: str) -> Value:
    """Call the model; ``generate`` and pipelines choose their own gradient mode."""
    chooses = name in ("generate", "encode") or run.facts(obj).kind == "pipeline"
    steps.call_model(run, obj, args.node, grad=None if chooses else run.grad)
    return run.fresh()


METHODS: dict[str, Effect] = {
    "add_adapter": _add,
    "compile": _compile,
    "compile_repeated_blocks": _compile,
    "delete_adapter": steps.toggle,
    "delete_adapters": steps.toggle,
    "disable_adapter": steps.toggle,
    "disable_adapter_layers": steps.toggle,
    "disable_adapters": steps.toggle,
    "disable_lora": steps.toggle,
    "enable_adapter_layers": steps.toggle,
    "enable_adapters": steps.toggle,
    "enable_lora": steps.toggle,
    "enable_lora_hotswap": steps.enable,
    "enable_peft_hotswap": steps.enable,
    "fuse_lora": _merge,
    "load_adapter": steps.load,
    "load_lora_adapter": steps.load,
    "load_lora_weights": steps.load,
    "merge_adapter": _merge,
    "merge_and_unload": _unload,
    "modules": _modules,
    "named_modules": _modules,
    "save_pretrained": _save,
    "set_adapter": steps.toggle,
    "set_adapters": steps.toggle,
    "unfuse_lora": _merge,
    "unload": _unload,
    "unload_lora": _unload_all,
    "unload_lora_weights": _unload_all,
    "unmerge_adapter": _merge,
}
CALLS = frozenset({"__call__", "encode", "forward", "generate"})
"""Methods that call the model."""
CHAINED = frozenset(
    {
        "bfloat16", "cpu", "cuda", "double", "eval", "float", "half", "requires_grad_", "share_memory",
        "to", "to_empty", "train", "type",
    }
)  # fmt: skip
"""Methods that return the model itself."""
KINDS: dict[str, Kind] = {
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
"""Methods by whose call something unknown is known to be a model, and of which kind."""
