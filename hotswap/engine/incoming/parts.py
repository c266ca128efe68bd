"""An adapter as each part of a deployment gets it: one file of a pipeline has several components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hotswap.adapters.formats.conversion import infos
from hotswap.adapters.formats.trainers import of_tensors
from hotswap.adapters.names import LINEAR
from hotswap.adapters.texts import Family
from hotswap.engine.incoming.source import (
    NOTHING,
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

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Adapters = Mapping[str, Adapter | None]
"""An adapter for each component of a pipeline that is named; None: it is to have none."""


def read_parts(
    deployment: Any,
    parts: Sequence[Part],
    adapter: Adapter | Adapters | None,
    config: Config | None,
    *,
    allow_pickle: bool = False,
) -> dict[str, IncomingAdapter]:
    """Read an adapter, part by part; NOTHING for a part that it empties.

    A part of which it says nothing is left out: those that a dict does not name, and the other denoiser
    of two where a file has one. Raises UnreadableAdapterError, and AdapterError for tensors or names of no
    part.
    """
    if adapter is None:
        return {part.key: NOTHING for part in parts}
    if isinstance(deployment, nn.Module):
        one = read(require_one(adapter), config, allow_pickle=allow_pickle)
        return {part.key: one for part in parts}
    if by_component(adapter):
        return _read_each(deployment, parts, adapter, config, allow_pickle)
    label, by_key = label_of(adapter), {part.key: part for part in parts}
    found = _components(deployment, parts, adapter, config, allow_pickle)
    strange = [_strange(label, name, by_key) for name in found if name not in by_key]
    if strange:
        raise AdapterError(strange)
    denoises = any(by_key[name].denoises for name in found)
    emptied = [part.key for part in parts if not (denoises and part.denoises)]
    return dict.fromkeys(emptied, NOTHING) | {
        name: _widened(by_key[name], replace(one, spec=replace(one.spec, path=f"{label}::{name}")))
        for name, one in found.items()
    }


def _strange(label: str, component: str, by_key: Mapping[str, Part]) -> Finding:
    """What is wrong with a part of an adapter for which the pipeline has no component."""
    carry = ", ".join(by_key)
    if not component:
        text = "its names are of a model by itself, and of no component of the pipeline"
        remedy = f"swap that model (of these: {carry}), as in swap(pipeline.{next(iter(by_key))}, adapter)"
        return Finding(label, "HSW106", text, remedy)
    text = f"the adapter has weights for a component that carries no LoRA layer (these do: {carry})"
    remedy = "load an adapter that has this component first, and prepare it"
    return Finding(f"{label}::{component}", "HSW106", text, remedy)


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


def by_component(adapter: Adapter | Adapters | None) -> TypeIs[Adapters]:
    """Whether it names an adapter for each component, and is no state dict."""
    return (
        isinstance(adapter, Mapping)
        and bool(adapter)
        and not any(isinstance(value, Tensor) for value in adapter.values())
    )


def require_one(adapter: Adapter | Adapters) -> Adapter:
    """The adapter itself; raises ValueError if it names components, which a model by itself lacks."""
    if by_component(adapter):
        raise ValueError(
            f"got an adapter each for {', '.join(map(str, adapter))}, but the model is no pipeline; "
            "pass the adapter itself, or the pipeline"
        )
    return adapter


def _read_each(
    pipeline: Any,
    parts: Sequence[Part],
    adapters: Adapters,
    config: Config | None,
    allow_pickle: bool,
) -> dict[str, IncomingAdapter]:
    """Read an adapter for each component that is named; of a file of several, that component's."""
    by_key = {part.key: part for part in parts}
    for key in adapters:
        if key not in by_key:
            text = f"no component {key!r} carries a LoRA layer (these do: {', '.join(by_key)})"
            remedy = "name one of these, or load an adapter for it first, and prepare it"
            raise AdapterError([Finding(type(pipeline).__name__, "HSW106", text, remedy)])
    given: dict[str, IncomingAdapter] = {}
    for key, adapter in adapters.items():
        if adapter is None:
            given[key] = NOTHING
            continue
        found = _components(pipeline, parts, adapter, config, allow_pickle)
        # files for the second denoiser have the names of the first
        one = found.get(key) or (next(iter(found.values())) if len(found) == 1 else None)
        if one is None:
            text = f"has nothing for {key} (it has: {', '.join(found)})"
            remedy = f'leave {key} out, or write "{key}": None to empty it'
            raise AdapterError([Finding(label_of(adapter), "HSW106", text, remedy)])
        label, values = f"{label_of(adapter)}::{key}", one.values
        if isinstance(values, dict):  # the next file is read into the same buffer
            values = {name: value.clone() for name, value in values.items()}
        own = replace(one, spec=replace(one.spec, path=label), values=values)
        given[key] = _widened(by_key[key], own)
    return given


def _components(
    pipeline: Any,
    parts: Sequence[Part],
    adapter: Adapter,
    config: Config | None,
    allow_pickle: bool,
) -> dict[str, IncomingAdapter]:
    """Read an adapter of a pipeline, component by component."""
    lost = {part.key: part.lost_prefix for part in parts if part.lost_prefix}
    if not isinstance(adapter, Mapping):
        return read_components(
            adapter, config, family_of(pipeline), lost, allow_pickle=allow_pickle
        )
    contents, values = of_tensors(family_of(pipeline), adapter)
    return {
        name: IncomingAdapter(known, known.spec, named(values[name], lost.get(name, "")))
        for name, known in describe(label_of(adapter), contents, None, lost).items()
    }


def label_of(adapter: Adapter) -> str:
    """What findings and reports call an adapter."""
    return "state dict" if isinstance(adapter, Mapping) else str(adapter)


def labels_of(parts: Sequence[Part], adapter: Adapter | Adapters | None) -> dict[str, str | None]:
    """What reports call the adapter of each part; None for a part that gets none."""
    each = adapter if by_component(adapter) else {part.key: adapter for part in parts}
    return {key: None if one is None else label_of(one) for key, one in each.items()}


def family_of(pipeline: Any) -> Family:
    """Which converter reads files for a pipeline."""
    unet = pipeline.components.get("unet")
    layers = getattr(getattr(unet, "config", None), "layers_per_block", 2)
    return Family(type(pipeline).__name__, layers if isinstance(layers, int) else 2)
