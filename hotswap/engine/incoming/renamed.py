"""An adapter that was trained with other names of the same modules, under those that the model has now."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hotswap.adapters.config import FIELDS
from hotswap.adapters.formats.conversion import converted_for, infos
from hotswap.adapters.nested import nested_as, renamed_wrappers
from hotswap.adapters.plan import ModulePlan, SwapPlan
from hotswap.adapters.planner import plan as plan_for
from hotswap.adapters.spec import AdapterSpec
from hotswap.engine.incoming.source import IncomingAdapter, from_state_dict, plain
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.placement import Placement

if TYPE_CHECKING:
    from peft import LoraConfig


def in_names_of(
    model: nn.Module, places: Placement | AdapterSlots, source: IncomingAdapter
) -> IncomingAdapter:
    """The adapter under the names of the model's layers, by PEFT's own conversion from transformers 4.

    The same one where it has these names already, or where the conversion does not give them. Wrappers of
    parameters have the names that they have where the model has more of them.
    """
    layers = places.layers
    if source.known.fields is None:
        return source
    if source.spec.modules.keys() <= layers.keys():
        return _nested(places.envelope.modules, source)
    if not hasattr(getattr(_base_of(model), "config", None), "model_type"):
        return source  # only models of transformers have had other names
    found = _converted(model, source.config, source.tensors)
    if found is None:
        return source
    renamed = from_state_dict(*found)
    if renamed.spec.findings or not renamed.spec.modules.keys() <= layers.keys():
        return source  # of some models PEFT converts the weights and not the config
    return _nested(
        places.envelope.modules, replace(renamed, spec=replace(renamed.spec, path=source.label))
    )


def _nested(modules: Mapping[str, ModulePlan], source: IncomingAdapter) -> IncomingAdapter:
    names = renamed_wrappers(source.spec, modules)
    if not names:
        return source

    def renamed(tensor: str) -> str:
        module, mark, rest = tensor.rpartition(".lora_")
        return f"{names.get(module, module)}{mark}{rest}"

    known = replace(source.known, tensors={renamed(n): i for n, i in source.infos.items()})
    values = source.values
    if isinstance(values, dict):
        values = {renamed(name): value for name, value in values.items()}
    return IncomingAdapter(known, nested_as(source.spec, modules), values)


def plan_in_names_of(model: nn.Module, plan: SwapPlan) -> SwapPlan:
    """The plan under the names of the model's modules, if it is of adapters that were trained with others."""
    from peft import LoraConfig

    present = {name for name, _ in model.named_modules()}
    if all(name in present for name in plan.modules) or any(
        module.kind != "linear" for module in plan.modules.values()
    ):
        return plan
    rank = plan.target_rank
    tensors = _stand_ins({name: replace(m, rank=rank) for name, m in plan.modules.items()})
    targets = sorted({name.rpartition(".")[2] for name in plan.modules})
    found = _converted(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), tensors)
    if found is None:
        return plan
    spec = AdapterSpec.from_tensors("the plan", plain(found[1]), infos(found[0]))
    modules = plan_for([spec]).modules
    if (
        spec.findings
        or not spec.modules
        or not all(name.split(".base_layer")[0] in present for name in modules)
    ):
        return plan
    wide = {
        name: replace(module, bias=_any(plan, "bias"), dora=_any(plan, "dora"))
        for name, module in modules.items()
    }
    return replace(plan, modules=wide)


def spec_in_names_of(model: nn.Module, spec: AdapterSpec) -> AdapterSpec:
    """What an adapter says, under the names of a model's modules; the same where they are no others."""
    from peft import LoraConfig

    if any(module.kind != "linear" for module in spec.modules.values()):
        return spec
    known = {key: value for key, value in spec.config.items() if key in FIELDS}
    found = _converted(model, LoraConfig(**known), _stand_ins(spec.modules))
    if found is None:
        return spec
    own = AdapterSpec.from_tensors(spec.path, plain(found[1]), infos(found[0]))
    if own.findings and not spec.findings:
        return spec
    return replace(own, saved=spec.saved, tokens=spec.tokens, copies=spec.copies)


def _stand_ins(modules: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        f"base_model.model.{name}.lora_{part}.weight": torch.empty(shape, device="meta")
        for name, m in modules.items()
        for part, shape in (("A", (m.rank, m.in_features)), ("B", (m.out_features, m.rank)))
    }


def _any(plan: SwapPlan, trait: str) -> bool:
    return any(getattr(module, trait) for module in plan.modules.values())


def _converted(
    model: nn.Module, config: LoraConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoraConfig] | None:
    """State dict and config for a model of transformers; None where nothing has other names."""
    named = {
        key if key.startswith("base_model.") else f"base_model.model.{key}": value
        for key, value in tensors.items()
    }
    own = copy.deepcopy(config)
    return converted_for(_base_of(model), own, named)


def _base_of(model: nn.Module) -> Any:
    return getattr(model, "get_base_model", lambda: model)()
