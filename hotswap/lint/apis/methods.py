"""What a method of a model or pipeline does, by its name."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace

from hotswap.lint.apis import steps
from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.expressions import joined_path
from hotswap.lint.interpreter.objects import component
from hotswap.lint.interpreter.run import Run
from hotswap.lint.interpreter.state import State
from hotswap.lint.typestate import Kind, Shape

Effect = Callable[[Run, v.Obj, v.Args, str], v.Value]


def _add(run: Run, obj: v.Obj, args: v.Args, name: str) -> v.Value:
    given = list(args.all())
    config = next((each for each in given if isinstance(each, Shape)), None)
    texts = [text for each in given if (text := v.text_of(each)) is not None]
    unknown = None if len(given) > 1 or args.starred else "default"
    return steps.add(run, obj, args, name, config, texts[0] if texts else unknown)


def _add_weighted(run: Run, obj: v.Obj, args: v.Args, name: str) -> v.Value:
    return steps.add(run, obj, args, name, None, v.text_of(args.get(2, "adapter_name")))


def _base(run: Run, obj: v.Obj, args: v.Args, name: str) -> v.Value:
    """Return the base model, without adapters; what was compiled stays compiled."""
    plain = run.new("transformers")
    facts = replace(run.facts(obj), kind="transformers", adapters=(), active=())
    run.put(plain, replace(facts, merged=None, enabled=None))
    return plain


def _save(run: Run, obj: v.Obj, args: v.Args, name: str) -> v.Value:
    """Remember which folder has an adapter of which shape."""
    key = v.path_key(args.get(0, "save_directory"))
    for adapter in run.facts(obj).adapters if key is not None and args.positional else ():
        if adapter.name != "default":
            key = v.path_key(joined_path(run, [args.positional[0], v.Const(adapter.name)]))
        run.s.put(("saved", key), adapter.shape)
    return v.Const(None)


def call(run: Run, obj: v.Obj, args: v.Args, name: str) -> v.Value:
    """Call the model; ``generate`` and pipelines choose their own gradient mode."""
    chooses = name in ("generate", "encode") or run.facts(obj).kind == "pipeline"
    steps.call_model(run, obj, args.node, grad=None if chooses else run.grad)
    return run.fresh()


METHODS: dict[str, Effect] = {
    "add_adapter": _add,
    "add_weighted_adapter": _add_weighted,
    "compile": steps.compile_in_place,
    "compile_repeated_blocks": steps.compile_in_place,
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
    "fuse_lora": steps.merge,
    "get_base_model": lambda run, obj, args, name: v.Part(obj, "base_model.model"),
    "load_adapter": steps.load,
    "load_lora_adapter": steps.load,
    "load_lora_weights": steps.load,
    "merge_adapter": steps.merge,
    "merge_and_unload": _base,
    "modules": lambda run, obj, args, name: v.Part(obj, name),
    "named_modules": lambda run, obj, args, name: v.Part(obj, name),
    "save_pretrained": _save,
    "set_adapter": steps.toggle,
    "set_adapters": steps.toggle,
    "unfuse_lora": steps.merge,
    "unload": _base,
    "unload_lora": steps.toggle,
    "unload_lora_weights": steps.toggle,
    "unmerge_adapter": steps.merge,
}
CALLS = frozenset({"__call__", "encode", "forward", "generate"})
"""Methods that call the model."""
CHAINED = frozenset(
    {
        "bfloat16", "cpu", "cuda", "double", "eval", "float", "half", "requires_grad_", "result",
        "share_memory", "to", "to_empty", "train", "type",
    }
)  # fmt: skip
"""Methods that return the model itself; ``result`` is of a future."""
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
_COMPILE_OPTIONS = {"mode", "fullgraph", "dynamic", "backend", "options", "disable"}
_OF_UNETS = ("Kandinsky", "StableDiffusionP", "StableDiffusionX", "StableVideo")
"""How the names of the pipelines begin whose denoiser is a unet."""
_INSIDE = ("modules", "named_modules", "children", "named_children", "items", "values")


def kind_with(name: str, args: v.Args) -> Kind | None:
    """Say what something unknown is if that method of it is called."""
    if name == "compile" and not args.positional and set(args.keywords) <= _COMPILE_OPTIONS:
        return "unknown"
    return KINDS.get(name)


def call_inside(run: Run, part: v.Part, args: v.Args) -> list[State]:
    """Call a method of a model, or of something inside it; what is not known does nothing that matters."""
    inside, _, name = part.path.rpartition(".")
    if inside and (inside not in steps.INNER or name not in METHODS or name == "compile"):
        result = _method_inside(run, part.owner, inside, name, args)
    elif name in CHAINED:
        result = part.owner
    else:
        effect = call if name in CALLS else METHODS.get(name)
        result = effect(run, part.owner, args, name) if effect is not None else None
    return run.done(result if result is not None else run.fresh())


def _method_inside(run: Run, obj: v.Obj, inside: str, name: str, args: v.Args) -> v.Value | None:
    if name == "compile":
        return steps.compile_value(run, v.Part(obj, inside), args.node, "in place")
    if name in ("set_scale", "unscale_layer"):
        tensor = args.get(1, "scale") == v.TENSOR
        steps.scale(run, obj, args.node, name, v.TENSOR if tensor else v.NUMBER)
    if inside == steps.EXPORTED:  # module(), run_decompositions(): the program still
        return v.Part(obj, inside)
    if inside == "AdapterBank()" and name in ("add", "using"):
        return steps.use_bank(run, obj, args, name)
    if inside == "components" and name in ("items", "values"):
        return _components(run, obj, name)
    if name in _INSIDE:
        return v.Part(obj, f"{inside}.{name}")
    return v.Part(obj, inside) if name in CHAINED else None


def _components(run: Run, pipe: v.Obj, method: str) -> v.Value:
    """Return the models that a pipeline is made of, by the names that it may have for them."""
    made_by = str(run.s.heap.get((pipe.oid, "__made_by__")))
    usual = v.Const("unet" if made_by.startswith(_OF_UNETS) else "transformer")
    used = run.s.heap.get((pipe.oid, "__denoiser__"), usual)
    rows = [(used, component(run, pipe, "transformer"))]
    if (pipe.oid, "transformer_2") in run.s.heap:
        rows.append((v.Const("transformer_2"), component(run, pipe, "transformer_2")))
    rows += [(v.Const(name), component(run, pipe, name)) for name in ("text_encoder", "vae")]
    return v.Seq(tuple(v.Seq(row) if method == "items" else row[1] for row in rows))


def set_item(run: Run, part: v.Part, node: ast.AST, value: v.Value) -> None:
    """Assign to an element of something inside a model."""
    if part.path.rpartition(".")[2] == "scaling":
        steps.scale(run, part.owner, node, "scaling", value)
