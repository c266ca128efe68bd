"""swap: read, validate everything, stage, then put in place with one copy."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import xxhash
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from hotswap.engine.incoming.source import Adapter, Source, read
from hotswap.engine.incoming.stage import stage, validate
from hotswap.engine.layout.placement import Content, Placement
from hotswap.engine.layout.registry import placement_of, prepared_of
from hotswap.engine.layout.slots import adapter_names, norm_of, slots, unwrap


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What a swap did.

    ``path`` says whether one copy did it, or one per tensor because the model
    was copied or moved after prepare(). ``scale_reset`` is the user's scale factor that the swap set
    back to 1, if there was one.
    """

    adapter: str | None
    bytes: int
    seconds: float
    path: Literal["arena", "fallback"]
    scale_reset: float | None
    _contents: tuple[Content, ...] = field(repr=False, compare=False)

    @property
    def digest(self) -> str:
        """The digest of the bytes put in place, computed when it is first asked for.

        Equal adapters in equally prepared models have equal ones, so caches may key on it.
        """
        digests = [content.digest for content in self._contents]
        if len(digests) == 1:
            return digests[0]
        return xxhash.xxh3_128("".join(digests).encode()).hexdigest()


def swap(
    model: Any,
    adapter: Adapter | None,
    *,
    adapter_name: str | None = None,
    config: LoraConfig | None = None,
    timeout: float | None = None,
) -> SwapReport:
    """Replace the weights of ``adapter_name`` in place, all or nothing.

    ``model`` is a module, or a pipeline of diffusers: then every component is swapped, or none.
    ``adapter`` is a PEFT folder, a safetensors file beside its config, a file or folder of diffusers, a
    hub id, a state dict as ``get_peft_model_state_dict`` returns it (with ``config``), or None for the
    base model. ``adapter_name=None`` is the model's only adapter, or "default". Everything is
    validated and staged before the one copy that changes the model; whatever fails is undone. No
    storage, shape, dtype or parameter object changes. A scale set by ``set_scale`` is reset to 1. The
    model may be a ``torch.compile`` wrapper. A KV cache computed with another adapter is not valid
    after a swap.

    Raises AdapterError (RankTooLargeError for a rank above the prepared one), NoAdapterError,
    NotPreparedError, or BusyError when the adapters are in use for ``timeout`` seconds; the model is
    then bit-identical to before.
    """
    if not isinstance(model, nn.Module):
        from hotswap.engine.pipelines import swap_pipeline

        return swap_pipeline(model, adapter, adapter_name=adapter_name, timeout=timeout)
    start = time.perf_counter()
    root = unwrap(model)
    with prepared_of(root).exclusive(timeout=timeout):
        placement = ready(root, name_of(root, adapter_name))
        source = read(adapter, config) if adapter is not None else None
        return put_in_place(root, placement, source, start)


def name_of(model: nn.Module, adapter_name: str | None) -> str:
    """The name itself; of None, that of the only adapter, or "default"."""
    if adapter_name is not None:
        return adapter_name
    known = list(prepared_of(model).placements) or adapter_names(model)
    return known[0] if len(known) == 1 else "default"


def ready(model: nn.Module, adapter_name: str) -> Placement:
    """Find the placement of an adapter name; raise what a swap raises when it can take no adapter."""
    placement = placement_of(model, adapter_name)
    placement.require_unmerged()
    placement.require_resident()
    return placement


def put_in_place(
    model: nn.Module, placement: Placement, source: Source | None, start: float
) -> SwapReport:
    """Validate and stage an adapter (None: the base model), and put it in place; the lock is held."""
    if source is not None:
        validate(model, placement, source)
    content = stage(placement, source, placement.staging())
    untouched = placement.untouched
    scale = None if untouched else user_scale(placement)
    placement.put_staged(content, untouched=untouched)
    return SwapReport(
        content.label,
        placement.layout.bytes,
        time.perf_counter() - start,
        "arena" if placement.arena is not None else "fallback",
        scale,
        (content,),
    )


def active(model: Any, *, adapter_name: str | None = None) -> str | None:
    """Name the adapter in place: the last one swapped in, None for the base model, else the slot's name.

    Of a pipeline it is the first component's that has one.
    """
    labels = [placement_of(part, name_of(part, adapter_name)).label for part in _parts(model)]
    return next((label for label in labels if label is not None), None)


def set_scale(model: Any, scale: float, *, adapter_name: str | None = None) -> None:
    """Multiply the adapter's own alpha / rank by ``scale``, in place and without a recompile.

    Unlike PEFT's ``scale_layer`` it covers embeddings too. Raises ValueError for a scale that is not
    finite, NoAdapterError or NotPreparedError.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale!r}; expected a finite number")
    for part in _parts(model):
        with prepared_of(part).exclusive(nested=True):
            placement = placement_of(part, name_of(part, adapter_name))
            for layer in placement.layers.values():
                layer.scaling[placement.name] = scale * _own_scaling(layer, placement.name)
            _renormalize(placement)


@torch.no_grad()
def _renormalize(placement: Placement) -> None:
    """Let DoRA layers go on computing plain LoRA where that is what the adapter in place is."""
    name = placement.name
    for slot in placement.slots:
        layer = placement.layers.get(slot.module)
        if slot.role != "magnitude" or layer is None:
            continue
        own = layer.scaling.own[name]
        if own is None or not own.dora:
            tensors = {one.key: one.tensor for one in slots(layer, name)}
            slot.tensor.copy_(norm_of(layer, name, tensors, layer.scaling[name]))


def _parts(model: Any) -> list[nn.Module]:
    """The model itself, or the components of a pipeline."""
    if isinstance(model, nn.Module):
        return [model]
    from hotswap.engine.pipelines import components

    return list(components(model).values())


def _own_scaling(layer: LoraLayer, name: str) -> float:
    rank, alpha = layer.r[name], layer.lora_alpha[name]
    root = math.sqrt(rank) if layer.use_rslora.get(name) else rank
    return float(alpha / root)


def user_scale(placement: Placement) -> float | None:
    """The factor by which a scaling in place differs from the adapter's own, if one does."""
    name = placement.name
    layers = [layer for layer in placement.layers.values() if layer.lora_alpha[name]]
    if not layers:
        return None
    values = torch.stack([layer.scaling[name] for layer in layers]).tolist()
    factors = [v / _own_scaling(la, name) for v, la in zip(values, layers, strict=True)]
    return next((f for f in factors if not math.isclose(f, 1.0, rel_tol=1e-6)), None)
