"""Placement: where one adapter name's tensors lie in a prepared model, and how they are exchanged."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import xxhash
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from hotswap.adapters.plan import SwapPlan
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.arena import Arena, Layout
from hotswap.engine.layout.auxiliary import own_content
from hotswap.engine.layout.slots import Slot
from hotswap.errors import HotswapError, MergedAdapterError


@dataclass(slots=True, weakref_slot=True, eq=False)
class StagedAdapter:
    """An adapter as the bytes that will be in place, and what layers and config will say of it.

    ``notes`` are written into the placement's ``holders``, one into each. ``fields`` are those of the
    config; None: there is no adapter.
    """

    label: str | None
    image: Arena
    notes: list[Any]
    fields: dict[str, Any] | None
    _digest: str | None = None

    @property
    def digest(self) -> str:
        """The digest of the bytes (128 bits of XXH3); equal bytes have equal ones."""
        if self._digest is None:
            digest = xxhash.xxh3_128()
            for buffer in self.image.buffers.values():
                digest.update(buffer.cpu().numpy().data)
            self._digest = digest.hexdigest()
        return self._digest


@dataclass(slots=True)
class Placement:
    """The slots of one adapter name in a layout; ``arena`` is None where they are not views of one.

    A model that was copied or moved after prepare() has no arena: its tensors are written one by one.
    ``holders`` are the dicts in which layers and wrapped modules note what the adapter in place has,
    under its name. ``staged`` is that adapter, None where something else has written it.
    """

    adapter: AdapterSlots
    slots: list[Slot]
    layout: Layout
    arena: Arena | None
    config: LoraConfig | None
    label: str | None
    holders: list[dict[str, Any]]
    staged: StagedAdapter | None = None
    copy_plans: list[Any] = field(
        default_factory=list
    )  # stage.py's: how adapters are laid out here
    _staging: list[Arena] = field(default_factory=list)
    _reported: weakref.WeakSet[StagedAdapter] = field(default_factory=weakref.WeakSet)
    _envelope: SwapPlan | None = None
    _undo: Arena | None = None
    _written: int | None = None
    _held: list[tuple[dict[str, Any], str, object]] = field(default_factory=list)
    _buffers: list[tuple[dict[str, Any], Tensor | None]] = field(default_factory=list)
    _versioned: list[Tensor] = field(default_factory=list)
    _merged: list[list[str]] = field(default_factory=list)
    _caches: list[dict[str, Any]] = field(default_factory=list)  # of peft.helpers.DoraCaching

    @classmethod
    def of(cls, model: nn.Module, adapter: AdapterSlots, arena: Arena | None = None) -> Placement:
        """Describe the slots of a prepared model as they stand; ``arena`` holds them, if one does."""
        name, slots, layers = adapter.name, adapter.slots, adapter.layers
        scalings: list[Any] = [layer.scaling for layer in layers.values()]
        holders: list[dict[str, Any]] = []
        for layer, scaling in zip(layers.values(), scalings, strict=True):
            holders += [layer.r, layer.lora_alpha, layer.use_rslora, scaling.states]
        if arena is None:
            layout = Layout.of([*(s.tensor for s in slots), *(each[name] for each in scalings)])
        else:
            layout = arena.layout
        with_dora = {slot.module for slot in slots if slot.role == "magnitude"}
        return cls(
            adapter,
            slots,
            layout,
            arena,
            getattr(model, "peft_config", {}).get(name),
            label=name,
            holders=[*holders, *map(own_content, adapter.auxiliary)],
            _held=[
                *((s.holder, s.state_key.rpartition(".")[2], s.tensor) for s in slots if s.holder),
                # a new adapter of the same name replaces these
                *(
                    (la.lora_A._modules, name, la.lora_A[name])
                    for la in layers.values()
                    if name in la.lora_A
                ),
            ],
            _buffers=[(each._buffers, each._buffers[name]) for each in scalings],
            _versioned=[slot.tensor for slot in slots if _has_version(slot.tensor)],
            _merged=[layer.merged_adapters for layer in layers.values()],
            _caches=[
                layers[module].lora_magnitude_vector[name]._dora_cache
                for module in with_dora.intersection(layers)
            ],
        )

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.adapter.name

    @property
    def layers(self) -> dict[str, LoraLayer]:
        """The layers that carry it, by name."""
        return self.adapter.layers

    @property
    def envelope(self) -> SwapPlan:
        """What fits, as a plan."""
        if self._envelope is None:
            self._envelope = self.adapter.envelope
        return self._envelope

    @property
    def targets(self) -> list[Tensor]:
        """The tensors to be written, the scalings last; they do not require gradients."""
        slots = [slot.tensor.detach() for slot in self.slots]
        return slots + [layer.scaling[self.name] for layer in self.layers.values()]

    @property
    def replaced(self) -> bool:
        """Whether a module holds another tensor than the one that is written here, or is another."""
        return any(holder.get(key) is not held for holder, key, held in self._held)

    @property
    def moved(self) -> bool:
        """Whether the model, or a part of it, went to another device or dtype."""
        if self.arena is None:
            return True
        name = self.name
        return any(holder.get(name) is not buffer for holder, buffer in self._buffers)

    @property
    def reassigned(self) -> bool:
        """Whether a tensor is not where the arena has it any more, looking at every address."""
        if self.arena is None:
            return True
        addresses = [slot.tensor.data_ptr() for slot in self.slots]
        return addresses != self.arena.addresses[: len(addresses)]

    @property
    def in_place(self) -> bool:
        """Whether every tensor that the model holds is the arena's view that is written here."""
        return not (self.replaced or self.moved or self.reassigned)

    def require_unmerged(self) -> None:
        """Raise MergedAdapterError if an adapter is merged into a base weight."""
        if not any(self._merged):
            return
        name = next(name for name, layer in self.layers.items() if layer.merged_adapters)
        raise MergedAdapterError(
            f"{name} has merged adapters {self.layers[name].merged_adapters}; call unmerge_adapter() "
            "(unfuse_lora() of a pipeline) before a swap"
        )

    def require_resident(self) -> None:
        """Raise HotswapError if a tensor is on the meta device, where a copy does nothing."""
        if self.arena is not None:
            return  # its tensors are where they were when it was made
        away = next((slot.name for slot in self.slots if slot.tensor.is_meta), None)
        if away is not None:
            raise HotswapError(
                f"{away} is on the meta device (offloaded); load the model without offloading"
            )

    def staging(self) -> Arena:
        """A buffer to stage an adapter in: one of two, which does not hold what is in place."""
        in_place = self.staged.image if self.staged is not None else None
        for image in self._staging:
            if image is not in_place:
                for kept in list(self._reported):
                    if kept.image is image:
                        _ = kept.digest  # somebody keeps it, and its bytes are about to go
                        self._reported.discard(kept)
                return image
        self._staging.append(self.layout.new(torch.device("cpu")))
        return self._staging[-1]

    def stages_in(self, image: Arena) -> bool:
        """Whether an image is one of the buffers that ``staging`` gives."""
        return any(image is buffer for buffer in self._staging)

    def keep(self) -> Callable[[], None]:
        """Give what puts back everything that is in place now; what nobody else has is copied."""
        self.require_resident()
        staged, label, untouched = self.staged, self.label, self.untouched
        image = staged.image if staged is not None and untouched else self._copy()
        notes = [holder.get(self.name) for holder in self.holders]
        fields = dict(vars(self.config)) if self.config is not None else {}

        def put_back() -> None:
            self._write(image)
            self._note(notes)
            if self.config is not None:
                vars(self.config).clear()
                vars(self.config).update(fields)
            self.staged, self.label = staged, label
            self._written = self._writes() if untouched else None

        return put_back

    def put(self, staged: StagedAdapter) -> None:
        """Put an adapter in place; what ``keep`` gave before takes it back, however far it got."""
        self._note(staged.notes)
        if self.config is not None:
            fields = vars(self.config)  # in place: compiled code may be guarded on the object
            if staged.fields is None:
                fields["save_pretrained"] = nothing_to_save
            else:
                fields.pop("save_pretrained", None)
                fields.pop("to_dict", None)  # see peft/functions.py
                fields.update(staged.fields)
        self.staged, self.label = staged, staged.label
        if self.stages_in(staged.image):
            self._reported.add(staged)
        self._write(staged.image)
        self._written = self._writes()

    def forget(self) -> None:
        """Note that something else has written the tensors, so what is in place is not known."""
        self.staged = self._written = None

    @property
    def untouched(self) -> bool:
        """Whether nobody wrote a tensor or scaling since ``staged`` was put in place."""
        return self._written is not None and self._written == self._writes()

    def _writes(self) -> int | None:
        """How often autograd counted a write in place, but for one through ``.data``: it only grows."""
        if self.arena is None or len(self._versioned) < len(self.slots):
            return None
        # the scalings are views of the buffers, and share their counters
        buffers = sum([buffer._version for buffer in self.arena.buffers.values()])
        return buffers + sum([tensor._version for tensor in self._versioned])

    def _copy(self) -> Arena:
        """Copy the bytes in place, to put them back if need be."""
        if self._undo is None:
            self._undo = self.layout.new()
        if self.arena is not None:
            self._undo.copy(self.arena)
        else:
            with torch.no_grad():
                torch._foreach_copy_(self._undo.views, self.targets)
        return self._undo

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
        for cache in self._caches:
            cache.clear()

    def _note(self, notes: list[Any]) -> None:
        name = self.name
        for holder, note in zip(self.holders, notes, strict=True):
            holder[name] = note


def _has_version(tensor: Tensor) -> bool:
    """Whether autograd counts the writes; is_inference() does not tell once ``.data`` was set."""
    try:
        return tensor._version >= 0
    except RuntimeError:
        return False


def nothing_to_save(*_: Any, **__: Any) -> NoReturn:
    """Raise HotswapError; stands in for a config's ``save_pretrained`` when no adapter is in place."""
    raise HotswapError(
        "there is no adapter to save: swap(model, None) put the base model in place; swap one in first"
    )
