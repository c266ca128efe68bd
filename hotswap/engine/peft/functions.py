"""PEFT's hot-swapping functions over this engine: its parameters, return values and types of errors."""

from __future__ import annotations

import copy
import functools
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from hotswap.adapters.modules import ModuleSpec
from hotswap.adapters.plan import ModulePlan, SwapPlan
from hotswap.adapters.spec import AdapterSpec, merge_alike
from hotswap.compiler.compiled import compiled_parts
from hotswap.engine.incoming.renamed import in_names_of
from hotswap.engine.incoming.source import IncomingAdapter, read
from hotswap.engine.incoming.stage import fields_of, not_finite
from hotswap.engine.incoming.validate import findings_of
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.registry import entry_of, others
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.slots import lora_layers
from hotswap.engine.layout.unsupported import refusal, require_unmerged, why_other_base
from hotswap.engine.mesh import together
from hotswap.engine.parts import Part
from hotswap.engine.preparable import CheckCompiled, why_unsupported
from hotswap.engine.prepare import prepare, prepare_parts
from hotswap.engine.swap import exchange
from hotswap.engine.transaction import Changes, exclusive, ready, stage_parts
from hotswap.errors import (
    AdapterError,
    NoAdapterError,
    NotPreparedError,
    UnexpectedModulesError,
)
from hotswap.findings import Finding

HUB = ("subfolder", "revision", "cache_dir", "token", "force_download", "local_files_only")
"""The arguments of huggingface_hub that are passed on."""
_unprepared = threading.Lock()  # models that are not prepared have none of their own


def prepare_model_for_compiled_hotswap(
    model: nn.Module,
    *,
    target_rank: int | None = None,
    config: LoraConfig | dict[str, LoraConfig] | None = None,
    check_compiled: CheckCompiled = "error",
) -> None:
    """Prepare a model in place as ``hotswap.prepare`` does, for all of its adapters.

    ``config`` is one of the model's configs, or all of them: they get the target rank, as PEFT does it,
    but still write the adapter's own, at which its weights are saved. Raises ValueError as PEFT does: for
    a compiled model, one without adapters, or a target rank below an adapter's.
    """
    prepare(model, target_rank=target_rank, check_compiled=check_compiled)
    entry_of(model).on_the_fly = False
    if target_rank is not None and config is not None:
        for each in config.values() if isinstance(config, dict) else [config]:
            _set_rank(each, target_rank)


def _set_rank(config: LoraConfig, rank: int) -> None:
    """Let a config have another rank than it writes; the next swap ends that."""
    if "to_dict" not in vars(config):
        own = {"r": config.r, "rank_pattern": config.rank_pattern}
        vars(config)["to_dict"] = functools.partial(_to_dict, config, own)
    config.r = rank
    config.rank_pattern = dict.fromkeys(config.rank_pattern or {}, rank)


def _to_dict(config: LoraConfig, own: dict[str, Any]) -> dict[str, Any]:
    return {**type(config).to_dict(config), **own}


def hotswap_adapter(
    model: nn.Module,
    model_name_or_path: str | Path,
    adapter_name: str,
    torch_device: str | torch.device | None = None,
    **kwargs: Any,
) -> None:
    """Replace an adapter in place, all or nothing, by one from a folder or the hub.

    A model that was not prepared is swapped as it is when ranks and scalings stay the same; else, if
    nothing of it is seen to be compiled, it is prepared on the fly, for the larger rank of the two.
    Half a pair of lora_A and lora_B counts as zeros, with a warning. ``torch_device`` is accepted; the
    adapter goes to where the model's is. ``kwargs`` are huggingface_hub's: subfolder, revision, …, and
    ``key_mapping``: patterns of names in the file, without PEFT's prefix, and what the model has for them.

    Raises RuntimeError (UnexpectedModulesError) for an adapter that targets more modules, RuntimeError
    (NotPreparedError) for a compiled model that is not prepared for it, ValueError for any other adapter
    that does not fit, for a merged one, and TypeError for an unknown argument.
    """
    del torch_device
    hub = {key: value for key, value in kwargs.items() if value is not None}
    if token := hub.pop("use_auth_token", None):
        hub["token"] = token
    mapping = hub.pop("key_mapping", {})
    unknown = [key for key in hub if key not in HUB]
    if unknown:
        raise TypeError(
            f"hotswap_adapter() got {unknown[0]}=; expected one of {', '.join(HUB)}, "
            "use_auth_token, key_mapping"
        )
    swap_as_peft(model, adapter_name, lambda: _renamed(read(model_name_or_path, **hub), mapping))


