"""Placement: where one adapter name's tensors lie in a prepared model, and how they are exchanged."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import attrgetter, is_not, itemgetter
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.regions import unwrap
from hotswap.compiler.shards import local_of
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.arena import Arena, Layout
from hotswap.engine.layout.auxiliary import states_of
from hotswap.engine.layout.hooks import marked, why_elsewhere
from hotswap.engine.layout.modes import in_inference_mode
from hotswap.engine.layout.scalings import Moves
from hotswap.engine.layout.sharding import ranks_of
from hotswap.engine.layout.slots import Slot
from hotswap.engine.layout.staging import Buffers, StagedAdapter
from hotswap.engine.layout.states import Shared, States
from hotswap.engine.layout.unsupported import require_unmerged, why_not_there
from hotswap.errors import HotswapError

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora.layer import LoraLayer

_version: Callable[[Tensor], int] = attrgetter("_version")


def _nothing() -> None:
    return None


@dataclass(slots=True, weakref_slot=True, eq=False)
class Placement:
    """The slots of one adapter name in a layout; ``arena`` is None where they are not views of one.

    A model that was copied or moved after prepare() has no arena: its tensors are written one by one.
    In ``shared`` layers and wrapped modules look up what the adapter in place has of them. ``staged`` is
    that adapter, None where something else has written it.
    """

    adapter: AdapterSlots
    slots: list[Slot]
    layout: Layout
    arena: Arena | None
    config: LoraConfig | None
    shared: Shared
    envelope: SwapPlan  # what fits, by the shapes that the tensors had here
    meshes: set[tuple[int, ...]] = field(default_factory=set)  # the ranks that share its tensors
    staged: StagedAdapter | None = None
    copy_plans: list[Any] = field(
        default_factory=list
    )  # stage.py's: how adapters are laid out here
    buffers: Buffers = field(default_factory=Buffers)  # to stage in
    _undone: Callable[[], Arena | None] = _nothing  # what a swap that goes on may have to put back
    _undo: Arena | None = None
    _written: tuple[int, int] | None = None
    _moves: Moves = field(default_factory=Moves)
    _moves_then: int = 0
    # where modules hang in those above, and the factors and tensors in the layers: dicts, keys, things
    _links: tuple[list[dict[str, Any]], list[str], list[nn.Module]] = ([], [], [])
    _places: tuple[list[dict[str, Any]], list[str], list[object]] = ([], [], [])
    _owners: list[nn.Module] = field(default_factory=list)  # of the tensors, and those above
    _marks: list[dict[str, Any]] = field(default_factory=list)  # their attributes
    _versioned: list[Tensor] = field(default_factory=list)
    _counted: bool = True  # autograd counts the writes to each slot; those of a package are views
    # attributes of the layers, and of the DoRA layers in them: torch.export puts copies of what they hold
    _attributes: list[dict[str, Any]] = field(default_factory=list)
    _dora: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, adapter: AdapterSlots, arena: Arena | None = None) -> Placement:
        """Describe the slots of a prepared model as they stand; ``arena`` holds them, if one does."""
        name, slots, layers = adapter.name, adapter.slots, adapter.layers
        scalings: list[Any] = [layer.scaling for layer in layers.values()]
        if arena is None:
            layout = Layout.of([*(s.local for s in slots), *(each[name] for each in scalings)])
        else:
            layout = arena.layout
        states = map(states_of, adapter.auxiliary)
        moves: Moves = scalings[0].moves if scalings else Moves()
        with_dora = {slot.module for slot in slots if slot.role == "magnitude"}
        versioned = [slot.tensor for slot in slots if _has_version(slot.tensor)]
        factors = [
            each
            for layer in layers.values()
            for each in (layer.lora_A, layer.lora_B)
            if name in each
        ]
        held = [(slot, inside) for slot in slots if (inside := slot.holder) is not None]
        shared = States.share([*(each.states for each in scalings), *states], name)
        shared.owner = made = cls(
            adapter,
            slots,
            layout,
            arena,
            getattr(model, "peft_config", {}).get(name),
            shared=shared,
            envelope=adapter.envelope,
            meshes=ranks_of(slots),
            _places=(
                [*(each._modules for each in factors), *(inside for _, inside in held)],
                [*(name for _ in factors), *(s.state_key.rpartition(".")[2] for s, _ in held)],
                [*(each[name] for each in factors), *(slot.tensor for slot, _ in held)],
            ),
            _moves=moves,
            _moves_then=moves.count,
            _versioned=versioned,
            _counted=len(versioned) == len(slots),
            _attributes=[vars(layer) for layer in layers.values()],
            _dora=[
                vars(layers[module].lora_magnitude_vector[name])
                for module in with_dora.intersection(layers)
            ],
            _links=_links(model, layers.values()),
        )
        made._owners = [model, *made._links[2]]
        made._owners += [slot.owner for slot in slots if slot.owner is not None]
        made._marks = [*map(vars, made._owners)]
        return made

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.adapter.name

    @property
    def label(self) -> str | None:
        """What the adapter in place is called; None: it is the base model."""
        return self.shared.label

    @label.setter
    def label(self, label: str | None) -> None:
        self.shared.label = label

    @property
    def layers(self) -> dict[str, LoraLayer]:
        """The layers that carry it, by name."""
        return self.adapter.layers

    @property
    def sharded(self) -> bool:
        """Whether a tensor of it is cut over several devices, each of which has its part of the bytes."""
        return bool(self.meshes)

    @property
    def targets(self) -> list[Tensor]:
        """The tensors to be written, the scalings last; they do not require gradients."""
        slots = [slot.local for slot in self.slots]
        return slots + [layer.scaling[self.name] for layer in self.layers.values()]

    @property
    def replaced(self) -> bool:
        """Whether a layer has another factor, or a module another tensor, than what is written here."""
        dicts, keys, things = self._places
        return any(map(is_not, map(dict.get, dicts, keys), things))

    @property
    def moved(self) -> bool:
        """Whether the model, or a part of it, went to another device or dtype."""
        return self.arena is None or self._moves.count != self._moves_then

    @property
    def reassigned(self) -> bool:
        """Whether a tensor is not where the arena has it any more, looking at every address."""
        if self.arena is None:
            return True
        addresses = [local_of(slot.tensor).data_ptr() for slot in self.slots]
        return addresses != self.arena.addresses[: len(addresses)]

    @property
    def detached(self) -> bool:
        """Whether a layer is no part of the model any more, looking at every module above it."""
        for children, key, module in zip(*self._links, strict=True):
            found = children.get(key)
            if found is not module and (found is None or unwrap(found) is not module):
                return True
        return False

    @property
    def exchanged(self) -> bool:
        """Whether the model has other tensors, or other layers, than those that are written here."""
        return self.replaced or self.detached

    def unnamed(self, model: nn.Module) -> bool:
        """Whether the model has another config under the adapter's name, or none, as after an unload."""
        return getattr(model, "peft_config", {}).get(self.name) is not self.config

    @property
    def in_place(self) -> bool:
        """Whether every tensor that the model holds is the arena's view that is written here."""
        return not (self.exchanged or self.moved or self.reassigned)

    def holds(self, staged: StagedAdapter) -> bool:
        """Whether an adapter is in place and nobody wrote its weights since; its scale may differ."""
        if self.staged is not staged or self._written is None:
            return self.staged is staged
        return self._written[0] == sum(map(_version, self._versioned))

    def require_unmerged(self) -> None:
        """Raise MergedAdapterError if the adapter is merged into a base weight; warn where another one is."""
        if any(map(itemgetter("merged_adapters"), self._attributes)):
            require_unmerged(self.name, self.layers)

    def require_resident(self) -> None:
        """Raise HotswapError if a tensor that is written here is not the one that the forward uses."""
        for owner in marked(self._owners, self._marks):
            if why := why_elsewhere(owner):
                raise HotswapError(f"{why.text}, so a swap would not be served; {why.remedy}")
        if self.arena is not None:
            return  # its tensors are where they were when it was made
        for slot in self.slots:
            if why := why_not_there(slot):
                raise HotswapError(f"{slot.module}: {why.text}; {why.remedy}")

    def takes(self, layout: Layout) -> bool:
        """Whether an image of another layout can be put in place: byte by byte, or tensor by tensor."""
        if layout is self.layout:
            return True
        if self.arena is not None:
            return layout == self.layout
        return [r.shape for r in layout.regions] == [r.shape for r in self.layout.regions]

    def staging(self, lent: ExitStack) -> Arena:
        """A buffer to stage an adapter in until the scope ends, while others may use the model."""
        return self.buffers.lend(
            lent,
            self.layout,
            lambda: (self._undone(), self.staged.image if self.staged is not None else None),
        )

    def put(self, staged: StagedAdapter, noted: Callable[[Callable[[], None]], object]) -> None:
        """Put an adapter in place; ``noted`` is told before how to take that back, however far it got.

        What is in place is copied first where nobody else has it.
        """
        old, label, writes = self.staged, self.label, self._writes()
        untouched = writes is not None and writes == self._written
        image = old.image if old is not None and untouched else self._copy()
        states, swaps = self.shared.values, self.shared.swaps
        fields = dict(vars(self.config)) if self.config is not None else {}

        def put_back() -> None:
            self._write(image)
            self.shared.values = states
            if self.config is not None:
                vars(self.config).clear()
                vars(self.config).update(fields)
            self.staged, self.label, self.shared.swaps = old, label, swaps
            self._written = self._writes() if untouched else None

        living, kept = (
            weakref.ref(put_back),
            weakref.ref(image),
        )  # it lives as long as it may be called
        self._undone = lambda: kept() if living() is not None else None
        noted(put_back)
        self._written = None
        self.shared.values = staged.states
        if self.config is not None:
            _tell(self.config, staged)
        self.staged, self.label, self.shared.swaps = staged, staged.label, swaps + 1
        self.buffers.reported(staged)
        self._write(staged.image)
        if self.arena is not None and writes is not None:  # each of them was written once
            self._written = writes[0] + len(self._versioned), writes[1] + len(self.arena.buffers)

    def forget(self) -> None:
        """Note that something else has written the tensors, so what is in place is not known."""
        self.staged = self._written = None

    def rescaled(self, known: bool) -> None:
        """Note that tensors were written for another scale; ``known``: the adapter was in place as staged."""
        writes = self._writes()
        if known and writes is not None and self._written is not None:
            self._written = writes[0], self._written[1]

    @property
    def untouched(self) -> bool:
        """Whether nobody wrote a tensor or scaling since ``staged`` was put in place."""
        return self._written is not None and self._written == self._writes()

    def _writes(self) -> tuple[int, int] | None:
        """How often autograd counted a write to a weight, and to a scaling; not those through ``.data``."""
        if self.arena is None or not self._counted:
            return None
        # the scalings are views of the buffers, and share their counters
        buffers = sum(map(_version, self.arena.buffers.values()))
        return sum(map(_version, self._versioned)), buffers

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
        # views share storage but not version counters: autograd must notice a swap before backward
        torch.autograd.graph.increment_version(self._versioned)
        with torch.no_grad():
            if self.arena is not None:
                self.arena.copy(image)
            else:
                targets = self.targets
                # a tensor made under inference_mode can only be written under it
                with in_inference_mode(any(target.is_inference() for target in targets)):
                    torch._foreach_copy_(targets, image.views)
        for own in self._dora:
            own["_dora_cache"].clear()  # of peft.helpers.DoraCaching


def _links(
    model: nn.Module, layers: Iterable[LoraLayer]
) -> tuple[list[dict[str, Any]], list[str], list[nn.Module]]:
    """Where each of the layers, and each module above one, hangs in the model."""
    above: list[dict[str, Any]] = []
    keys: list[str] = []
    found: list[nn.Module] = []
    leading = {id(layer): True for layer in layers}

    def leads(module: nn.Module) -> bool:
        if id(module) not in leading:
            leading[id(module)] = False
            for key, child in module._modules.items():
                if child is not None and leads(inner := unwrap(child)):
                    above.append(module._modules)
                    keys.append(key)
                    found.append(inner)
                    leading[id(module)] = True
        return leading[id(module)]

    leads(model)
    return above, keys, found


def _tell(config: LoraConfig, staged: StagedAdapter) -> None:
    """Let a config speak of an adapter, in place: compiled code may be guarded on the object."""
    fields = vars(config)
    if staged.fields is None:
        fields["save_pretrained"] = nothing_to_save
    else:
        fields.pop("save_pretrained", None)
        fields.pop("to_dict", None)  # see peft/functions.py
        fields.update(staged.fields)


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
