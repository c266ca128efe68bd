"""AdapterBank: adapters kept staged in memory; activating one is one copy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from peft import LoraConfig
from torch import nn

from hotswap.engine.incoming.source import Adapter, read
from hotswap.engine.incoming.stage import stage, validate
from hotswap.engine.layout.placement import Content
from hotswap.engine.layout.registry import placement_of, prepared_of
from hotswap.engine.layout.slots import unwrap
from hotswap.errors import HotswapError, UnknownAdapterError

Device = Literal["cpu", "model"]


class AdapterBank:
    """Adapters of one prepared model, validated and laid out once, ready to be put in place.

    With ``max_adapters`` or ``max_bytes`` the least recently used ones are dropped, but never the one in
    place. ``device="model"`` keeps them beside the weights; on ``"cpu"`` they are pinned for a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
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
        placement_of(model, adapter_name)
        self._model = unwrap(model)
        self._prepared = prepared_of(model)
        self._adapter_name = adapter_name
        self._max_adapters = max_adapters
        self._max_bytes = max_bytes
        self._device = torch.device("cpu") if device == "cpu" else None
        self._contents: OrderedDict[str, Content] = OrderedDict()

    def add(self, name: str, adapter: Adapter | None, *, config: LoraConfig | None = None) -> str:
        """Stage an adapter under a name, in place of one that has it; return its digest.

        The adapter in place is not touched: what was added anew under its name is put in place by the
        next ``using``. Raises what ``swap`` raises for an adapter that does not fit; the bank then
        keeps what it had. HotswapError when one adapter alone is larger than ``max_bytes``.
        """
        source = read(adapter, config) if adapter is not None else None
        placement = placement_of(self._model, self._adapter_name)
        if source is not None:
            validate(self._model, placement, source)
        size = placement.layout.bytes
        if self._max_bytes is not None and size > self._max_bytes:
            raise HotswapError(
                f"an adapter takes {size} bytes, above max_bytes={self._max_bytes}; "
                "raise the limit, or prepare with a smaller rank"
            )
        content = stage(placement, source, placement.layout.new(self._device))
        content.label = name
        self._contents[name] = content
        self._contents.move_to_end(name)
        self._evict(placement.content)
        return content.digest

    def remove(self, name: str) -> None:
        """Drop an adapter; one that is in place stays in place. Raises UnknownAdapterError."""
        self._content(name)
        del self._contents[name]

    @contextmanager
    def using(self, name: str, *, timeout: float | None = None) -> Iterator[None]:
        """Put an adapter in place and keep others from swapping until the scope ends; it stays in place.

        Nothing is copied when it is in place already; a user's scale factor then stays too. Raises
        UnknownAdapterError, or BusyError after ``timeout`` seconds or inside another ``using``.
        """
        with self._prepared.exclusive(timeout=timeout):
            content = self._content(name)
            placement = self._prepared.placements.get(self._adapter_name)
            if placement is None or self._prepared.moved or placement.reassigned:
                placement = placement_of(self._model, self._adapter_name)
                self._prepared.moved = placement.arena is None
            placement.require_unmerged()
            if placement.content is not content:
                before = placement.content
                placement.put(content, undo=before.image if before is not None else None)
                self._contents.move_to_end(name)
            yield

    def _content(self, name: str) -> Content:
        try:
            return self._contents[name]
        except KeyError:
            raise UnknownAdapterError(
                f"the bank has no adapter {name!r} (found: {list(self._contents)}); add() it first"
            ) from None

    def _evict(self, in_place: Content | None) -> None:
        for name in list(self._contents)[:-1]:
            if not self._over():
                return
            if self._contents[name] is not in_place:
                del self._contents[name]

    def _over(self) -> bool:
        too_many = self._max_adapters is not None and len(self) > self._max_adapters
        return too_many or (self._max_bytes is not None and self.bytes > self._max_bytes)

    @property
    def bytes(self) -> int:
        """The bytes that the staged adapters hold."""
        return sum(content.image.bytes for content in self._contents.values())

    def digest(self, name: str) -> str:
        """The digest of an adapter, as ``swap`` reports it. Raises UnknownAdapterError."""
        return self._content(name).digest

    def __contains__(self, name: object) -> bool:
        return name in self._contents

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._contents))

    def __len__(self) -> int:
        return len(self._contents)
