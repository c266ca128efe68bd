"""Placement: where one adapter name's tensors lie in a prepared model, and how they are exchanged."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter, is_
from typing import Any, NamedTuple, NoReturn

import torch
import xxhash
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from hotswap.adapters.plan import SwapPlan
from hotswap.engine.layout.adapter_slots import Carried
from hotswap.engine.layout.arena import Arena, Layout
from hotswap.engine.layout.scalings import Entry, Scalings
from hotswap.engine.layout.slots import Slot
from hotswap.errors import (
    HotswapError,
    MergedAdapterError,
)

Records = list[tuple[dict[str, Any], Any]]
Entries = dict[Scalings, Entry]
_turns = count(1)
_VERSION = attrgetter("_version")


@dataclass(slots=True, weakref_slot=True)
class Content:
    """An adapter ready to be put in place: its bytes, and what else must say that it is there.

    ``entries`` are for the layers, ``records`` for the wrapped modules: (dict, value) pairs, each to be
    written under the slot's name. ``fields`` are those of the config; None: there is no adapter.
    """

    label: str | None
    image: Arena
    entries: Entries
    records: Records
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


class _Held(NamedTuple):
    """Dicts, keys, and what the dicts had under these."""

    holders: list[dict[str, Any]]
    keys: list[str]
    parts: list[object]

    @classmethod
    def of(cls, places: Iterable[tuple[dict[str, Any] | None, str]]) -> _Held:
        """Note what these dicts have under these keys, those that have something."""
        found = [(held, key) for held, key in places if held is not None and key in held]
        return cls([h for h, _ in found], [k for _, k in found], [h[k] for h, k in found])

    def differ(self) -> bool:
        """Whether a dict has something else by now."""
        return not all(map(is_, map(dict.get, self.holders, self.keys), self.parts))


_NOTHING = _Held([], [], [])


@dataclass(slots=True)
class Placement:
    """The slots of one adapter name in a layout; ``arena`` is None where they are not views of one.

    A model that was copied or moved after prepare() has no arena: its tensors are written one by one.
    ``entries`` are what the layers have to say since the last swap, which is the ``turn``.
    """

    carried: Carried
    slots: list[Slot]
    layout: Layout
    arena: Arena | None
    config: LoraConfig | None
    label: str | None
    content: Content | None = None
    entries: Entries | None = None
    turn: int = 0
    recipes: list[Any] = field(default_factory=list)  # stage.py's: how adapters are laid out here
    _staging: list[tuple[Arena, weakref.ref[Content] | None]] = field(default_factory=list)
    _envelope: SwapPlan | None = None
    _undo: Arena | None = None
    _versions: list[int] | None = None
    _scales: list[Tensor] = field(default_factory=list)  # the arena's bytes that hold scalings
    _versioned: list[Tensor] = field(default_factory=list)
    _tensors: list[Tensor] = field(default_factory=list)
    _scalings: _Held = _NOTHING
    _parameters: _Held = _NOTHING
    _modules: _Held = _NOTHING
    _merged: list[list[str]] = field(default_factory=list)
    _caches: list[dict[str, Any]] = field(default_factory=list)  # of peft.helpers.DoraCaching

    @classmethod
    def of(
        cls,
        model: nn.Module,
        carried: Carried,
        arena: Arena | None = None,
    ) -> Placement:
        """Describe the slots of a prepared model as they stand; ``arena`` holds them, if one does."""
        name, slots = carried.name, carried.slots
        layers = list(carried.layers.values())
        # past Module.__getattr__, which takes its time
        scalings: list[Any] = [layer._modules["scaling"] for layer in layers]
        for scaling in scalings:
            scaling.settle()  # by the placement that this one stands in for
        tensors = [slot.tensor for slot in slots]
        if arena is not None:
            layout, scales = arena.layout, _scale_bytes(arena, len(slots))
        else:
            layout, scales = Layout.of([*tensors, *(each[name] for each in scalings)]), []
        with_dora = {slot.module for slot in slots if slot.role == "magnitude"}
        return cls(
            carried,
            slots,
            layout,
            arena,
            getattr(model, "peft_config", {}).get(name),
            label=name,
            _scales=scales,
            _versioned=[tensor for tensor in tensors if _has_version(tensor)],
            _tensors=tensors,
            _scalings=_Held.of((each._buffers, name) for each in scalings),
            _parameters=_Held.of(
                (slot.holder, slot.state_key.rpartition(".")[2]) for slot in slots
            ),
            # a new adapter of the same name replaces these
            _modules=_Held.of((layer._modules["lora_A"]._modules, name) for layer in layers),
            _merged=[layer.merged_adapters for layer in layers],
            _caches=[
                carried.layers[module].lora_magnitude_vector[name]._dora_cache
                for module in with_dora.intersection(carried.layers)
            ],
        )

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.carried.name

    @property
    def layers(self) -> dict[str, LoraLayer]:
        """The layers that carry it, by name."""
        return self.carried.layers

    @property
    def envelope(self) -> SwapPlan:
        """What fits, as a plan."""
        if self._envelope is None:
            self._envelope = self.carried.envelope
        return self._envelope

    @property
    def targets(self) -> list[Tensor]:
        """The tensors to be written, the scalings last; they do not require gradients."""
        slots = [slot.tensor.detach() for slot in self.slots]
        return slots + [layer.scaling[self.name] for layer in self.layers.values()]

    @property
    def replaced(self) -> bool:
        """Whether the model holds other tensors than these, looking at every one and the modules around."""
        return self.reassigned or self._modules.differ()

    @property
    def reassigned(self) -> bool:
        """Whether a module that holds a tensor holds another one by now, looking at every one."""
        return self._parameters.differ()

    @property
    def moved(self) -> bool:
        """Whether a tensor is not where the arena has it, looking at every one."""
        if self.arena is None:
            return True
        addresses = list(map(Tensor.data_ptr, self._tensors))
        return addresses != self.arena.addresses[: len(addresses)] or self._scalings.differ()

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
        in_place = self.content.image if self.content is not None else None
        for index, (image, user) in enumerate(self._staging):
            if image is not in_place:
                content = user() if user is not None else None
                if content is not None:
                    _ = content.digest  # somebody keeps it, and its bytes are about to go
                self._staging[index] = image, None
                return image
        self._staging.append((self.layout.new(torch.device("cpu")), None))
        return self._staging[-1][0]

    def stages_in(self, image: Arena) -> bool:
        """Whether an image is one of the buffers that ``staging`` gives."""
        return any(image is buffer for buffer, _ in self._staging)

    def put(self, content: Content, *, undo: Arena | None = None) -> None:
        """Put an adapter in place, all or nothing: on any exception everything is as it was.

        ``undo`` has the weights that are in place now, those of the last content; if it is not given,
        they are copied first.
        """
        self.require_resident()
        if undo is not None and self.content is not None and self.arena is not None:
            entries, records = self.content.entries, self.content.records
        else:
            undo = self._copy()
            entries, records = self.said(content)
        scales = [scale.clone() for scale in self._scales]
        fields = dict(vars(self.config)) if self.config is not None else None
        before = self.content, self.label
        self._versions = None
        try:
            self._follow(content.entries, content.records, content.fields)
            self.content, self.label = content, content.label
            self._write(content.image)
        except BaseException:
            self._write(undo)
            with torch.inference_mode(self.arena is not None and self.arena.inference):
                for scale, value in zip(self._scales, scales, strict=True):
                    scale.copy_(value)
            self._follow(entries, records, fields)
            self.content, self.label = before
            raise

    def put_staged(self, content: Content, *, untouched: bool) -> None:
        """Put in place what was written into the buffer that ``staging`` gave last.

        ``untouched`` is what the property said of the content in place.
        """
        self._staging = [
            (image, weakref.ref(content) if image is content.image else user)
            for image, user in self._staging
        ]
        undo = self.content.image if untouched and self.content is not None else None
        self.put(content, undo=undo)
        self._versions = self._seen()

    @property
    def untouched(self) -> bool:
        """Whether nobody wrote a tensor or scaling since the content was put in place."""
        known = self.content is not None and self._versions is not None
        return known and self._versions == self._seen()

    def _seen(self) -> list[int] | None:
        """The version counters, which every write in place raises, but for one through ``.data``."""
        if self.arena is None or len(self._versioned) < len(self.slots):
            return None
        # the scalings are views of the buffers, and share their counters
        tensors = [*self._versioned, *self.arena.buffers.values()]
        return list(map(_VERSION, tensors))

    def _copy(self) -> Arena:
        """Copy the bytes in place, to put them back if need be."""
        if self._undo is None:
            self._undo = self.layout.new()
        if self.arena is not None:
            self._undo.copy(self.arena)
        else:
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

    def said(self, content: Content) -> tuple[Entries, Records]:
        """What is said now where a content would say something else."""
        entries = {scaling: scaling.entry(self.name) for scaling in content.entries}
        return entries, [(holder, holder.get(self.name)) for holder, _ in content.records]

    def settle(self) -> None:
        """Let every layer say what the adapter in place has."""
        for layer in self.layers.values():
            # which settles it, and minds no dict that somebody put in place of the scalings
            _ = layer.r

    def _follow(self, entries: Entries, records: Records, fields: dict[str, Any] | None) -> None:
        self.entries, self.turn = entries, next(_turns)
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


def _has_version(tensor: Tensor) -> bool:
    """Whether autograd counts the writes; is_inference() does not tell once ``.data`` was set."""
    try:
        return tensor._version >= 0
    except RuntimeError:
        return False


def _scale_bytes(arena: Arena, slots: int) -> list[Tensor]:
    """The stretches of an arena that hold the scalings: the last tensors of their dtype."""
    spans: dict[torch.device, tuple[int, int]] = {}
    for region in arena.layout.regions[slots:]:
        start, end = spans.get(region.device, (region.offset, 0))
        spans[region.device] = min(start, region.offset), max(end, region.offset + region.bytes)
    return [arena.buffers[device][start:end] for device, (start, end) in spans.items()]


def nothing_to_save(*_: Any, **__: Any) -> NoReturn:
    """Raise HotswapError; stands in for a config's ``save_pretrained`` when no adapter is in place."""
    raise HotswapError(
        "there is no adapter to save: swap(model, None) put the base model in place; swap one in first"
    )
