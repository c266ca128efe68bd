"""AdapterBank: adapters kept staged in memory; activating one is one copy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig

from hotswap.engine.incoming.parts import read_parts
from hotswap.engine.incoming.source import Adapter
from hotswap.engine.layout.placement import Placement, StagedAdapter
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.parts import parts_of
from hotswap.engine.swap import digest_of
from hotswap.engine.transaction import commit, exclusive, stage_parts
from hotswap.errors import HotswapError, UnknownAdapterError

Device = Literal["cpu", "model"]


class AdapterBank:
    """Adapters of one prepared model or pipeline, validated and laid out once, ready to be put in place.

    With ``max_adapters`` or ``max_bytes`` the least recently used ones are dropped, but never the one in
    place. ``device="model"`` keeps them beside the weights; on ``"cpu"`` they are pinned for a GPU.
    """

    def __init__(
        self,
        model: Any,
        *,
        adapter_name: str = "default",
        max_adapters: int | None = None,
        max_bytes: int | None = None,
        device: Device = "cpu",
    ) -> None:
        """Raise ValueError for a limit below 1 or another device; NoAdapterError, NotPreparedError."""
        if device not in get_args(Device):
            raise ValueError(f"device is {device!r}; expected one of {get_args(Device)}")
        for name, limit in (("max_adapters", max_adapters), ("max_bytes", max_bytes)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}; expected at least 1, or None for no limit")
        self._model = model
        self._parts = parts_of(model)
        self._adapter_name = adapter_name
        self._max_adapters = max_adapters
        self._max_bytes = max_bytes
        self._device = torch.device("cpu") if device == "cpu" else None
        self._staged: OrderedDict[str, list[StagedAdapter]] = OrderedDict()
        self._places()

    def _places(self, *, at_once: bool = False) -> list[Placement]:
        name = self._adapter_name
        return [placement_of(part.model, name, at_once=at_once) for part in self._parts]

    def add(self, name: str, adapter: Adapter | None, *, config: LoraConfig | None = None) -> str:
        """Stage an adapter under a name, in place of one that has it; return its digest.

        The adapter in place is not touched: what was added anew under its name is put in place by the
        next ``using``. Raises what ``swap`` raises for an adapter that does not fit; the bank then
        keeps what it had. HotswapError when one adapter alone is larger than ``max_bytes``.
        """
        incoming = read_parts(self._model, self._parts, adapter, config)
        places = self._places()
        size = sum(place.layout.bytes for place in places)
        if self._max_bytes is not None and size > self._max_bytes:
            raise HotswapError(
                f"an adapter takes {size} bytes, above max_bytes={self._max_bytes}; "
                "raise the limit, or prepare with a smaller rank"
            )
        staged = stage_parts(
            self._parts, places, incoming, name, lambda place: place.layout.new(self._device)
        )
        for each in staged:
            each.label = name
        self._staged[name] = staged
        self._staged.move_to_end(name)
        self._evict(places)
        return digest_of(staged)

    def remove(self, name: str) -> None:
        """Drop an adapter; one that is in place stays in place. Raises UnknownAdapterError."""
        self._of(name)
        del self._staged[name]

    @contextmanager
    def using(self, name: str, *, timeout: float | None = None) -> Iterator[None]:
        """Put an adapter in place and keep others from swapping until the scope ends; it stays in place.

        Nothing is copied when it is in place already; a user's scale factor then stays too. Raises
        UnknownAdapterError, or BusyError after ``timeout`` seconds or inside another ``using``.
        """
        with exclusive(self._parts, timeout=timeout):
            staged, places = self._of(name), self._places(at_once=True)
            for place in places:
                place.require_unmerged()
            if not _in_place(places, staged):
                commit(places, staged)
                self._staged.move_to_end(name)
            yield

    def _of(self, name: str) -> list[StagedAdapter]:
        try:
            return self._staged[name]
        except KeyError:
            raise UnknownAdapterError(
                f"the bank has no adapter {name!r} (found: {list(self._staged)}); add() it first"
            ) from None

    def _evict(self, places: Sequence[Placement]) -> None:
        for name in list(self._staged)[:-1]:
            if not self._over():
                return
            if not _in_place(places, self._staged[name]):
                del self._staged[name]

    def _over(self) -> bool:
        too_many = self._max_adapters is not None and len(self) > self._max_adapters
        return too_many or (self._max_bytes is not None and self.bytes > self._max_bytes)

    @property
    def bytes(self) -> int:
        """The bytes that the staged adapters hold."""
        return sum(each.image.bytes for staged in self._staged.values() for each in staged)

    def digest(self, name: str) -> str:
        """The digest of an adapter, as ``swap`` reports it. Raises UnknownAdapterError."""
        return digest_of(self._of(name))

    def __contains__(self, name: object) -> bool:
        return name in self._staged

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._staged))

    def __len__(self) -> int:
        return len(self._staged)


def _in_place(places: Sequence[Placement], staged: Sequence[StagedAdapter]) -> bool:
    return all(place.staged is each for place, each in zip(places, staged, strict=True))
