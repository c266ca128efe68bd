"""Scalings: what replaces a prepared LoRA layer's ``scaling`` dict. PYTEST_DONT_REWRITE"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.engine.layout.modes import in_inference_mode
from hotswap.engine.layout.states import States


class Moves:
    """How often a module of a model went to another device or dtype; torch.export would copy a list."""

    def __init__(self) -> None:
        self.count = 0


class Scalings(nn.Module):
    """Map adapter names to 0-d buffers; assigning a number to a known name fills its buffer in place.

    A compiled model reads the buffer, so PEFT's own ``scale_layer``, ``set_scale`` and ``unscale_layer``
    change its output without a recompile. The buffers are not part of the state dict, follow the model
    to other devices, and keep their dtype there: half precision would turn 1/3 into 0.33325.
    ``states`` say what the adapter in place has of the layer.
    ``moves`` is shared by all of a model's.
    """

    def __init__(
        self, values: Mapping[str, float | Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.device = device
        self.states = States()
        self.moves = Moves()
        for name, value in values.items():
            self[name] = value

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
            with in_inference_mode(known.is_inference()), torch.no_grad():
                known.fill_(value)
            return
        with in_inference_mode(False), torch.no_grad():
            self.put(name, torch.tensor(float(value), dtype=self.dtype, device=self.device))

    def put(self, name: str, buffer: Tensor) -> None:
        """Let a name's buffer be this tensor, of shape ()."""
        # not register_buffer: it refuses names such as "get" that an adapter may well have
        self._buffers[name] = buffer
        self._non_persistent_buffers_set.add(name)

    def assign(self, values: Mapping[str, float | Tensor]) -> None:
        """Fill every name's buffer in place, as assigning a whole dict to ``layer.scaling`` does."""
        for name, value in values.items():
            self[name] = value

    def __delitem__(self, name: str) -> None:
        del self._buffers[name]
        self._non_persistent_buffers_set.discard(name)
        self.states.pop(name, None)

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

    @property
    def _diffusers_hook(self) -> Any:
        if (hook := self.__dict__.get("_diffusers_hook")) is None:
            raise AttributeError("there is no hook of diffusers")
        return hook

    @_diffusers_hook.setter
    def _diffusers_hook(self, hook: Any) -> None:
        """Keep the values out of group offloading of leaves.

        It would take the buffers away, and bring them back before a forward of this module, which has none.
        """
        self.__dict__["_diffusers_hook"] = hook
        for name, value in self._buffers.items():
            if value is not None:
                self._buffers[name] = (
                    value.detach()
                )  # the same bytes in a tensor that it does not know

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scalings:
        for name, value in self._buffers.items():
            if value is not None:
                moved = fn(value)
                keeps = moved.dtype == value.dtype or moved.dtype == torch.float64
                self._buffers[name] = kept = moved if keeps else value.to(moved.device)
                self.device, self.dtype = kept.device, kept.dtype
        self.moves.count += 1
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy has buffers of its own, not the storage that all of them share."""
        buffers = {
            name: value.clone() for name, value in self._buffers.items() if value is not None
        }
        return {**self.__dict__, "_buffers": buffers}
