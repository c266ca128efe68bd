"""What functions of torch, PEFT, transformers and hotswap do to a model, by their qualified names."""

from __future__ import annotations

from dataclasses import replace

from hotswap.lint.apis import python, steps
from hotswap.lint.apis.classes import is_instance, make, wrap
from hotswap.lint.apis.python import Effect
from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.calls import call_unknown
from hotswap.lint.interpreter.conditions import holds
from hotswap.lint.interpreter.functions import DEPENDS
from hotswap.lint.interpreter.names import FACTORIES
from hotswap.lint.interpreter.objects import REQUEST_STATE, become
from hotswap.lint.interpreter.run import GRAD_MODES, Run
from hotswap.lint.interpreter.state import State
from hotswap.lint.typestate import By, Shape, unless_run


def _compile(run: Run, args: v.Args) -> v.Value:
    model = args.get(0, "model")
    if model is None:
        return v.Partial(v.Ref("torch.compile"), (), args.keywords)
    disabled = args.get(None, "disable")
    if disabled is not None and holds(run, disabled) is not False:
        return model
    if args.get(None, "backend") == v.Const("torch_tensorrt"):
        return run.fresh()
    return steps.compile_value(run, model, args.node, "wrapper")


def _reset(run: Run, args: v.Args) -> v.Value:
    """Forget what was compiled: the next call compiles again."""
    for oid, facts in list(run.s.models.items()):
        if facts.compiled:
            run.s.know(oid, replace(facts, ran=None, deferred=unless_run(facts)))
    return v.Const(None)


def _prepare(by: By) -> Effect:
    return lambda run, args: steps.prepare(run, args.get(0, "model"), args, by)


def _swap(api: str, *, name: int | None = 2) -> Effect:
    return lambda run, args: steps.swap(run, args.get(0, "model"), args, api, name=name)


def _bank(run: Run, args: v.Args) -> v.Value:
    """Keep adapters staged for a model, which has to be prepared."""
    obj = become(run, args.get(0, "model"), "unknown")
    if obj is None:
        return run.fresh()
    steps.swap(run, obj, args, "hotswap.AdapterBank", path=99, name=None)
    return v.Part(steps.carrier(run, obj), "AdapterBank()")


def _web_app(run: Run, args: v.Args) -> v.Value:
    """Make an application; its lifespan runs up to the yield before anything is asked of it."""
    app = run.new("instance")
    run.s.put("web app", app)
    lifespan = args.get(None, "lifespan")
    hooks = [lifespan] if isinstance(lifespan, v.Func) else v.elements(lifespan) or []
    for each in hooks:
        entered = run.invoke_one(each, v.Args(args.node, [app], {}))
        if isinstance(entered, v.Entered) and isinstance(entered.value, v.Dict):
            state = run.new("instance")
            run.s.put(REQUEST_STATE, state)
            for name, value in entered.value.items.items():
                run.s.put((state.oid, name), value)
    return app


def _load(run: Run, args: v.Args) -> v.Value:
    """Wrap a base model, with ``hotswap.load``, and prepare it."""
    obj = wrap(run, args, args.get(0, "base_model"), path=2, name=99)
    steps.prepare(run, obj, args, "hotswap")
    return obj


def _inject(run: Run, args: v.Args) -> v.Value:
    obj = become(run, args.get(1, "model"), "module")
    if obj is None:
        return run.fresh()
    name = v.text_of(args.get(2, "adapter_name") or v.Const("default"))
    steps.add(run, obj, args, "inject_adapter_in_model", args.get(0, "peft_config"), name)
    return obj


def _lora_config(run: Run, args: v.Args) -> v.Value:
    origin = run.fresh().oid
    if args.starred or args.get(None, "rank_pattern") or args.get(None, "alpha_pattern"):
        return Shape(origin=origin)
    usual = v.Const(8)  # PEFT's default of rank and alpha
    rank, alpha = (v.whole_of(args.keywords.get(name, usual)) for name in ("r", "lora_alpha"))
    return Shape(rank, alpha, origin)


