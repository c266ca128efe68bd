"""Component: config and tensors of one model in PEFT's terms, whatever format they came in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from hotswap.adapters.config import FIELDS
from hotswap.adapters.files import unreadable
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.names import BIAS, LINEAR, MAGNITUDE, in_file

T = TypeVar("T")
COMPONENTS = (
    "transformer",
    "transformer_2",
    "transformer_ref",
    "unet",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_conditioner",
    "connectors",
)
"""Of pipelines of diffusers, those that can carry LoRA layers."""
SECOND = ("text_encoder_2", "text_encoder_3", "text_conditioner", "connectors")
"""Of these, those that plans name, also alone: a component before it may have modules of the same names."""
METADATA = "lora_adapter_metadata"
_TARGETS = ("exclude_modules", "layers_to_transform", "layers_pattern")
_SAVE_AGAIN = "save the adapter again with diffusers' save_lora_adapter or save_lora_weights"
Convert = Callable[[Mapping[str, Any]], dict[str, dict[str, Any]]]


class Component(NamedTuple):
    """The fields of a config, and tensors by their names in a file of PEFT.

    ``convert`` makes the values of all components, by their names, of those of the whole file; where
    it is None they lie in the file as they are.
    """

    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    convert: Convert | None = None


def split(tensors: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Tell tensors apart by the component that their names start with; "" is a model by itself."""
    parts: dict[str, dict[str, T]] = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        component = first if first in COMPONENTS else ""
        parts.setdefault(component, {})[rest if component else name] = value
    return parts


def config_for(
    where: str,
    component: str,
    tensors: Mapping[str, TensorInfo],
    fields: Mapping[str, Any] | None,
    alphas: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The config of a component: its part of a file's metadata, or what its tensors imply.

    Raises UnreadableAdapterError (HSW003) for metadata that diffusers refuses, and HSW108 for names of
    which it, or transformers for a text encoder, leaves tensors out.
    """
    prefix = f"{component}." if component else ""
    _check_names(where, component, tensors)
    implied = implied_config({name: info.shape for name, info in tensors.items()}, alphas)
    if fields is None:
        return implied
    own = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
    unknown = sorted(own.keys() - FIELDS)
    if unknown:
        text = f"the metadata {METADATA} is no LoRA config: it has {ascii(unknown[0])[:60]}"
        raise unreadable(where, "HSW003", text, _SAVE_AGAIN)
    if own.get("target_modules") is None:
        text = f"the metadata {METADATA} names no target_modules of {component or 'the model'}"
        raise unreadable(where, "HSW003", f"{text}, which diffusers refuses", _SAVE_AGAIN)
    if not component.startswith("text_encoder"):  # diffusers puts LoRA wherever there are weights
        own = {key: value for key, value in own.items() if key not in _TARGETS}
        own["target_modules"] = implied["target_modules"]
    return {"peft_type": "LORA", **own}


def _check_names(where: str, component: str, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise UnreadableAdapterError (HSW108) for names that are known to get lost in a fresh load."""
    if component and any(name.startswith("base_model.") for name in tensors):
        text = f"the names of {component} go on with base_model., where diffusers finds no module"
        raise unreadable(where, "HSW108", text, _SAVE_AGAIN)
    if component.startswith("text_encoder") and any(name.endswith(MAGNITUDE) for name in tensors):
        text = (
            f"names magnitudes of DoRA of {component} as transformers does not find them, so a fresh "
            "load computes with others"
        )
        remedy = f"rename these tensors: {MAGNITUDE} to {MAGNITUDE}.weight"
        raise unreadable(where, "HSW108", text, remedy)


def without_prefix(part: Component, prefix: str) -> Component:
    """The same component with names that are without a prefix, also in its config."""
    if not prefix:
        return part
    config = dict(part.config)
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = [str(t).removeprefix(prefix) for t in config["target_modules"]]
    for field in ("rank_pattern", "alpha_pattern"):
        old, start = config.get(field) or {}, f"^{re.escape(prefix)}"
        config[field] = {
            f"^{key.removeprefix(start)}"
            if key.startswith(start)
            else key.removeprefix(prefix): value
            for key, value in old.items()
        }
    tensors = {name.removeprefix(prefix): info for name, info in part.tensors.items()}
    return part._replace(config=config, tensors=tensors)


def implied_config(
    shapes: Mapping[str, tuple[int, ...]], alphas: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The config that the tensors of a file imply, with its alphas of modules or of their lora_A.

    As in diffusers, alpha is the rank where the file has none. Rank 1 without a lora_A.
    """
    ranks = {
        in_file(name).removesuffix(f".{LINEAR[0]}"): shape[0]
        for name, shape in shapes.items()
        if name.endswith(f".{LINEAR[0]}") and shape and shape[0]
    }
    own = {re.sub(r"\.(lora_A\..*|alpha)$", "", key): float(a) for key, a in (alphas or {}).items()}
    factors = {module: own.get(module, rank) for module, rank in ranks.items()}
    rank, rank_pattern = _usual(ranks)
    alpha, alpha_pattern = _usual(factors)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ranks),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "use_dora": any(MAGNITUDE in name for name in shapes),
        "lora_bias": any(name.endswith(f".{BIAS}") for name in shapes),
    }


def _usual(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The value of most modules, and a pattern for each module with another one."""
    usual = Counter(values.values()).most_common(1)[0][0] if values else 1
    others = {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}
    return usual, others
