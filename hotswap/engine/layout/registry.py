"""The registry of prepared models: the placements of each, and who uses its adapters."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from hotswap.compiler.compiled import walk
from hotswap.compiler.regions import unwrap
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.scalings import Moves, Scalings
from hotswap.engine.layout.sharding import why_unswappable
from hotswap.engine.layout.slots import adapter_names, lora_layers
from hotswap.engine.layout.staging import Buffers
from hotswap.engine.layout.unsupported import refusal
from hotswap.engine.layout.uses import Uses
from hotswap.errors import NoAdapterError, NotPreparedError

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer


class Entry:
    """What is known of a prepared model, found by any module above its LoRA layers.

    ``on_the_fly``: a swap through PEFT's functions prepared it, and another may widen it.
    """

    def __init__(self) -> None:
        # the layers keep them: what was unloaded or deleted takes its placement along
        self.placements: weakref.WeakValueDictionary[str, Placement] = weakref.WeakValueDictionary()
        self.moves = Moves()
        self.on_the_fly = False
        self.uses = Uses()
        self.banks: weakref.WeakSet[Any] = weakref.WeakSet()


_entries: weakref.WeakKeyDictionary[nn.Module, Entry] = weakref.WeakKeyDictionary()
"""By the outermost module and by each Scalings; a copy of a model has others of both."""


def entry_of(model: nn.Module, *, layers: Mapping[str, LoraLayer] | None = None) -> Entry:
    """Find the entry of a model by any module above its LoRA layers; a new one if there is none.

    ``layers`` are its LoRA layers if they are known, of which some may be prepared only now.
    """
    root = unwrap(model)
    found = _entries.get(root)
    if found is None or layers is not None:
        layers = lora_layers(root) if layers is None else layers
        scalings = [s for layer in layers.values() if isinstance(s := layer.scaling, Scalings)]
        known = filter(None, map(_entries.get, scalings))
        found = found or next(known, None) or Entry()
        if scalings:
            for module in (root, *scalings):
                _entries.setdefault(module, found)
            for each in scalings:
                each.moves = found.moves
    return found


def entry_of_layer(layer: LoraLayer) -> Entry | None:
    """Find the entry of the model that a prepared layer is in; None for a layer of a copy."""
    return _entries.get(layer.scaling) if isinstance(layer.scaling, Scalings) else None


def placement_of(model: nn.Module, name: str, *, at_once: bool = False) -> Placement:
    """Find where an adapter name's tensors are; raises NoAdapterError or NotPreparedError.

    ``at_once`` looks at no address, and so does not see what was assigned to ``.data``.
    """
    root = unwrap(model)
    placements = entry_of(root).placements
    known = placements.get(name)
    if (
        at_once
        and known is not None
        and not (known.moved or known.unnamed(root) or known.exchanged)
    ):
        return known
    if (settled := _settled_placement(root, name)) is not None:
        return settled
    other = known is None or known.exchanged
    if other:
        require_prepared(root, name)
    found = placements[name] = Placement.of(root, _slots_of(root, name))
    if other and known is not None:
        found.label = name  # others have put other tensors there
    return found


def seen_placement(model: nn.Module, name: str) -> Placement | None:
    """Find where an adapter name's tensors seem to be; ask ``placement_of`` before they are written."""
    known = entry_of(model).placements.get(name)
    return None if known is None or known.unnamed(unwrap(model)) else known


def _settled_placement(model: nn.Module, name: str) -> Placement | None:
    """Find where an adapter name's tensors are, if they are where they were."""
    known = entry_of(model).placements.get(name)
    if known is None or known.exchanged:
        return None
    return None if known.arena is not None and (known.moved or known.reassigned) else known


def _slots_of(root: nn.Module, name: str) -> AdapterSlots:
    """The slots of a model that has changed since it was prepared; raises UnsupportedLayerError."""
    walked = walk(root)
    adapter = AdapterSlots.of(root, name, walked=walked)
    if refused := why_unswappable(adapter, walked):
        raise refusal(refused)
    return adapter


def register(model: nn.Module, placement: Placement) -> None:
    """Note that a model without LoRA layers has the tensors of an adapter, as a package does."""
    _entries[model] = entry = Entry()
    entry.placements[placement.name] = placement


def forget_adapters(model: nn.Module) -> None:
    """Note that something else has written a model's adapters, so what is in place is not known."""
    for placement in list(entry_of(model).placements.values()):
        placement.forget()


def others(model: nn.Module) -> str:
    """What a model has instead of the LoRA adapter that was asked for, and what to do."""
    if known := adapter_names(model):
        return f"; pass adapter_name={known[0]!r}" + "".join(f" or {name!r}" for name in known[1:])
    for name, config in getattr(model, "peft_config", {}).items():
        if (kind := getattr(config.peft_type, "value", config.peft_type)) != "LORA":
            return f": {name!r} is {kind}, and only LoRA is swapped in place"
    return "; load the first adapter, then prepare() and compile"


def _forked() -> None:
    """Let a child process begin anew where a thread that it does not have was using a model."""
    for entry in set(_entries.values()):
        foreign = entry.uses.forked()
        for placement in list(entry.placements.values()):
            placement.buffers = Buffers()  # that thread may have been staging
            if foreign:
                placement.forget()  # or writing


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forked)


def require_prepared(model: nn.Module, name: str) -> None:
    """Raise NoAdapterError or NotPreparedError unless every layer with the adapter is prepared for it."""
    layers = lora_layers(model, name)
    if not layers:
        raise NoAdapterError(f"the model carries no LoRA adapter named {name!r}{others(model)}")
    bare = [
        module
        for module, layer in layers.items()
        if not isinstance(layer.scaling, Scalings) or name not in layer.scaling.states
    ]
    if bare:
        more = f" and {len(bare) - 1} more modules are" if len(bare) > 1 else " is"
        raise NotPreparedError(
            f"{bare[0]}{more} not prepared for adapter {name!r}; "
            "call hotswap.prepare(model, ...) before torch.compile"
        )