def _renamed(source: IncomingAdapter, mapping: Mapping[str, str]) -> IncomingAdapter:
    """The adapter with other names of its tensors: for each the first pattern that is found in it."""
    if not mapping:
        return source
    tensors = {}
    for name, value in source.tensors.items():
        found = [re.subn(pattern, new, name) for pattern, new in mapping.items()]
        tensors[next((renamed for renamed, count in found if count), name)] = value
    config = copy.copy(source.config)
    config.target_modules = {n.rpartition(".lora_")[0] for n in tensors if ".lora_" in n}
    renamed = read(tensors, config)
    return replace(renamed, spec=replace(renamed.spec, path=source.label))


def hotswap_adapter_from_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    adapter_name: str,
    config: LoraConfig,
    parameter_prefix: str = "lora_",
) -> None:
    """Replace an adapter in place as ``hotswap_adapter`` does; keys name the adapter, as in the model.

    ``parameter_prefix`` is accepted, as which tensors are LoRA weights is known from the layers.
    """
    del parameter_prefix
    if "to_dict" in vars(config):
        config = LoraConfig(**config.to_dict())
    tensors = {without_name(key, adapter_name): value for key, value in state_dict.items()}
    swap_as_peft(model, adapter_name, lambda: read(tensors, config))


def check_hotswap_configs_compatible(config0: PeftConfig, config1: PeftConfig) -> None:
    """Raise ValueError unless both adapters are LoRA; what else may differ is checked by the swap."""
    found = [getattr(config.peft_type, "value", config.peft_type) for config in (config0, config1)]
    if found != ["LORA", "LORA"]:
        raise ValueError(f"the adapters are {found[0]} and {found[1]}, expected LORA and LORA")


def without_name(key: str, name: str) -> str:
    """A tensor's name in an adapter file, from its name in a model."""
    name = re.escape(name)
    key = re.sub(rf"(\.lora_[AB])\.{name}(\.(?:weight|bias))$", r"\1\2", key)
    key = re.sub(rf"(\.lora_(?:embedding_[AB]|magnitude_vector))\.{name}(?:\.weight)?$", r"\1", key)
    key = re.sub(rf"(\.trainable_tokens_delta)\.{name}$", r"\1", key)
    return re.sub(rf"\.modules_to_save\.{name}\.", ".", key)


def swap_as_peft(wrapped: nn.Module, name: str, source_of: Callable[[], IncomingAdapter]) -> None:
    """Swap in an adapter as PEFT would, whether the model is prepared or not."""
    start = time.perf_counter()
    source, part = source_of(), Part("", wrapped)
    source = replace(source, values=source.tensors)  # read while others may use the model
    model = part.model
    with (
        together([part]) as agree,
        ExitStack() as lent,
        exclusive([part], name=name),
        Changes() as changes,
        changes,
    ):
        layers = lora_layers(model, name)
        if not layers:
            raise NoAdapterError(f"the model carries no LoRA adapter named {name!r}{others(model)}")
        if why := why_other_base(model, getattr(model, "peft_config", {}).get(name)):
            raise refusal({f"adapter {name!r}": why})
        source = _whole(_in_names_of(model, layers, source, name), layers)
        bare = any(not isinstance(layer.scaling, Scalings) for layer in layers.values())
        if bare and _as_it_is(model, layers, source.spec, name):
            with _unprepared:
                _overwrite(model, layers, source, name, changes)
            return
        if bare or entry_of(model).on_the_fly:
            _make_room(part, layers, source.spec, name, changes)
        parts, places, incoming, labels = (
            [part],
            [ready(part, name)],
            {"": source},
            {"": source.label},
        )
        staged = stage_parts(parts, places, incoming, labels, lambda place: place.staging(lent))
        exchange(parts, places, staged, start, changes, agree)


def _in_names_of(
    model: nn.Module, layers: dict[str, LoraLayer], source: IncomingAdapter, name: str
) -> IncomingAdapter:
    """The adapter under the names of the model's layers, where it was trained with others."""
    spec = source.spec
    if spec.modules.keys() <= layers.keys() and not spec.config.get("target_parameters"):
        return source
    return in_names_of(model, AdapterSlots.of(model, name, layers=layers), source)


def _whole(source: IncomingAdapter, layers: dict[str, LoraLayer]) -> IncomingAdapter:
    """The adapter without the modules of which it has half a pair; raise if it targets other modules."""
    parts: dict[str, set[str]] = {}
    for tensor in source.infos:
        module, found, part = tensor.rpartition(".lora_")
        if found:
            parts.setdefault(module, set()).add(part)
    findings = [
        Finding(
            f"{source.label}::{module}",
            "HSW106",
            "the adapter targets a module that carries no LoRA layer in the model",
            "load the model with hotswap.load(base_model, plan), which has room for every adapter",
        )
        for module in parts
        if module not in layers
    ]
    if findings:
        raise UnexpectedModulesError(merge_alike(findings))
    pairs = (("A.weight", "B.weight"), ("embedding_A", "embedding_B"))
    halves = [
        module for module, own in parts.items() if any((a in own) != (b in own) for a, b in pairs)
    ]
    if not halves:
        return source
    warnings.warn(
        f"{source.label} has only one of lora_A and lora_B for {', '.join(halves)}: "
        "the adapter does nothing there",
        stacklevel=4,
    )
    tensors = {
        tensor: value
        for tensor, value in source.tensors.items()
        if tensor.rpartition(".lora_")[0] not in halves
    }
    return read(tensors, source.config)


