"""AdapterBank: adapters kept staged in memory; activating one is one copy."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal, get_args

import torch

from hotswap.engine.incoming.parts import Adapters, read_parts
from hotswap.engine.incoming.source import Adapter, Config
from hotswap.engine.layout.placement import Placement, StagedAdapter
from hotswap.engine.layout.registry import entry_of, placement_of
from hotswap.engine.layout.uses import Use, Uses
from hotswap.engine.parts import parts_of
from hotswap.engine.swap import digest_of
from hotswap.engine.transaction import Changes, commit, held_until_end, stage_parts
from hotswap.errors import HotswapError, UnknownAdapterError

Device = Literal["cpu", "model"]


class AdapterBank:
    """Adapters of one prepared model or pipeline, validated and laid out once, ready to be put in place.

    With ``max_adapters`` or ``max_bytes`` the least recently used ones are dropped, but never the one in
    place. ``max_shared`` may use the adapter in place at once, if the model's forward allows that.
    ``device="model"`` keeps them beside the weights; on ``"cpu"`` they are pinned for a GPU.
    """

    def __init__(
        self,
        model: Any,
        *,
        adapter_name: str = "default",
        max_adapters: int | None = None,
        max_bytes: int | None = None,
        max_shared: int = 1,
        device: Device = "cpu",
    ) -> None:
        """Raise ValueError for a limit below 1 or another device; NoAdapterError, NotPreparedError."""
        if device not in get_args(Device):
            raise ValueError(f"device is {device!r}; expected one of {get_args(Device)}")
        limits = {"max_adapters": max_adapters, "max_bytes": max_bytes, "max_shared": max_shared}
        for name, limit in limits.items():
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}; expected at least 1, or None for no limit")
        self._model = model
        self._parts = parts_of(model)
        self._models = [part.model for part in self._parts]
        self._adapter_name = adapter_name
        self._max_adapters = max_adapters
        self._max_bytes = max_bytes
        self._device = torch.device("cpu") if device == "cpu" else None
        self._max_shared = max_shared
        self._staged: OrderedDict[str, list[StagedAdapter | None]] = OrderedDict()
        self._lock = threading.RLock()  # of the dict, held for moments
        self._places()

    def _places(self, *, at_once: bool = False) -> list[Placement]:
        name = self._adapter_name
        return [placement_of(model, name, at_once=at_once) for model in self._models]

    def add(
        self, name: str, adapter: Adapter | Adapters | None, *, config: Config | None = None
    ) -> str:
        """Stage an adapter under a name, in place of one that has it; return its digest.

        A dict names an adapter for each component of a pipeline; see ``swap``.
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
            self._parts,
            places,
            incoming,
            dict.fromkeys(incoming, name),
            lambda place: place.layout.new(self._device),
        )
        with self._lock:
            self._staged[name] = staged
            self._staged.move_to_end(name)
            self._evict(places)
        return digest_of(staged)

    def remove(self, name: str) -> None:
        """Drop an adapter; one that is in place stays in place. Raises UnknownAdapterError."""
        with self._lock:
            self._of(name)
            del self._staged[name]

    def using(self, name: str, *, timeout: float | None = None) -> Using:
        """Put an adapter in place and keep others from swapping until the scope ends; it stays in place.

        ``with`` waits as threads do, ``async with`` as tasks of asyncio or trio do: first come, first
        served, and up to ``max_shared`` at once of those that want the adapter in place. The scope may end
        in another thread than it began in. Nothing is copied when the adapter is in place already; a
        user's scale factor then stays too. Raises UnknownAdapterError, or BusyError after ``timeout``
        seconds or where waiting would never end.
        """
        return Using(self, name, timeout)

    async def swap(self, name: str, *, timeout: float | None = None) -> None:
        """Put an adapter in place, waiting for the model as ``async with using(name)`` does."""
        async with self.using(name, timeout=timeout):
            pass

    def _asked(self, name: str, held: ExitStack) -> list[tuple[Uses, Use]]:
        """A use of every part, which ends with the scope."""
        self._of(name)

        def in_place() -> bool:
            try:  # whoever ends the use before asks this
                return _in_place(self._places(at_once=True), self._of(name))
            except HotswapError:
                return False

        found = []
        for model in self._models:
            uses = entry_of(model).uses
            use = Use(self._adapter_name, in_place, self._max_shared)
            found.append((uses, held_until_end(held, uses, use)))
        return found

    def _put(self, name: str, asked: Sequence[tuple[Uses, Use]]) -> None:
        """Put an adapter in place, all parts of which have their turn."""
        staged, places = self._of(name), self._places(at_once=True)
        for place in places:
            place.require_unmerged()
        if not _in_place(places, staged):
            for place in places:
                place.require_resident(at_once=True)
            _require_layout(name, places, staged)
            with Changes() as changes, changes:
                commit(places, staged, changes)
        with self._lock:
            if name in self._staged:
                self._staged.move_to_end(name)
        for uses, use in asked:
            uses.share(use)

    def _of(self, name: str) -> list[StagedAdapter | None]:
        staged = self._staged.get(name)
        if staged is None:
            raise UnknownAdapterError(
                f"the bank has no adapter {name!r} (found: {list(self._staged)}); add() it first"
            )
        return staged

    def _evict(self, places: Sequence[Placement]) -> None:
        for name in list(self._staged)[:-1]:
            if not self._over():
                return
            in_place = [place.staged for place in places if place.staged is not None]
            if not any(each in self._staged[name] for each in in_place):
                del self._staged[name]

    def _over(self) -> bool:
        too_many = self._max_adapters is not None and len(self) > self._max_adapters
        return too_many or (self._max_bytes is not None and self.bytes > self._max_bytes)

    @property
    def bytes(self) -> int:
        """The bytes that the staged adapters hold."""
        with self._lock:
            held = [each for staged in self._staged.values() for each in staged]
            return sum(each.image.bytes for each in held if each is not None)

    def digest(self, name: str) -> str:
        """The digest of an adapter, as ``swap`` reports it. Raises UnknownAdapterError."""
        return digest_of(self._of(name))

    def __contains__(self, name: object) -> bool:
        return name in self._staged

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._staged))

    def __len__(self) -> int:
        return len(self._staged)


