"""The classes of a prepared layer and tuner, which speak of the adapter in place. PYTEST_DONT_REWRITE"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from hotswap.compiler.shards import local_of
from hotswap.engine.layout.placement import nothing_to_save
from hotswap.engine.layout.registry import entry_of_layer
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.slots import Slot, lora_layers, slots
from hotswap.engine.layout.states import LayerState
from hotswap.errors import HotswapError


@cache
def prepared_class(cls: Any) -> Any:
    """Derive the class of a prepared layer.

    Assigning a dict to ``scaling`` fills the buffers in place: PEFT's ``rescale_adapter_scale`` and others
    assign whole dicts, which a submodule would refuse. Ranks and alphas are those of the adapter in place,
    and its state dict has each adapter at its own rank.
    """

    def set_attribute(self: Any, name: str, value: Any) -> None:
        scalings = self._modules.get("scaling") if name == "scaling" else None
        if scalings is not None and isinstance(value, dict):
            scalings.assign(value)
        else:
            cls.__setattr__(self, name, value)

    def state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = cls.state_dict(self, *args, **kwargs)
        _save_own(self, state, kwargs.get("prefix", ""))
        return state

    def load(self: Any, state: dict[str, Any], prefix: str, *args: Any) -> None:
        _pad_on_load(self, state, prefix)
        cls._load_from_state_dict(self, state, prefix, *args)

    def update_layer(self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        _forget(self, adapter_name)  # an adapter that is there already gets new modules
        known = self.scaling.states.pop(adapter_name, None)
        cls.update_layer(self, adapter_name, *args, **kwargs)
        if known is not None:
            alpha, rslora = self.lora_alpha[adapter_name], self.use_rslora[adapter_name]
            state = known._replace(rank=self.r[adapter_name], alpha=alpha, rslora=rslora)
            self.scaling.states[adapter_name] = state

    def delete_adapter(self: Any, adapter_name: str) -> None:
        _forget(self, adapter_name)
        cls.delete_adapter(self, adapter_name)

    def merge(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.lora_variant:
            _require_mergeable(self)
        cls.merge(self, *args, **kwargs)

    return derived(
        cls,
        prepared_class,
        r=_noted("r", lambda state: state.rank or 1, 1),
        lora_alpha=_noted("lora_alpha", lambda state: state.alpha, 0),
        use_rslora=_noted("use_rslora", lambda state: state.rslora, False),
        __setattr__=set_attribute,
        merge=merge,
        update_layer=update_layer,
        delete_adapter=delete_adapter,
        state_dict=state_dict,
        _load_from_state_dict=load,
    )


def _noted(attribute: str, value: Callable[[LayerState], Any], without: Any) -> property:
    """A dict of a layer that says what the adapters in place have; assigning one fills it in place."""

    def get(layer: Any) -> dict[str, Any]:
        found: dict[str, Any] = layer.__dict__[attribute]
        if isinstance(layer.scaling, Scalings):  # somebody may have put a dict in their place
            for name, state in layer.scaling.states.items():
                found[name] = without if state is None else value(state)
        return found

    def fill(layer: Any, values: dict[str, Any]) -> None:
        found = layer.__dict__[attribute]
        if values is not found:
            found.clear()
            found.update(values)

    return property(get, fill)


def _forget(layer: Any, adapter_name: str) -> None:
    """Drop what is known of an adapter name, whose modules go."""
    if (entry := entry_of_layer(layer)) is not None:
        entry.placements.pop(adapter_name, None)


@cache
def prepared_tuner(cls: Any) -> Any:
    """Derive the class of a tuner whose ``add_weighted_adapter`` reads the adapters at their own ranks."""

    def add_weighted_adapter(self: Any, adapters: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        with _own_ranks(self, adapters):
            return cls.add_weighted_adapter(self, adapters, *args, **kwargs)

    add_weighted_adapter.__doc__ = cls.add_weighted_adapter.__doc__
    return derived(cls, prepared_tuner, add_weighted_adapter=add_weighted_adapter)


def derived(cls: Any, derive: Callable[[Any], Any], **members: Any) -> Any:
    """Make a subclass that looks like ``cls`` and can be pickled; ``derive(cls)`` gives it again."""

    def reduce(self: Any) -> Any:
        return _new, (derive, cls), self.__getstate__()

    look = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**look, **members, "__reduce__": reduce})


def _new(derive: Callable[[Any], Any], cls: type[nn.Module]) -> Any:
    prepared = derive(cls)
    return prepared.__new__(prepared)


def _require_mergeable(layer: Any) -> None:
    """Raise HotswapError for a lora_B bias in a layer prepared for DoRA.

    The norm in PEFT's forward of a DoRA layer counts the bias, that in its merge does not.
    """
    for name, own in layer.scaling.states.items():
        if own is not None and own.bias and name in layer.lora_variant:
            raise HotswapError(
                f"adapter {name!r} has a lora_B bias and its layer is prepared for DoRA, where PEFT's "
                "merge is wrong; load the adapter into a model of its own and merge there"
            )


def _save_own(layer: Any, state: dict[str, Any], prefix: str) -> None:
    """Write each adapter at its own rank, with its own parts, and not where it does not target the layer.

    A state dict of the live tensors (``keep_vars=True``) stays as it is.
    """
    states = layer.scaling.states
    if states and not any(states.values()) and not _adapter_in_place(layer):
        key = f"{prefix}{slots(layer, next(iter(states)))[0].state_key}"
        if not isinstance(state.get(key), nn.Parameter):
            nothing_to_save()
    for name, own in states.items():
        for slot in slots(layer, name):
            key = prefix + slot.state_key
            if key not in state or isinstance(state[key], nn.Parameter):
                continue
            if own is None or not _has(own, slot):
                del state[key]
            elif slot.axis is not None and slot.rank != own.rank:
                state[key] = slot.own(own.rank)


def _adapter_in_place(layer: Any) -> bool:
    """Whether the model has an adapter to save under any name, or one is being loaded beside it."""
    entry = entry_of_layer(layer)
    placements = {} if entry is None else entry.placements
    return any(
        placement.label is not None
        or any(set(one.scaling) - set(placements) for one in placement.layers.values())
        for placement in placements.values()
    )


def _has(own: LayerState, slot: Slot) -> bool:
    if slot.role == "bias":
        return own.bias
    return own.dora if slot.role == "magnitude" else own.rank > 0


def _pad_on_load(layer: Any, state: dict[str, Any], prefix: str) -> None:
    """Accept an adapter at its own rank: pad its tensors to the slots', and fill in what is missing."""
    for name, own in list(layer.scaling.states.items()):
        for slot in slots(layer, name):
            key = prefix + slot.state_key
            if key not in state:
                if own is None or not _has(own, slot):
                    state[key] = slot.tensor.detach().clone()
                continue
            value = state[key]
            if slot.axis is None or slot.rank is None or value.ndim != slot.tensor.ndim:
                continue
            rank = value.shape[slot.axis] * slot.groups // slot.experts
            if slot.shape(rank) == tuple(value.shape) and rank < slot.rank:
                wide = torch.zeros_like(slot.local)
                part = slot.part(wide, value.shape[slot.axis])
                part.copy_(slot.split(local_of(value), part))
                state[key] = slot.sharding(wide, slot.rank) if slot.sharded else wide
            if rank <= slot.rank:
                layer.scaling.states[name] = (own or LayerState(rank))._replace(rank=rank)


@contextmanager
def _own_ranks(model: nn.Module, adapters: Sequence[str]) -> Iterator[None]:
    """Let the LoRA weights be what the adapters in place fill of them, without the padding.

    Pruning by magnitude and concatenation would count the zeros. Raises HotswapError where the base
    model is in place.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    configs: Any = model.peft_config
    try:
        for name in adapters:
            for module, layer in lora_layers(model, name).items():
                if not isinstance(layer.scaling, Scalings) or name not in layer.scaling.states:
                    continue
                own = layer.scaling.states[name]
                if own is None:
                    raise HotswapError(
                        f"there is no adapter to combine under {name!r}: swap(model, None) put the "
                        "base model in place; swap one in first"
                    )
                for slot in slots(layer, name, module):
                    if slot.sharded:
                        raise HotswapError(
                            f"{slot.name} is cut over several devices, where adapters cannot be "
                            "combined; call add_weighted_adapter() in a model on one device"
                        )
                    rank = own.rank or min(configs[name].r, slot.rank or 1)
                    kept.append((slot.tensor, slot.tensor.data))
                    slot.tensor.data = slot.own(rank)
        with torch.no_grad():
            yield
    finally:
        for tensor, data in kept:
            tensor.data = data
