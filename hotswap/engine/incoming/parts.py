"""An adapter as each part of a deployment gets it: one file of a pipeline has several components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hotswap.adapters.formats.conversion import infos
from hotswap.adapters.formats.trainers import of_tensors
from hotswap.adapters.names import LINEAR
from hotswap.adapters.texts import Family
from hotswap.engine.incoming.source import (
    Adapter,
    Config,
    IncomingAdapter,
    describe,
    named,
    read,
    read_components,
)
from hotswap.engine.parts import Part
from hotswap.errors import AdapterError
from hotswap.findings import Finding


def read_parts(
    deployment: Any, parts: Sequence[Part], adapter: Adapter | None, config: Config | None
) -> dict[str, IncomingAdapter]:
    """Read an adapter, part by part; a part for which it has nothing is left out, None has nothing.

    Raises UnreadableAdapterError, and AdapterError for tensors of no part.
    """
    if adapter is None:
        return {}
    if isinstance(deployment, nn.Module):
        return {part.key: read(adapter, config) for part in parts}
    label, by_key = label_of(adapter), {part.key: part for part in parts}
    lost = {part.key: part.lost_prefix for part in parts if part.lost_prefix}

    if isinstance(adapter, Mapping):
        contents, values = of_tensors(family_of(deployment), adapter)
        found = {
            name: IncomingAdapter(known, known.spec, named(values[name], lost.get(name, "")))
            for name, known in describe(label, contents, None, lost).items()
        }
    else:
        found = read_components(adapter, config, family_of(deployment), lost)
    strange = [
        Finding(
            f"{label}::{name}",
            "HSW106",
            f"the adapter has weights for a component that carries no LoRA layer (these do: "
            f"{', '.join(by_key)})",
            "load an adapter that has this component first, and prepare it",
        )
        for name in found
        if name not in by_key
    ]
    if strange:
        raise AdapterError(strange)
    return {
        name: _widened(by_key[name], replace(one, spec=replace(one.spec, path=f"{label}::{name}")))
        for name, one in found.items()
    }


def _widened(part: Part, one: IncomingAdapter) -> IncomingAdapter:
    """The adapter with columns of zeros where a module's input is wider, as diffusers loads it."""
    narrow = {n: m.in_features for n, m in one.spec.modules.items() if m.kind == "linear"}
    widths = part.widths(narrow)
    if not widths:
        return one
    values = {name: value.clone() for name, value in one.tensors.items()}
    for name, width in widths.items():
        key = f"{name}.{LINEAR[0]}"
        values[key] = nn.functional.pad(values[key], (0, width - narrow[name]))
    modules = {
        name: replace(module, in_features=widths.get(name, module.in_features))
        for name, module in one.spec.modules.items()
    }
    spec = replace(one.spec, modules=modules)
    return IncomingAdapter(replace(one.known, tensors=infos(values)), spec, values)


def label_of(adapter: Adapter) -> str:
    """What findings and reports call an adapter."""
    return "state dict" if isinstance(adapter, Mapping) else str(adapter)


def family_of(pipeline: Any) -> Family:
    """Which converter reads files for a pipeline."""
    unet = pipeline.components.get("unet")
    layers = getattr(getattr(unet, "config", None), "layers_per_block", 2)
    return Family(type(pipeline).__name__, layers if isinstance(layers, int) else 2)
