"""Parts: what a deployment consists of. A model is one part, a pipeline of diffusers its components."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from hotswap.adapters.names import canonical
from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.regions import unwrap
from hotswap.engine.layout.slots import lora_layers
from hotswap.errors import HotswapError, NoAdapterError


@dataclass(frozen=True, slots=True)
class Part:
    """One module tree that carries an adapter: ``key`` is a component's name, "" for a model by itself.

    ``given`` may be a wrapper of ``torch.compile``, or a module of one's own around the model. Where its
    pipeline ``widens`` adapters (Flux), those for a narrower input get columns of zeros.
    """

    key: str
    given: nn.Module
    widens: bool = False

    @property
    def model(self) -> nn.Module:
        """The model that carries the adapter, under whose names its files speak."""
        model = unwrap(self.given)
        if getattr(model, "peft_config", None):
            return model
        inside = list(_adapted(model))
        if len(inside) > 1:  # a wrapper may hold a PeftModel, and the model in it beside that
            within = {id(one) for outer in inside for one in outer.modules() if one is not outer}
            inside = [one for one in inside if id(one) not in within]
        return inside[0] if len(inside) == 1 else model

    def named(self, module: str) -> str:
        """The name that a report gives to a module of this part."""
        return f"{self.key}.{module}" if self.key else module

    def widths(self, modules: Mapping[str, int]) -> dict[str, int]:
        """How wide the input of modules is here for which an adapter has a narrower one."""
        found = {}
        for name, narrow in modules.items() if self.widens else ():
            try:
                width = getattr(self.model.get_submodule(name), "in_features", narrow)
            except AttributeError:
                continue
            if width > narrow:
                found[name] = width
        return found

    @property
    def denoises(self) -> bool:
        """Whether it is a denoiser of a pipeline, of which some have two, each with files of its own."""
        return self.key.partition("_")[0] in ("unet", "transformer")

    @property
    def lost_prefix(self) -> str:
        """What names start with in a file but not here: transformers 5 flattened CLIP's text model."""
        return "text_model." if self.key and not hasattr(self.given, "text_model") else ""


class TargetRankError(HotswapError, ValueError):
    """The target rank or plan does not fit the adapters that the model carries."""


def _adapted(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost models inside a module that carry adapters."""
    for child in module.children():
        inner = unwrap(child)
        if isinstance(getattr(inner, "peft_config", None), dict):
            yield inner
        else:
            yield from _adapted(inner)


def models_of(deployment: Any) -> list[Part]:
    """Every module tree of a model or pipeline, whether it carries an adapter or not; raises TypeError."""
    if isinstance(deployment, nn.Module):
        return [Part("", deployment)]
    components = getattr(deployment, "components", None)
    if not isinstance(components, Mapping):
        raise TypeError(
            f"got a {type(deployment).__name__}, expected a torch module or a pipeline of diffusers"
        )
    widened = getattr(deployment, "transformer_name", "")
    widens = hasattr(deployment, "_maybe_expand_lora_state_dict")
    return [
        Part(key, part, widens and key == widened)
        for key, part in components.items()
        if isinstance(part, nn.Module)
    ]


def parts_of(deployment: Any) -> list[Part]:
    """The model itself, or the components that carry LoRA layers; raises TypeError or NoAdapterError."""
    if isinstance(deployment, nn.Module):
        return models_of(deployment)
    found = [part for part in models_of(deployment) if lora_layers(part.given)]
    if not found:
        raise NoAdapterError(
            f"no component of the {type(deployment).__name__} carries a LoRA layer; "
            "call load_lora_weights() first"
        )
    return found


def require_parts(deployment: Any, parts: Sequence[Part], models: Sequence[nn.Module]) -> None:
    """Raise HotswapError unless these models of some parts are still what a deployment serves with."""
    for part, model in zip(parts, models, strict=True):
        given: Any = part.given
        if part.key:
            given = getattr(deployment, part.key, None)
            given = deployment.components.get(part.key) if given is None else given
        if given is model or (given is not None and replace(part, given=given).model is model):
            continue
        what = f"pipeline's {part.key}" if part.key else f"model in the {type(given).__name__}"
        raise HotswapError(
            f"the {what} is another one than when the bank was made; make another AdapterBank"
        )


def plans_of(
    parts: Sequence[Part], plan: SwapPlan, keys: Iterable[str] = ()
) -> dict[str, SwapPlan]:
    """The part of a plan that is of each part, with the names that its modules have in the model.

    A plan without components in its names is of ``keys``, else of the first part that has its modules.
    Raises TargetRankError for modules of no component.
    """
    if [part.key for part in parts] == [""]:
        return {"": plan}
    by_key = {part.key: part for part in parts}
    found: dict[str, SwapPlan] = {}
    strange = []
    with_them = _components_with(parts, plan)
    only = [key for key in keys if key in with_them] or with_them[:1]
    for name, module in plan.modules.items():
        first, _, rest = name.partition(".")
        for key in only or [first]:
            if key not in by_key:
                strange.append(name)
                continue
            own = found.setdefault(key, SwapPlan({}, dtype=plan.dtype))
            place = (name if only else rest).removeprefix(by_key[key].lost_prefix)
            width = by_key[key].widths({place: module.in_features}).get(place, module.in_features)
            own.modules[place] = replace(module, in_features=width)
    if strange:
        raise TargetRankError(
            f"the plan has {strange[0]}, which is in no component of the pipeline (these could be: "
            f"{', '.join(by_key)}); plan files that save_lora_weights wrote for this pipeline"
        )
    return found


def _components_with(parts: Sequence[Part], plan: SwapPlan) -> list[str]:
    """The components that have a plan's modules, if its names are without one."""
    keys = {part.key for part in parts}
    if not plan.modules or any(name.partition(".")[0] in keys for name in plan.modules):
        return []
    first = next(iter(plan.modules))
    return [
        part.key
        for part in parts
        if any(
            canonical(name) == first.removeprefix(part.lost_prefix)
            for name, _ in part.given.named_modules()
        )
    ]