def _isinstance(run: Run, args: v.Args) -> v.Value:
    if len(args.positional) != 2:
        return run.fresh()
    value, classes = args.positional
    known = [is_instance(run, value, cls) for cls in v.elements(classes) or [classes]]
    if True in known or None not in known:
        return v.Const(True in known)
    keys = v.key_of(value), v.key_of(classes)
    return run.fresh() if None in keys else run.memo(("isinstance", keys))


def _set_grad(run: Run, args: v.Args) -> v.Value:
    """Set the gradient mode from here on; a ``with`` block sets it back."""
    known = holds(run, args.get(0, "mode") or run.fresh())
    run.s.grad = (*run.s.grad, None if known is None else "grad" if known else "no_grad")
    return v.Const(None)


PEFT: dict[str, Effect] = {
    "LoraConfig": _lora_config,
    "get_peft_model": lambda run, args: wrap(run, args, args.get(0, "model")),
    "hotswap_adapter": _swap("hotswap_adapter"),
    "hotswap_adapter_from_state_dict": _swap("hotswap_adapter_from_state_dict"),
    "inject_adapter_in_model": _inject,
    "prepare_model_for_compiled_hotswap": _prepare("peft"),
}
"""Functions that PEFT exports from several modules, by their last name."""
FUNCTIONS: dict[str, Effect] = {
    "aiohttp.web.Application": _web_app,
    "fastapi.Depends": lambda run, args: v.Partial(DEPENDS, tuple(args.positional), {}),
    "fastapi.FastAPI": _web_app,
    "flask.Flask": _web_app,
    "hotswap.AdapterBank": _bank,
    "hotswap.load": _load,
    "hotswap.prepare": _prepare("hotswap"),
    "hotswap.swap": _swap("hotswap.swap", name=None),
    "isinstance": _isinstance,
    "litestar.Litestar": _web_app,
    "starlette.applications.Starlette": _web_app,
    "torch._inductor.aot_compile": lambda run, args: steps.package(run, args, "options"),
    "torch._inductor.aoti_compile_and_package": lambda run, args: steps.package(
        run, args, "inductor_configs"
    ),
    "torch._dynamo.optimize": lambda run, args: v.Partial(v.Ref("torch.compile"), (), {}),
    "torch._dynamo.reset": _reset,
    "torch.compile": _compile,
    "torch.compiler.reset": _reset,
    "torch.export.export": steps.exported,
    "torch.export.export_for_training": steps.exported,
    "torch.export.save": steps.save,
    "torch.set_grad_enabled": _set_grad,
    "transformers.pipeline": lambda run, args: args.get(1, "model") or run.fresh(),
}
TENSORS = frozenset(
    {
        "as_tensor", "empty", "from_numpy", "full", "full_like", "ones", "ones_like",
        "scalar_tensor", "tensor", "zeros", "zeros_like",
    }
)  # fmt: skip
"""Functions of torch that make a tensor, by their last name."""


def call_imported(run: Run, ref: v.Ref, args: v.Args) -> list[State]:
    """Call something imported, by its qualified name."""
    name = ref.name
    owner, _, last = name.rpartition(".")
    effect = PEFT.get(last) if name.startswith("peft.") else FUNCTIONS.get(name)
    effect = effect or python.FUNCTIONS.get(name)
    if effect is not None:
        return run.done(effect(run, args))
    factory = last in FACTORIES
    made = make(run, owner if factory else name, args) if factory or last[:1].isupper() else None
    if made is not None or factory:
        return run.done(made or run.fresh())
    if name.startswith("torch.") and last in TENSORS:
        return run.done(v.TENSOR)
    if owner in ("torch", "torch.autograd") and last in GRAD_MODES:
        return run.done(v.Sort(GRAD_MODES[last]))
    return call_unknown(run, ref, args)
