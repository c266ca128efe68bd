"""What cannot be prepared or swapped: the reasons, each with what helps."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from hotswap.adapters.config import ground_of, remedy_for, unsupported_features
from hotswap.adapters.names import families
from hotswap.engine.layout.slots import Slot
from hotswap.errors import MergedAdapterError, UnsupportedLayerError

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora.layer import LoraLayer

_LEAVE_OUT = "leave these modules out of target_modules or use an adapter without this feature"
_FACTORS = ("lora_A", "lora_B")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
_FAMILIES = 4  # named in a text


class Why(NamedTuple):
    """Why something is refused, and what to do."""

    text: str
    remedy: str = _LEAVE_OUT


MERGED = Why("has merged adapters", "call unmerge_adapter() first (unfuse_lora() of a pipeline)")


def refusal(refused: Mapping[str, Why]) -> UnsupportedLayerError:
    """The error for some modules, by name: each reason once, with the modules or families that have it."""
    named: dict[Why, list[str]] = defaultdict(list)
    for family, why in families(refused.items(), exact=True):
        named[why].append(family)
    sentences = [
        f"{', '.join(found[:_FAMILIES])}"
        f"{f' and {len(found) - _FAMILIES} more' if len(found) > _FAMILIES else ''}: "
        f"{why.text}; {why.remedy}"
        for why, found in named.items()
    ]
    layers = {name: why.text for name, why in refused.items()}
    return UnsupportedLayerError(layers, "; ".join(sentences))


def why_other_base(model: nn.Module, config: LoraConfig | None) -> Why | None:
    """Say what the adapter in place has that a swap would not take out of the model, or None.

    PiSSA and the like begin by taking a part out of the base weights, ``bias`` trains the base model's
    own, and diffusers writes the norm layers of a Flux Control LoRA into it.
    """
    if getattr(model, "_transformer_norm_layers", None):
        text = "diffusers has written the adapter's norm layers into the base model"
        return Why(text, "call unload_lora_weights(), and load an adapter of LoRA weights alone")
    # a config that was made for another type of adapter has none of the fields
    fields: Any = {} if config is None else vars(config)
    alike = ground_of(fields)
    for feature in unsupported_features({k: v for k, v in fields.items() if k not in alike}):
        return Why(feature, remedy_for(feature))
    return None


def why_no_base(config: LoraConfig | None) -> Why | None:
    """Say why a model with an adapter of this config has no base model to put in place, or None."""
    alike = ground_of({} if config is None else vars(config))
    if "init_lora_weights" not in alike:
        return None
    (feature,) = unsupported_features({"init_lora_weights": alike["init_lora_weights"]})
    return Why(feature, "load a base model of its own")


def require_unmerged(name: str, layers: Mapping[str, LoraLayer]) -> None:
    """Raise MergedAdapterError if an adapter is merged into a base weight, and warn where another one is."""
    merged = {module: layer.merged_adapters for module, layer in layers.items()}
    if own := next((module for module, names in merged.items() if name in names), None):
        raise MergedAdapterError(f"{own} {MERGED.text}: {name!r}; {MERGED.remedy}")
    others = {module: names for module, names in merged.items() if names}
    if others:
        module, (other, *_) = next(iter(others.items()))
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warnings.warn(
            f"adapter {other!r} is merged in {module}{more}, where PEFT's forward passes over {name!r} until "
            "unmerge_adapter(); to serve both, merge it for good before this one is loaded: "
            "merge_and_unload(), or fuse_lora() and unload_lora_weights() of a pipeline",
            stacklevel=4,
        )


def why_merged(layer: LoraLayer) -> Why | None:
    """Say why the norm of a base weight is not that of the model, or None when it is."""
    if not layer.merged_adapters:
        return None
    text = f"DoRA needs the norm of the base weight, into which {layer.merged_adapters} are merged"
    return Why(text, MERGED.remedy)


def why_not_known(layer: LoraLayer, name: str) -> Why | None:
    """Say why a layer's tensors cannot be found, as in a class of somebody's own, or None when they can."""
    for key in _EMBEDDING if name in getattr(layer, _EMBEDDING[0], {}) else _FACTORS:
        factor = dict(getattr(layer, key, {})).get(name)
        if not isinstance(factor, Tensor) and not isinstance(
            getattr(factor, "weight", None), Tensor
        ):
            return Why(f"{type(layer).__name__} holds its {key} in a {type(factor).__name__}")
    return None


def why_not_there(slot: Slot) -> Why | None:
    """Say why what is written into a slot is not what the forward uses, or None when it is."""
    if slot.tensor.is_meta:
        text = (
            f"{slot.state_key} is on the meta device (offloaded), where low_cpu_mem_usage=True in another "
            "thread puts it, too"
        )
        return Why(text, "load the model without offloading, and no other one meanwhile")
    key = slot.state_key.rpartition(".")[2]
    if slot.holder is not None and slot.holder.get(key) is not slot.tensor:
        text = f"{slot.state_key} is computed at every forward (parametrization, weight_norm)"
        return Why(text, "remove that first: torch.nn.utils.parametrize.remove_parametrizations()")
    return None


def why_not_replaced(slot: Slot) -> Why | None:
    """Say why a slot's tensor cannot become a view of an arena, or None when it can."""
    if slot.tensor.grad is not None:
        return Why(f"{slot.state_key} has a .grad", "call zero_grad(set_to_none=True) first")
    return why_not_there(slot)