class Using:
    """The scope of ``AdapterBank.using``, for ``with`` and for ``async with``."""

    def __init__(self, bank: AdapterBank, name: str, timeout: float | None) -> None:
        self._bank = bank
        self._name = name
        self._timeout = timeout
        self._held = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as held:
            asked = self._bank._asked(self._name, held)
            for uses, use in asked:
                uses.take(use, self._timeout)
            self._bank._put(self._name, asked)
            self._held = held.pop_all()

    def __exit__(self, *_: object) -> None:
        self._held.close()

    async def __aenter__(self) -> None:
        with ExitStack() as held:
            asked = self._bank._asked(self._name, held)
            for uses, use in asked:
                await _take(uses, use, self._timeout)
            self._bank._put(self._name, asked)
            self._held = held.pop_all()

    async def __aexit__(self, *_: object) -> None:
        self._held.close()


async def _take(uses: Uses, use: Use, timeout: float | None) -> None:
    """Wait as a task until a use has its turn; whoever ends the one before may be a thread."""
    import anyio

    if not uses.ask(use, wait=timeout is not None):
        turn = anyio.Event()
        with anyio.move_on_after(timeout):
            if not use.wakes(_setter(turn)):
                await turn.wait()
        uses.require(use, timeout)


def _setter(event: Any) -> Callable[[], Any]:
    """Give what sets an event of the running event loop from any thread."""
    import anyio.lowlevel

    loop: Any = anyio.lowlevel.current_token().native_token  # of asyncio, or a TrioToken
    soon = (
        loop.call_soon_threadsafe if hasattr(loop, "call_soon_threadsafe") else loop.run_sync_soon
    )
    return lambda: soon(event.set)


def _in_place(places: Sequence[Placement], staged: Sequence[StagedAdapter | None]) -> bool:
    pairs = zip(places, staged, strict=True)
    return all(each is None or place.holds(each) for place, each in pairs)


def _require_layout(
    name: str, places: Sequence[Placement], staged: Sequence[StagedAdapter | None]
) -> None:
    """Raise HotswapError for an adapter that was staged before the model was prepared anew."""
    for place, each in zip(places, staged, strict=True):
        if each is None:
            continue
        mine, other = place.layout, each.image.layout
        if mine is not other and [r.shape for r in mine.regions] != [
            r.shape for r in other.regions
        ]:
            raise HotswapError(
                f"the model was prepared anew after {name!r} was staged, with other room; add() it again"
            )
