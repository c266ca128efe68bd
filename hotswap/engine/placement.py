"""Placement: where one adapter name's tensors lie in a prepared model, and how they are exchanged."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from hotswap.adapters.plan import SavedTensor, SwapPlan
from hotswap.adapters.spec import TokenRows
from hotswap.engine.arena import Arena, Layout
from hotswap.engine.layers import Slot, all_slots, envelopes, lora_layers, unwrap
from hotswap.engine.scalings import Scalings
from hotswap.engine.trained import trained_slots
from hotswap.errors import (
    BusyError,
    HotswapError,
    MergedAdapterError,
    NoAdapterError,
    NotPreparedError,
)

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls torch's dtypes."""


@dataclass(slots=True)
class Content:
    """An adapter ready to be put in place: its bytes, and what else must say that it is there.

    ``records`` are (dict, value) pairs, each to be written under the slot's name: ranks and alphas of the
    layers, rows of the wrapped modules. ``fields`` are those of the config; None: there is no adapter.
    """

    label: str | None
    image: Arena
    digest: str
    records: list[tuple[dict[str, Any], Any]]
    fields: dict[str, Any] | None


@dataclass(slots=True)
class Placement:
    """The slots of one adapter name in a layout; ``arena`` is None where they are not views of one.

    A model that was copied or moved after prepare() has no arena: its tensors are written one by one.
    """

    name: str
    layers: dict[str, LoraLayer]
    slots: list[Slot]
    layout: Layout
    arena: Arena | None
    config: LoraConfig | None
    envelope: SwapPlan
    label: str | None
    content: Content | None = None
    staging: Arena | None = None
    undo: Arena | None = None
    _scales: list[Tensor] = field(default_factory=list)  # the arena's bytes that hold scalings
    _versioned: list[Tensor] = field(default_factory=list)
    _anchors: list[tuple[dict[str, Any], Any]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, name: str, arena: Arena | None = None) -> Placement:
        """Describe the slots of a prepared model as they stand; ``arena`` holds them, if one does."""
        layers = lora_layers(model, name)
        slots = [*all_slots(layers, name), *trained_slots(model, name)]
        tensors = [*(slot.tensor for slot in slots), *(la.scaling[name] for la in layers.values())]
        return cls(
            name,
            layers,
            slots,
            arena.layout if arena is not None else Layout.of(tensors),
            arena,
            getattr(model, "peft_config", {}).get(name),
            whole_envelope(layers, slots, name),
            label=name,
            _scales=_scale_bytes(arena, len(slots)) if arena is not None else [],
            _versioned=[tensor for tensor in tensors if not tensor.is_inference()],
            _anchors=[anchor for layer in layers.values() for anchor in _anchors(layer, name)],
        )

    @property
    def targets(self) -> list[Tensor]:
        """The tensors to be written, the scalings last; they do not require gradients."""
        slots = [slot.tensor.detach() for slot in self.slots]
        return slots + [layer.scaling[self.name] for layer in self.layers.values()]

    @property
    def replaced(self) -> bool:
        """Whether a layer holds other parameters under the name than it did."""
        return any(holder.get(self.name) is not part for holder, part in self._anchors)

    @property
    def moved(self) -> bool:
        """Whether a tensor is not where the arena has it, looking at every one."""
        if self.arena is None:
            return True
        here = [slot.tensor.data_ptr() for slot in self.slots]
        here += [layer.scaling[self.name].data_ptr() for layer in self.layers.values()]
        return here != self.arena.addresses

    def require_unmerged(self) -> None:
        """Raise MergedAdapterError if an adapter is merged into a base weight."""
        for name, layer in self.layers.items():
            if layer.merged_adapters:
                raise MergedAdapterError(
                    f"{name} has merged adapters {layer.merged_adapters}; call unmerge_adapter() "
                    "(unfuse_lora() of a pipeline) before a swap"
                )

    def require_resident(self) -> None:
        """Raise HotswapError if a tensor is on the meta device, where a copy does nothing."""
        away = next((slot.name for slot in self.slots if slot.tensor.is_meta), None)
        if away is not None:
            raise HotswapError(
                f"{away} is on the meta device (offloaded); load the model without offloading"
            )

    def put(self, content: Content, *, undo: Arena | None = None) -> None:
        """Put an adapter in place, all or nothing: on any exception everything is as it was.

        ``undo`` has the weights that are in place now; they are copied first if it is not given.
        """
        if undo is None or self.arena is None:
            undo = self._copy_of_now()
        scales = [scale.clone() for scale in self._scales]
        records = [(holder, holder.get(self.name)) for holder, _ in content.records]
        fields = dict(vars(self.config)) if self.config is not None else None
        before = self.content, self.label
        try:
            self._follow(content.records, content.fields)
            self.content, self.label = content, content.label
            self._write(content.image)
        except BaseException:
            self._write(undo)
            for scale, value in zip(self._scales, scales, strict=True):
                scale.copy_(value)
            self._follow(records, fields)
            self.content, self.label = before
            raise

    def _copy_of_now(self) -> Arena:
        if self.undo is None:
            self.undo = self.layout.new()
        if self.arena is not None:
            self.undo.copy(self.arena)
        else:
            torch._foreach_copy_(self.undo.views, self.targets)
        return self.undo

    def _write(self, image: Arena) -> None:
        with torch.no_grad():
            if self.arena is not None:
                self.arena.copy(image)
            else:
                targets = self.targets
                # a tensor made under inference_mode can only be written under it
                with torch.inference_mode(any(target.is_inference() for target in targets)):
                    torch._foreach_copy_(targets, image.views)
        # views share storage but not version counters: autograd must notice a swap before backward
        torch.autograd.graph.increment_version(self._versioned)

    def _follow(
        self, records: list[tuple[dict[str, Any], Any]], fields: dict[str, Any] | None
    ) -> None:
        for holder, value in records:
            holder[self.name] = value
        if self.config is None:
            return
        own = vars(self.config)  # changed in place: compiled code may be guarded on the object
        if fields is None:
            own["save_pretrained"] = nothing_to_save
        else:
            own.pop("save_pretrained", None)
            own.pop("to_dict", None)  # see peft_compat.py
            own.update(fields)


