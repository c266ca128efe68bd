"""Scalings: what replaces a prepared LoRA layer's ``scaling`` dict. PYTEST_DONT_REWRITE"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hotswap.engine.layout.registry import Prepared


class Own(NamedTuple):
    """What the adapter in place has for a layer; rank 0: it does not target the layer."""

    rank: int
    bias: bool = False
    dora: bool = False


class Entry(NamedTuple):
    """What a layer's dicts hold under an adapter's name: the three of PEFT, and ``Scalings.own``."""

    r: int
    lora_alpha: float
    use_rslora: bool
    own: Own | None


class Scalings(nn.Module):
    """Map adapter names to 0-d buffers; assigning a number to a known name fills its buffer in place.

    A compiled model reads the buffer, so PEFT's own ``scale_layer``, ``set_scale`` and ``unscale_layer``
    change its output without a recompile. The buffers are not part of the state dict, follow the model
    to other devices, and keep their dtype there: half precision would turn 1/3 into 0.33325.

    ``own`` holds what the adapter in place has before padding (None: there is no adapter in place), and
    ``prepared`` the record of the model that the layer was prepared in, which a copy does not share. A
    swap writes into no layer's dicts: they follow it when they are asked for (``settle``).
    """

    prepared: Prepared | None
    dtype: torch.dtype
    device: torch.device
    _own: dict[str, Own | None]
    _peft: tuple[dict[str, Any], ...]
    _turns: dict[str, int]  # those of the placements that were settled last

    def __init__(
        self, values: Mapping[str, float | Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        # what Module.__init__ and __setattr__ do, in a fifth of the time
        self.__dict__.update(_BLANK)
        self.__dict__.update([(name, kind()) for name, kind in _CONTAINERS.items()])
        self.__dict__.update(dtype=dtype, device=device)
        for name, value in values.items():
            self[name] = value

    def __getattr__(self, name: str) -> Any:
        kind = _HOOKS.get(name)
        if kind is None:
            return super().__getattr__(name)
        made = self.__dict__[name] = kind()
        return made

    @property
    def own(self) -> dict[str, Own | None]:
        """What the adapter in place has under each name."""
        self.settle()
        return self._own

    def follow(self, r: dict[str, Any], alpha: dict[str, Any], rslora: dict[str, Any]) -> None:
        """Keep these dicts of the layer up to date too."""
        self.__dict__["_peft"] = r, alpha, rslora

    def settle(self) -> None:
        """Write what the adapters in place say of the layer, unless it is written already."""
        if self.prepared is None:
            return
        for name, placement in list(self.prepared.placements.items()):
            turn = placement.turn
            if self._turns.get(name) == turn:
                continue
            if placement.entries is not None and (entry := placement.entries.get(self)) is not None:
                for holder, value in zip((*self._peft, self._own), entry, strict=True):
                    holder[name] = value
            self._turns[name] = turn

    def entry(self, name: str) -> Entry:
        """What the dicts hold under a name."""
        self.settle()
        values: list[Any] = [holder.get(name) for holder in (*self._peft, self._own)]
        return Entry(*values)

    def __getitem__(self, name: str) -> Tensor:
        value = self._buffers[name]
        if value is None:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: float | Tensor) -> None:
        known = self._buffers.get(name)
        if known is value:
            return
        if known is not None:
            with torch.inference_mode(known.is_inference()), torch.no_grad():
                known.fill_(value)
            return
        with torch.inference_mode(False), torch.no_grad():
            self.put(name, torch.tensor(float(value), dtype=self.dtype, device=self.device))

    def put(self, name: str, buffer: Tensor) -> None:
        """Let a name's buffer be this tensor, of shape ()."""
        # not register_buffer: it refuses names such as "get" that an adapter may well have
        self._buffers[name] = buffer
        self._non_persistent_buffers_set.add(name)

    def restorer(self, name: str) -> Callable[[], None]:
        """Give what takes back a ``put``, and an own content noted for the first time."""
        buffer, noted = self._buffers[name], name in self._own

        def restore() -> None:
            self._buffers[name] = buffer
            if not noted:
                self._own.pop(name, None)

        return restore

    def assign(self, values: Mapping[str, float | Tensor]) -> None:
        """Fill every name's buffer in place, as assigning a whole dict to ``layer.scaling`` does."""
        for name, value in values.items():
            self[name] = value

    def __delitem__(self, name: str) -> None:
        del self._buffers[name]
        self._non_persistent_buffers_set.discard(name)
        if self.prepared is not None:
            self.prepared.forget(name)
        self._own.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def keys(self) -> KeysView[str]:
        """The adapters' names."""
        return self._buffers.keys()

    def values(self) -> ValuesView[Any]:
        """The buffers, each of shape ()."""
        return self._buffers.values()

    def items(self) -> ItemsView[str, Any]:
        """Names and buffers."""
        return self._buffers.items()

    def get(self, name: str, default: Any = None) -> Any:
        """The buffer of an adapter, or the default."""
        return self._buffers.get(name, default)

    def copy(self) -> dict[str, float]:
        """The values as plain numbers, detached from the model."""
        return {name: float(value) for name, value in self._buffers.items() if value is not None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scalings:
        for name, value in self._buffers.items():
            if value is not None:
                moved = fn(value)
                keeps = moved.dtype == value.dtype or moved.dtype == torch.float64
                self._buffers[name] = moved if keeps else value.to(moved.device)
                self.device, self.dtype = moved.device, self._buffers[name].dtype  # type: ignore[union-attr]
        if self.prepared is not None:
            self.prepared.moved = True
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy has buffers of its own, not the storage that all of them share, and no lock."""
        self.settle()
        buffers = {
            name: value.clone() for name, value in self._buffers.items() if value is not None
        }
        return {**self.__dict__, "_buffers": buffers, "prepared": None, "_turns": {}}


_MADE = vars(nn.Module()) | {"prepared": None, "_own": {}, "_peft": ({}, {}, {}), "_turns": {}}
_KINDS = {name: type(value) for name, value in _MADE.items() if isinstance(value, dict | set)}
_HOOKS = {name: kind for name, kind in _KINDS.items() if "hook" in name}
"""What holds hooks is made when it is asked for: there are many Scalings, and hardly ever a hook."""
_CONTAINERS = {name: kind for name, kind in _KINDS.items() if name not in _HOOKS}
_BLANK = {name: value for name, value in _MADE.items() if name not in _HOOKS}
