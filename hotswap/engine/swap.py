"""swap: read, validate everything, stage, then put in place with one copy."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

from peft import LoraConfig
from torch import nn

from hotswap.engine.layers import unwrap
from hotswap.engine.placement import Placement, placement_of, prepared_of
from hotswap.engine.source import Adapter, Source, read
from hotswap.engine.stage import stage, validate


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What a swap did.

    ``digest`` is that of the bytes in place: equal adapters in equally prepared models have equal ones,
    so caches may key on it. ``path`` says whether one copy did it, or one per tensor because the model
    was copied or moved after prepare(). ``scale_reset`` is the user's scale factor that the swap set
    back to 1, if there was one.
    """

    adapter: str | None
    digest: str
    bytes: int
    seconds: float
    path: Literal["arena", "fallback"]
    scale_reset: float | None


def swap(
    model: nn.Module,
    adapter: Adapter | None,
    *,
    adapter_name: str = "default",
    config: LoraConfig | None = None,
    timeout: float | None = None,
) -> SwapReport:
    """Replace the weights of ``adapter_name`` in place, all or nothing.

    ``adapter`` is a PEFT folder, a safetensors file beside its config, a hub id, a state dict as
    ``get_peft_model_state_dict`` returns it (with ``config``), or None for the base model. Everything is
    validated and staged before the one copy that changes the model; whatever fails is undone. No
    storage, shape, dtype or parameter object changes. A scale set by ``set_scale`` is reset to 1. The
    model may be a ``torch.compile`` wrapper. A KV cache computed with another adapter is not valid
    after a swap.

    Raises AdapterError (RankTooLargeError for a rank above the prepared one), NoAdapterError,
    NotPreparedError, or BusyError when the adapters are in use for ``timeout`` seconds; the model is
    then bit-identical to before.
    """
    start = time.perf_counter()
    root = unwrap(model)
    with prepared_of(root).exclusive(timeout=timeout):
        placement = ready(root, adapter_name)
        source = read(adapter, config) if adapter is not None else None
        return put_in_place(root, placement, source, start)


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
    if placement.staging is None:
        placement.staging = placement.layout.new()
    content = stage(placement, source, placement.staging)
    scale = _user_scale(placement)
    placement.put(content)
    placement.content = None  # the staging buffer is written again by the next swap
    return SwapReport(
        content.label,
        content.digest,
        placement.layout.bytes,
        time.perf_counter() - start,
        "arena" if placement.arena is not None else "fallback",
        scale,
    )


def active(model: nn.Module, *, adapter_name: str = "default") -> str | None:
    """Name the adapter in place: the last one swapped in, None for the base model, else the slot's name."""
    return placement_of(model, adapter_name).label


def set_scale(model: nn.Module, scale: float, *, adapter_name: str = "default") -> None:
    """Multiply the adapter's own alpha / rank by ``scale``, in place and without a recompile.

    Unlike PEFT's ``scale_layer`` it covers embeddings too. Raises ValueError for a scale that is not
    finite, NoAdapterError or NotPreparedError.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale!r}; expected a finite number")
    with prepared_of(model).exclusive(nested=True):
        placement = placement_of(model, adapter_name)
        for layer in placement.layers.values():
            layer.scaling[adapter_name] = scale * _own_scaling(layer, adapter_name)


def _own_scaling(layer: object, name: str) -> float:
    rank, alpha = layer.r[name], layer.lora_alpha[name]  # type: ignore[attr-defined]
    root = math.sqrt(rank) if layer.use_rslora.get(name) else rank  # type: ignore[attr-defined]
    return float(alpha / root)


def _user_scale(placement: Placement) -> float | None:
    """The factor by which the scaling in place differs from the adapter's own, if it does."""
    for layer in placement.layers.values():
        own = _own_scaling(layer, placement.name)
        if own:
            factor = layer.scaling[placement.name].item() / own
            return None if math.isclose(factor, 1.0, rel_tol=1e-6) else factor
    return None