def _as_it_is(model: nn.Module, layers: dict[str, LoraLayer], spec: AdapterSpec, name: str) -> bool:
    """Whether an adapter has the ranks and scalings of the one in place, so that nothing need be prepared."""
    adapter = AdapterSlots.of(model, name, layers=layers)
    if spec.saved or spec.tokens or spec.copies or adapter.auxiliary:
        return False
    if any(slot.tensor.is_inference() or slot.sharded for slot in adapter.slots):
        return False  # cannot be written outside of inference_mode, or as a whole
    places = adapter.envelope.modules
    return all(key in spec.modules for key, place in places.items() if place.dora) and all(
        (module.rank, module.bias, module.dora)
        == (places[key].rank, places[key].bias, places[key].dora)
        and module.scaling == float(layers[key].scaling[name])
        for key, module in spec.modules.items()
    )


@torch.no_grad()
def _overwrite(
    model: nn.Module,
    layers: dict[str, LoraLayer],
    source: IncomingAdapter,
    name: str,
    changes: Changes,
) -> None:
    """Overwrite the tensors of an unprepared model where they are, all or nothing."""
    adapter = AdapterSlots.of(model, name, layers=layers)
    _refuse(_findings(model, layers, adapter.envelope, source.spec, name))
    require_unmerged(name, layers)
    for module, layer in layers.items():
        if why := why_unsupported(layer, name, adapter.of_layer[module]):
            raise refusal({module: why})
    slots = adapter.slots
    targets = [slot.tensor.detach() for slot in slots]
    given = source.tensors
    values = [
        given.get(slot.name, slot.tensor.new_zeros(())).expand_as(slot.tensor) for slot in slots
    ]
    _refuse(
        [
            not_finite(f"{source.label}::{slot.name}", value, slot.tensor.dtype)
            for slot, value in zip(slots, values, strict=True)
            if not torch.isfinite(value.to(slot.tensor.dtype)).all()
        ]
    )
    notes: list[tuple[dict[str, Any], str, Any]] = []
    for module, spec in source.spec.modules.items():
        layer = layers[module]
        notes += [(layer.r, name, spec.rank), (layer.lora_alpha, name, spec.alpha)]
        notes.append((layer.use_rslora, name, source.config.use_rslora))
    config = getattr(model, "peft_config", {}).get(name)
    if config is not None:
        notes += [(vars(config), field, value) for field, value in fields_of(source.config).items()]
    changes.callback(torch._foreach_copy_, targets, [target.clone() for target in targets])
    torch._foreach_copy_(targets, values)
    for holder, key, value in notes:
        changes.keep(holder, key)
        holder[key] = value
    torch.autograd.graph.increment_version([slot.tensor for slot in slots])


def _make_room(
    part: Part, layers: dict[str, LoraLayer], spec: AdapterSpec, name: str, changes: Changes
) -> None:
    """Prepare the model, or widen what was prepared on the fly, so that the adapter fits."""
    model = part.model
    room = AdapterSlots.of(model, name, layers=layers).envelope
    wider = {key: _wider(place, spec.modules.get(key)) for key, place in room.modules.items()}
    _refuse(_findings(model, layers, replace(room, modules=wider), spec, name))
    if wider == room.modules and entry_of(model).on_the_fly:
        return
    if parts := compiled_parts(part.given):
        raise NotPreparedError(
            f"{parts[0]}, and the adapter has another rank or scaling than the one in place; "
            "call prepare_model_for_compiled_hotswap(model, target_rank=...) before torch.compile"
        )
    prepare_parts([part], changes, plan=SwapPlan(wider), adapter_name=name)
    changes.set(entry_of(model), "on_the_fly", True)


def _findings(
    model: nn.Module, layers: dict[str, LoraLayer], room: SwapPlan, spec: AdapterSpec, name: str
) -> tuple[Finding, ...]:
    """Why an adapter does not fit into this room of a model."""
    config = getattr(model, "peft_config", {}).get(name)
    in_place = {key: (la.r[name], float(la.scaling[name])) for key, la in layers.items()}
    return findings_of(room, spec, config, in_place)


def _wider(place: ModulePlan, module: ModuleSpec | None) -> ModulePlan:
    if module is None:
        return place
    return replace(
        place,
        rank=max(place.rank, module.rank),
        bias=place.bias or module.bias,
        dora=place.dora or module.dora,
    )


def _refuse(findings: Sequence[Finding]) -> None:
    if findings:
        raise AdapterError(merge_alike(findings))
