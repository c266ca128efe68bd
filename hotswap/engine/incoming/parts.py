"""An adapter as each part of a deployment gets it: one file of a pipeline has several components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor, nn

from hotswap.adapters.header import read_header
from hotswap.adapters.texts import weights_of
from hotswap.engine.incoming.diffusers import config_of
from hotswap.engine.incoming.source import Adapter, IncomingAdapter, read
from hotswap.engine.parts import Part
from hotswap.errors import AdapterError, UnreadableAdapterError
from hotswap.findings import Finding


def read_parts(
    deployment: Any, parts: Sequence[Part], adapter: Adapter | None, config: LoraConfig | None
) -> dict[str, IncomingAdapter]:
    """Read an adapter, part by part; a part for which it has nothing is left out, None has nothing.

    Raises UnreadableAdapterError, and AdapterError for tensors of no part.
    """
    if adapter is None:
        return {}
    if isinstance(deployment, nn.Module):
        return {part.key: read(adapter, config) for part in parts}
    label = label_of(adapter)
    state, fields, alphas = _state_dict(deployment, adapter, label)
    by_key = {part.key: part for part in parts}
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        component, _, rest = name.partition(".")
        tensors.setdefault(component, {})[rest] = value
    strange = [
        Finding(
            f"{label}::{name}",
            "HSW106",
            f"the adapter has weights for a component that carries no LoRA layer (these do: "
            f"{', '.join(by_key)})",
            "load an adapter that has this component first, and prepare it",
        )
        for name in tensors
        if name not in by_key
    ]
    if strange:
        raise AdapterError(strange)
    found = {}
    for key, own in tensors.items():
        names = _renamed(by_key[key], own)
        named = {names[name]: value for name, value in own.items()}
        factors = {
            names.get(name.removesuffix(".alpha"), name): alpha
            for name, alpha in _below(alphas, key).items()
        }
        of_part = config_of(label, named, _below(fields, key) or None, factors)
        source, where = read(named, of_part), f"{label}::{key}"
        found[key] = replace(source, spec=replace(source.spec, path=where))
    return found


def label_of(adapter: Adapter) -> str:
    """What findings and reports call an adapter."""
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


def _renamed(part: Part, tensors: Iterable[str]) -> dict[str, str]:
    """Map names of tensors to PEFT's, with the steps that diffusers takes when it loads a file."""
    names = {name: name for name in tensors}
    if not any("lora_A" in name for name in names):
        from diffusers.utils import (
            convert_state_dict_to_diffusers,
            convert_state_dict_to_peft,
            convert_unet_state_dict_to_peft,
        )

        if part.key.startswith("text_encoder"):
            try:
                names = convert_state_dict_to_peft(convert_state_dict_to_diffusers(names))
            except ValueError as error:
                raise _unreadable(part.key, error) from error
        else:
            names = convert_unet_state_dict_to_peft(names)
    return {old: new.removeprefix(part.lost_prefix) for new, old in names.items()}
