"""load: a prepared PeftModel over the union of a plan's target modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from hotswap.adapters.names import owner
from hotswap.adapters.plan import APART, MIXED, SwapPlan
from hotswap.compiler.compiled import walk
from hotswap.engine.incoming.parts import Adapters, by_component, require_one
from hotswap.engine.incoming.renamed import plan_in_names_of
from hotswap.engine.incoming.source import Adapter, config_of
from hotswap.engine.layout.sharding import why_not_loaded
from hotswap.engine.layout.slots import lora_layers
from hotswap.engine.layout.unsupported import refusal
from hotswap.engine.mesh import Joining, joining
from hotswap.engine.parts import Part, models_of, parts_of, plans_of
from hotswap.engine.prepare import prepare_parts
from hotswap.engine.swap import swap
from hotswap.engine.transaction import Changes, exclusive
from hotswap.errors import HotswapError


def load(
    base_model: Any,
    plan: SwapPlan,
    adapter: Adapter | Adapters | None = None,
    *,
    adapter_name: str = "default",
    config: LoraConfig | None = None,
    allow_pickle: bool = False,
) -> Any:
    """Put LoRA layers into ``base_model`` (in place) for everything in the plan, and prepare them.

    So adapters with different target modules, DoRA, heads or trained tokens can be swapped: what an
    adapter does not have is as in the base model. The base weights are not copied, but for whole modules
    of modules_to_save; for adapters of PiSSA or OLoRA PEFT takes their part out of them. The result is a
    PeftModel in evaluation mode, prepared, not compiled, with ``adapter`` swapped in (None: the base
    model). A pipeline of diffusers is returned itself, with LoRA layers in every component that the plan
    has; a dict names an adapter for each component, and files of one component may share a plan. For
    ``allow_pickle`` see ``swap``. Raises HotswapError when the base model lacks a module or carries LoRA
    layers already, and what PEFT and ``swap`` raise; the base model is then as it was.
    """
    with Changes() as changes, changes:
        with joining(_carriers(base_model, plan)) as ranks:
            deployment, several = _with_layers(
                base_model, plan, adapter, adapter_name, config, allow_pickle, changes, ranks
            )
        if several:  # so that what the adapter says nothing of is empty
            swap(deployment, None, adapter_name=adapter_name)
        swap(
            deployment,
            adapter,
            adapter_name=adapter_name,
            config=config,
            allow_pickle=allow_pickle,
        )
    return deployment


def _with_layers(
    base_model: Any,
    plan: SwapPlan,
    adapter: Adapter | Adapters | None,
    adapter_name: str,
    config: LoraConfig | None,
    allow_pickle: bool,
    changes: Changes,
    ranks: Joining,
) -> tuple[Any, bool]:
    """Put prepared LoRA layers into a base model, and tell whether into several components."""
    parts = models_of(base_model)
    if isinstance(base_model, nn.Module):
        plan = plan_in_names_of(base_model, plan)
    plans = plans_of(parts, plan, adapter if by_component(adapter) else ())
    for part in parts:  # a component with LoRA layers that the plan lacks would be swapped too
        _require_modules(part, plans.get(part.key, SwapPlan({})))
    if not plan.modules and not plan.tokens and not plan.saved:
        raise HotswapError("the plan has nothing to swap; plan adapters that `hotswap check` takes")
    planned = [part for part in parts if part.key in plans]
    configs = {key: _union(own) for key, own in plans.items()}
    deployment = base_model
    if "" in configs and adapter is not None:
        found = config_of(require_one(adapter), config, allow_pickle=allow_pickle)
        configs[""].task_type = found.task_type
    planned_ranks = {key: own.ranks for key, own in plans.items()}
    ranks.agree(repr(planned_ranks), "load()")  # in PEFT's load each rank waits for all others
    _note((part.given for part in planned), changes)
    if "init_lora_weights" in plan.ground:  # PEFT takes a part out of the base weights
        for part in planned:
            _note_weights(part.given, plan, changes)
    for part in planned:
        if part.key:
            inject_adapter_in_model(configs[part.key], part.given, adapter_name)
            model: Any = part.given
            model._hf_peft_config_loaded = True  # as diffusers and transformers note it
        else:
            deployment = get_peft_model(base_model, configs[""], adapter_name=adapter_name)
            deployment.eval()
    parts = parts_of(deployment)
    with exclusive(parts, nested=True), Changes() as prepared, prepared:
        prepare_parts(parts, prepared, plan=plan, adapter_name=adapter_name, join=ranks.join)
    return deployment, len(planned) > 1


def _note(models: Iterable[nn.Module], changes: Changes) -> None:
    """Note how to take out again what is put into the models, and around their modules."""
    modules = [module for model in models for _, module in walk(model)]
    attributes = [dict(vars(module)) for module in modules]
    parts = [dict(module._modules) for module in modules]
    parameters = {
        p: p.requires_grad
        for module in modules
        for p in module._parameters.values()
        if p is not None
    }

    def put_back() -> None:
        for module, own, inside in zip(modules, attributes, parts, strict=True):
            vars(module).clear()
            vars(module).update(own)
            module._modules.clear()
            module._modules.update(inside)
        for parameter, trained in parameters.items():
            if parameter.requires_grad != trained:
                parameter.requires_grad_(trained)

    changes.callback(put_back)


def _carriers(model: Any, plan: SwapPlan) -> Iterator[nn.Module]:
    """The modules of a base model, as far as it has them, that get LoRA layers."""
    if isinstance(model, nn.Module):
        names = set(_owners(plan))
        yield from (module for name, module in walk(model) if name in names)


def _note_weights(model: nn.Module, plan: SwapPlan, changes: Changes) -> None:
    """Note the values of the weights that a plan has LoRA on."""
    for name in _owners(plan):
        for parameter in model.get_submodule(name).parameters(recurse=False):
            changes.callback(setattr, parameter, "data", parameter.data.clone())


def _require_modules(part: Part, plan: SwapPlan) -> None:
    """Raise HotswapError unless the model has every module of the plan, each for one way of training."""
    which = f"the pipeline's {part.key}" if part.key else "the base model"
    if why := why_not_loaded(part.given, plan):
        raise refusal({part.named(name): each for name, each in why.items()})
    if plan.mixed:
        raise HotswapError(f"{plan.mixed[0]} {MIXED}; {APART}")
    if lora_layers(part.given):
        raise HotswapError(
            f"{which} carries LoRA layers already; unload them, or call prepare(model, plan=plan)"
        )
    present = {name for name, _ in part.given.named_modules()}
    missing = [name for name in _owners(plan) if name not in present]
    if missing:
        raise HotswapError(
            f"{which} has no module {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; "
            "the plan was made for adapters of another base model"
        )


def _owners(plan: SwapPlan) -> list[str]:
    """The modules of the base model that carry LoRA layers; PEFT nests its own below ``base_layer``."""
    return [name for name in plan.modules if "base_layer" not in name.split(".")]


def _union(plan: SwapPlan) -> LoraConfig:
    """The config of an adapter that has everything in the plan; what only some have, prepare() adds."""
    ranks: dict[str, int] = {}
    targets: list[str] = []
    parameters: list[str] = []
    for name in _owners(plan):
        module = plan.modules[name]
        if module.kind == "parameter":
            parameters += [f"{name}.{parameter}" for parameter in module.parameters]
            least = min(own.rank for each, own in plan.modules.items() if owner(each) == name)
            ranks |= {
                f"{name}.{parameter}": least for parameter in module.parameters
            }  # prepare pads
        else:
            targets.append(name)
            ranks[name] = module.rank
    parts = plan.ground.get("parts", {})
    return LoraConfig(
        r=plan.target_rank,
        lora_alpha=plan.target_rank,
        alpha_pattern={f"^{re.escape(name)}$": scaling * r for name, (r, scaling) in parts.items()},
        init_lora_weights=plan.ground.get("init_lora_weights", True),
        alora_invocation_tokens=plan.ground.get("alora_invocation_tokens"),
        task_type="CAUSAL_LM" if "alora_invocation_tokens" in plan.ground else None,
        # "$^" matches nothing: an empty value would mean PEFT's default modules
        target_modules="|".join(re.escape(name) for name in targets) or "$^",
        target_parameters=parameters or None,
        rank_pattern={
            f"^{re.escape(name)}$": rank for name, rank in ranks.items() if rank != plan.target_rank
        },
        modules_to_save=list(plan.modules_to_save) or None,
        trainable_token_indices={name: list(rows.indices) for name, rows in plan.tokens.items()}
        or None,
        inference_mode=True,
        ensure_weight_tying=bool(plan.tied),
    )
