"""Pipelines of diffusers: every component of one adapter file prepared and swapped in one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import inject_adapter_in_model
from torch import Tensor, nn

from hotswap.adapters.header import read_header
from hotswap.adapters.names import canonical
from hotswap.adapters.plan import SwapPlan
from hotswap.adapters.texts import weights_of
from hotswap.engine.incoming.diffusers import config_of
from hotswap.engine.incoming.source import Adapter, Source, read
from hotswap.engine.incoming.stage import stage, validate
from hotswap.engine.layout.placement import Content, Placement
from hotswap.engine.layout.registry import prepared_of
from hotswap.engine.layout.slots import lora_layers, unwrap
from hotswap.engine.load import as_it_was_on_failure, require_modules, union
from hotswap.engine.prepare import (
    CheckCompiled,
    PrepareReport,
    TargetRankError,
    check_preparable,
    prepare,
)
from hotswap.engine.swap import SwapReport, name_of, ready, user_scale
from hotswap.errors import AdapterError, NoAdapterError, UnreadableAdapterError
from hotswap.findings import Finding


def components(pipeline: Any) -> dict[str, nn.Module]:
    """The models of a pipeline that carry LoRA layers, by name. Raises TypeError or NoAdapterError."""
    parts = getattr(pipeline, "components", None)
    if not isinstance(parts, Mapping):
        raise TypeError(
            f"got a {type(pipeline).__name__}, expected a torch module or a pipeline of diffusers"
        )
    found = {
        name: unwrap(part)
        for name, part in parts.items()
        if isinstance(part, nn.Module) and lora_layers(part)
    }
    if not found:
        raise NoAdapterError(
            f"no component of the {type(pipeline).__name__} carries a LoRA layer; "
            "call load_lora_weights() first"
        )
    return found


def load_pipeline(
    pipeline: Any, plan: SwapPlan, adapter: Adapter | None, *, adapter_name: str
) -> Any:
    """Put LoRA layers into the components of a pipeline for everything in a plan; see ``load``."""
    plans = _plans(pipeline.components, plan)
    for key, model in pipeline.components.items():
        if isinstance(model, nn.Module):  # others with LoRA layers would be swapped too
            require_modules(model, plans.get(key, SwapPlan({})), f"the pipeline's {key}")
    with as_it_was_on_failure([pipeline.components[key] for key in plans]):
        for key, own in plans.items():
            model = pipeline.components[key]
            inject_adapter_in_model(union(own), model, adapter_name)
            model._hf_peft_config_loaded = True  # as diffusers and transformers note it
        prepare_pipeline(
            pipeline, target_rank=None, plan=plan, adapter_name=adapter_name, check_compiled="error"
        )
        swap_pipeline(pipeline, adapter, adapter_name=adapter_name, timeout=None)
    return pipeline


def _plans(parts: Mapping[str, Any], plan: SwapPlan) -> dict[str, SwapPlan]:
    """The part of a plan that is of each component, with the names that its modules have in the model.

    Raises TargetRankError for modules of no component.
    """
    found: dict[str, SwapPlan] = {}
    strange = []
    only = _only_component(parts, plan)
    for name, module in plan.modules.items():
        key, _, rest = (only, ".", name) if only else name.partition(".")
        if not isinstance(parts.get(key), nn.Module):
            strange.append(name)
            continue
        own = found.setdefault(key, SwapPlan({}, dtype=plan.dtype))
        own.modules[rest.removeprefix(_lost_prefix(parts[key]))] = module
    if strange:
        raise TargetRankError(
            f"the plan has {strange[0]}, which is in no component of the pipeline (these could be: "
            f"{', '.join(key for key, part in parts.items() if isinstance(part, nn.Module))}); "
            "plan files that save_lora_weights wrote for this pipeline"
        )
    return found


def _only_component(parts: Mapping[str, Any], plan: SwapPlan) -> str | None:
    """The component that a plan is of when its names are without one: that which has its modules."""
    if not plan.modules or any(name.partition(".")[0] in parts for name in plan.modules):
        return None
    first = next(iter(plan.modules))
    for key, part in parts.items():
        if isinstance(part, nn.Module):
            wanted = first.removeprefix(_lost_prefix(part))
            if any(canonical(name) == wanted for name, _ in part.named_modules()):
                return key
    return None


def prepare_pipeline(
    pipeline: Any,
    *,
    target_rank: int | None,
    plan: SwapPlan | None,
    adapter_name: str | None,
    check_compiled: CheckCompiled,
) -> PrepareReport:
    """Prepare every component in place, or none; the report names the modules of each."""
    parts = components(pipeline)
    options: dict[str, Any] = {"target_rank": target_rank, "adapter_name": adapter_name}
    plans = _plans(parts, plan) if plan is not None else {}
    if plan is not None and (lacking := [key for key in parts if key not in plans]):
        raise TargetRankError(
            f"{lacking[0]} carries an adapter, but the plan has no modules of it; "
            "plan the fleet together with the adapter that is loaded"
        )
    for key in parts:
        model = pipeline.components[key]
        check_preparable(model, plan=plans.get(key), check_compiled=check_compiled, **options)
    reports = {
        key: prepare(part, plan=plans.get(key), check_compiled="ignore", **options)
        for key, part in parts.items()
    }
    return PrepareReport(
        sum(report.padded for report in reports.values()),
        sum(report.bytes for report in reports.values()),
        {
            f"{k}.{name}": rank
            for k, report in reports.items()
            for name, rank in report.ranks.items()
        },
    )


def swap_pipeline(
    pipeline: Any, adapter: Adapter | None, *, adapter_name: str | None, timeout: float | None
) -> SwapReport:
    """Swap every component's part of an adapter, all or nothing; a component without one gets none.

    Everything is validated and staged before the first component changes.
    """
    start = time.perf_counter()
    label = _label(adapter) if adapter is not None else None
    parts = components(pipeline)
    with ExitStack() as locks:
        for part in parts.values():
            locks.enter_context(prepared_of(part).exclusive(timeout=timeout))
        places = {k: ready(part, name_of(part, adapter_name)) for k, part in parts.items()}
        sources = _sources(pipeline, adapter, parts) if adapter is not None else {}
        for key, source in sources.items():
            validate(parts[key], places[key], source)
        contents = {}
        for key, place in places.items():
            contents[key] = stage(place, sources.get(key), place.staging())
            contents[key].label = label if key in sources else None
        scales = [user_scale(place) for place in places.values()]
        _put(list(zip(places.values(), contents.values(), strict=True)))
    return SwapReport(
        label,
        sum(place.layout.bytes for place in places.values()),
        time.perf_counter() - start,
        "fallback" if any(place.arena is None for place in places.values()) else "arena",
        next((scale for scale in scales if scale is not None), None),
        tuple(contents.values()),
    )


def _put(pairs: list[tuple[Placement, Content]]) -> None:
    """Put contents in place, all or nothing."""
    before = [(place, _in_place(place, content), place.content) for place, content in pairs]
    try:
        for place, content in pairs:
            place.put_staged(content, untouched=place.untouched)
    except BaseException:
        for place, old, known in before:
            place.put(old)
            place.content = known
        raise


def _in_place(place: Placement, content: Content) -> Content:
    """What is in place now, as content that can be put back in place of another."""
    image = place.layout.new()
    if place.arena is not None:
        image.copy(place.arena)
    else:
        with torch.no_grad():
            torch._foreach_copy_(image.views, place.targets)
    fields = dict(vars(place.config)) if place.config is not None else None
    return Content(place.label, image, *place.said(content), fields)


def _sources(pipeline: Any, adapter: Adapter, parts: Mapping[str, nn.Module]) -> dict[str, Source]:
    """Read an adapter, component by component. Raises AdapterError for tensors of no component."""
    label = _label(adapter)
    state, fields, alphas = _state_dict(pipeline, adapter, label)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        component, _, rest = name.partition(".")
        tensors.setdefault(component, {})[rest] = value
    strange = [
        Finding(
            f"{label}::{name}",
            "HSW106",
            f"the adapter has weights for a component that carries no LoRA layer (these do: "
            f"{', '.join(parts)})",
            "load an adapter that has this component first, and prepare it",
        )
        for name in tensors
        if name not in parts
    ]
    if strange:
        raise AdapterError(strange)
    found = {}
    for component, own in tensors.items():
        names = _renamed(component, parts[component], own)
        named = {names[name]: value for name, value in own.items()}
        factors = {
            names.get(key.removesuffix(".alpha"), key): alpha
            for key, alpha in _below(alphas, component).items()
        }
        config = config_of(label, named, _below(fields, component) or None, factors)
        source, where = read(named, config), f"{label}::{component}"
        found[component] = replace(source, label=where, spec=replace(source.spec, path=where))
    return found


def _label(adapter: Adapter) -> str:
    return "state dict" if isinstance(adapter, Mapping) else str(adapter)


def _below(values: Mapping[str, Any], component: str) -> dict[str, Any]:
    prefix = f"{component}."
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _state_dict(
    pipeline: Any, adapter: Adapter, label: str
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, float]]:
    """Let the pipeline read a file, of whatever trainer: tensors, metadata and alphas."""
    given: Any = adapter
    if not isinstance(adapter, Mapping):
        file = weights_of(Path(adapter))
        if file is not None:
            read_header(file)  # raises for a damaged one
        given = str(file or adapter)
    options: dict[str, Any] = {"return_lora_metadata": True, "return_alphas": True}
    if "unet" in pipeline.components:
        options["unet_config"] = pipeline.components["unet"].config
    try:
        state, *more = pipeline.lora_state_dict(given, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise _unreadable(label, error) from error
    return state, more[-1] or {}, (more[0] if len(more) > 1 else None) or {}


def _unreadable(label: str, error: Exception) -> UnreadableAdapterError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    text = f"diffusers cannot read it: {first[:200]}"
    remedy = "pass a safetensors file of LoRA weights, its folder, or the id of a repository"
    return UnreadableAdapterError([Finding(label, "HSW001", text, remedy)])


def _renamed(component: str, model: nn.Module, tensors: Iterable[str]) -> dict[str, str]:
    """Map names of tensors to PEFT's, with the steps that diffusers takes when it loads a file."""
    names = {name: name for name in tensors}
    if not any("lora_A" in name for name in names):
        from diffusers.utils import (
            convert_state_dict_to_diffusers,
            convert_state_dict_to_peft,
            convert_unet_state_dict_to_peft,
        )

        if component.startswith("text_encoder"):
            try:
                names = convert_state_dict_to_peft(convert_state_dict_to_diffusers(names))
            except ValueError as error:
                raise _unreadable(component, error) from error
        else:
            names = convert_unet_state_dict_to_peft(names)
    prefix = _lost_prefix(model)
    return {old: new.removeprefix(prefix) for new, old in names.items()}


def _lost_prefix(model: nn.Module) -> str:
    """What names start with in a file but not in the model: transformers 5 flattened CLIP's text model."""
    return "" if hasattr(model, "text_model") else "text_model."
