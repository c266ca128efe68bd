"""Prepared: the record of a model that was prepared, found by any module above its LoRA layers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from peft.tuners.lora.layer import LoraLayer
from torch import nn

from hotswap.engine.layout.adapter_slots import Carried
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.slots import lora_layers, unwrap
from hotswap.errors import BusyError, NoAdapterError, NotPreparedError


class Prepared:
    """What is known of a prepared model: its placements, and the lock of whoever uses its adapters.

    ``moved`` is set when the model, or a part of it, goes to another device or dtype.
    """

    def __init__(self) -> None:
        self.placements: dict[str, Placement] = {}
        self.moved = False
        self._lock = threading.RLock()
        self._owner: int | None = None

    def forget(self, name: str) -> None:
        """Drop what is known of an adapter name, whose modules go; the layers say what is in place."""
        if (placement := self.placements.get(name)) is not None:
            placement.settle()
            del self.placements[name]

    @contextmanager
    def exclusive(self, *, timeout: float | None = None, nested: bool = False) -> Iterator[None]:
        """Hold the model's adapters; raises BusyError after ``timeout`` seconds, or within one's own use.

        ``nested`` allows the latter, for what does not exchange the adapter.
        """
        me = threading.get_ident()
        if self._owner == me:
            if nested:
                yield
                return
            raise BusyError(
                "this thread is inside AdapterBank.using() of the same model; swap after its end"
            )
        try:
            if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
                raise BusyError(f"the model's adapters were in use for {timeout} s; raise timeout=")
            self._owner = me
            yield
        finally:
            if self._owner == me:
                self._owner = None
            with suppress(
                RuntimeError
            ):  # an RLock knows whether this thread got it, interrupted or not
                self._lock.release()


_roots: weakref.WeakKeyDictionary[nn.Module, Prepared] = weakref.WeakKeyDictionary()


def prepared_of(model: nn.Module, *, layers: dict[str, LoraLayer] | None = None) -> Prepared:
    """Find the record of a model by any module above its LoRA layers; a copy gets one of its own.

    ``layers`` are its LoRA layers, if they are known.
    """
    root = unwrap(model)
    found = _roots.get(root)
    if found is None:
        layers = lora_layers(root) if layers is None else layers
        scalings = [s for la in layers.values() if isinstance(s := la.scaling, Scalings)]
        found = next((s.prepared for s in scalings if s.prepared is not None), None) or Prepared()
        if scalings:
            _roots[root] = found
        for each in scalings:
            if each.prepared is None:
                vars(each)["prepared"] = found  # past Module.__setattr__, which takes its time
    return found


def placement_of(model: nn.Module, name: str) -> Placement:
    """Find where an adapter name's tensors are; raises NoAdapterError or NotPreparedError."""
    root = unwrap(model)
    prepared = prepared_of(root)
    placement = prepared.placements.get(name)
    if placement is None or placement.replaced:
        require_prepared(root, name)
        placement = prepared.placements[name] = Placement.of(root, Carried.of(root, name))
    elif placement.arena is not None and placement.moved:
        label = placement.label
        placement = prepared.placements[name] = Placement.of(root, Carried.of(root, name))
        placement.label = label
    return placement


def forget_content(model: nn.Module) -> None:
    """Note that something else has written a model's adapters, so what is in place is not known."""
    scalings = (layer.scaling for layer in lora_layers(unwrap(model)).values())
    known = {s.prepared for s in scalings if isinstance(s, Scalings) and s.prepared is not None}
    for prepared in known:
        for placement in prepared.placements.values():
            placement.settle()
            placement.content = None
            placement._versions = None


def require_prepared(model: nn.Module, name: str) -> None:
    """Raise NoAdapterError or NotPreparedError unless every layer with the adapter is prepared for it."""
    layers = lora_layers(model, name)
    if not layers:
        known = sorted({n for layer in lora_layers(model).values() for n in layer.scaling})
        raise NoAdapterError(
            f"the model carries no adapter named {name!r} (found: {known}); "
            "load the first adapter, then prepare() and compile"
        )
    bare = [
        module
        for module, layer in layers.items()
        if not isinstance(layer.scaling, Scalings) or name not in layer.scaling.own
    ]
    if bare:
        more = f" and {len(bare) - 1} more modules are" if len(bare) > 1 else " is"
        raise NotPreparedError(
            f"{bare[0]}{more} not prepared for adapter {name!r}; "
            "call hotswap.prepare(model, ...) before torch.compile"
        )