class Prepared:
    """What is known of a prepared model: its placements, and the lock of whoever uses its adapters.

    ``moved`` is set when the model, or a part of it, goes to another device or dtype.
    """

    def __init__(self) -> None:
        self.placements: dict[str, Placement] = {}
        self.moved = False
        self._lock = threading.Lock()
        self._owner: int | None = None

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
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise BusyError(f"the model's adapters were in use for {timeout} s; raise timeout=")
        self._owner = me
        try:
            yield
        finally:
            self._owner = None
            self._lock.release()


_roots: weakref.WeakKeyDictionary[nn.Module, Prepared] = weakref.WeakKeyDictionary()


def prepared_of(model: nn.Module) -> Prepared:
    """Find the record of a model by any module above its LoRA layers; a copy gets one of its own."""
    root = unwrap(model)
    found = _roots.get(root)
    if found is None:
        scalings = [
            la.scaling for la in lora_layers(root).values() if isinstance(la.scaling, Scalings)
        ]
        found = next((s.prepared for s in scalings if s.prepared is not None), None) or Prepared()
        if scalings:
            _roots[root] = found
        for each in scalings:
            each.prepared = found
    return found


def placement_of(model: nn.Module, name: str) -> Placement:
    """Find where an adapter name's tensors are; raises NoAdapterError or NotPreparedError."""
    root = unwrap(model)
    prepared = prepared_of(root)
    placement = prepared.placements.get(name)
    if placement is None or placement.replaced:
        require_prepared(root, name)
        placement = prepared.placements[name] = Placement.of(root, name)
    elif placement.arena is not None and placement.moved:
        label = placement.label
        placement = prepared.placements[name] = Placement.of(root, name)
        placement.label = label
    return placement


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


def _anchors(layer: LoraLayer, name: str) -> Iterator[tuple[dict[str, Any], Any]]:
    for container in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        if name in container:
            yield container._modules, container[name]
    for container in (layer.lora_embedding_A, layer.lora_embedding_B):
        if name in container:
            yield container._parameters, container[name]


def _scale_bytes(arena: Arena, slots: int) -> list[Tensor]:
    """The stretches of an arena that hold the scalings: the last tensors of their dtype."""
    spans: dict[torch.device, tuple[int, int]] = {}
    for region in arena.layout.regions[slots:]:
        start, end = spans.get(region.device, (region.offset, 0))
        spans[region.device] = min(start, region.offset), max(end, region.offset + region.bytes)
    return [arena.buffers[device][start:end] for device, (start, end) in spans.items()]


def whole_envelope(layers: dict[str, LoraLayer], slots: list[Slot], name: str) -> SwapPlan:
    """What fits into the placement, as a plan."""
    saved, tokens = {}, {}
    for slot in slots:
        dtype = DTYPES.get(slot.tensor.dtype, str(slot.tensor.dtype))
        if slot.role == "saved":
            saved[slot.name] = SavedTensor(tuple(slot.tensor.shape), dtype)
        elif slot.role == "tokens":
            tokens[slot.module] = TokenRows(slot.rows, slot.tensor.shape[-1], dtype)
    return SwapPlan(envelopes(layers, name), saved=saved, tokens=tokens)


def nothing_to_save(*_: Any, **__: Any) -> NoReturn:
    """Raise HotswapError; stands in for a config's ``save_pretrained`` when no adapter is in place."""
    raise HotswapError(
        "there is no adapter to save: swap(model, None) put the base model in place; swap one in first"
    )
