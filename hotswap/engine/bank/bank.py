"""AdapterBank: adapters kept staged in memory; activating one is one copy."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, Literal, NoReturn, get_args

import torch

from hotswap.engine.bank.prefetch import Prefetch
from hotswap.engine.bank.shelf import Limits, Shelf, Source, User, Version
from hotswap.engine.bank.waiting import in_thread, take
from hotswap.engine.bank.weighted import combined
from hotswap.engine.incoming.parts import Adapters, by_component, read_parts
from hotswap.engine.incoming.source import Adapter, Config, IncomingAdapter
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import entry_of, placement_of
from hotswap.engine.layout.staging import StagedAdapter
from hotswap.engine.layout.uses import Use, Uses
from hotswap.engine.mesh import Agree, together
from hotswap.engine.parts import parts_of, require_parts
from hotswap.engine.swap import digest_of
from hotswap.engine.transaction import (
    Changes,
    commit,
    held_until_end,
    name_of,
    require_served,
    stage_parts,
    uses_of,
)
from hotswap.errors import HotswapError

Device = Literal["cpu", "model"]


class AdapterBank:
    """Adapters of one prepared model or pipeline, validated and laid out once, ready to be put in place.

    ``adapter_name=None`` is the model's only adapter, or "default". ``add`` reads an adapter now,
    ``prefetch`` in a thread beside the model, ``register`` when it is first wanted. Above ``max_adapters``
    or ``max_bytes`` the least recently used are dropped, but never what is in place, used or waited for;
    what came from a disk or a hub is read again when it is wanted.
    ``max_shared`` may use the adapter in place at once, if the model's forward allows that.
    ``device="model"`` keeps them beside the weights; on ``"cpu"`` they are pinned for a GPU, and
    prefetched ones have a copy beside the weights, up to ``max_device_bytes`` (None: not one).
    """

    def __init__(
        self,
        model: Any,
        *,
        adapter_name: str | None = None,
        max_adapters: int | None = None,
        max_bytes: int | None = None,
        max_device_bytes: int | None = None,
        max_shared: int = 1,
        device: Device = "cpu",
    ) -> None:
        """Raise ValueError for a limit below 1 or another device; NoAdapterError, NotPreparedError."""
        if device not in get_args(Device):
            raise ValueError(f"device is {device!r}; expected one of {get_args(Device)}")
        limits = {"max_adapters": max_adapters, "max_bytes": max_bytes, "max_shared": max_shared}
        for name, limit in {**limits, "max_device_bytes": max_device_bytes}.items():
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}; expected at least 1, or None for no limit")
        if device == "model" and max_device_bytes is not None:
            raise ValueError(
                "max_device_bytes is given with device='model', which keeps all beside the weights; "
                "limit them with max_bytes"
            )
        self._model = model
        self._parts = parts_of(model)
        self._models = [part.model for part in self._parts]
        self._names = [name_of(part, adapter_name) for part in self._parts]
        self._device = torch.device("cpu") if device == "cpu" else None
        self._max_shared = max_shared
        self._shelf = Shelf(Limits(max_adapters, max_bytes, max_device_bytes), self._in_place)
        self._prefetch = Prefetch(self._shelf)
        for place in self._places():
            place.require_resident()
        for part in self._parts:
            require_served(part)
        for each in self._models:
            entry_of(each).banks.add(self)
        _banks.add(self)

    def _places(self, *, at_once: bool = False) -> list[Placement]:
        require_parts(self._model, self._parts, self._models)
        pairs = zip(self._models, self._names, strict=True)
        return [placement_of(model, name, at_once=at_once) for model, name in pairs]

    def _in_place(self) -> list[StagedAdapter]:
        """What the model has in place, as far as that is known."""
        pairs = zip(self._models, self._names, strict=True)
        found = [entry_of(model).placements.get(name) for model, name in pairs]
        return [place.staged for place in found if place is not None and place.staged is not None]

    def add(
        self,
        name: str,
        adapter: Adapter | Adapters | None,
        *,
        config: Config | None = None,
        allow_pickle: bool = False,
    ) -> str:
        """Stage an adapter under a name, in place of one that has it; return its digest.

        A dict names an adapter for each component of a pipeline; see ``swap``, also for ``allow_pickle``.
        The adapter in place is not touched: those who use the name go on with what they have, and the
        next ``using`` puts in place what was added. Raises what ``swap`` raises for an adapter that does
        not fit; the bank then keeps what it had. HotswapError when one adapter alone is larger than
        ``max_bytes``.
        """
        version = Version(name, Source(adapter, config, allow_pickle))
        self._read(version)
        self._shelf.put(version)
        return str(version.digest)

    def add_weighted(self, name: str, weights: Mapping[str, float]) -> str:
        """Stage the weighted sum of adapters of the bank under a name; return its digest.

        The ranks of the summands are put side by side, so it is exact but for the rounding of lora_B. Raises
        RankTooLargeError, with the rank that is needed, where their sum is above the prepared one,
        HotswapError for DoRA, whole modules and token rows, and UnknownAdapterError.
        """
        summands = {}
        for one, weight in weights.items():
            found = self._shelf.find(one)
            self._read(found)
            summands[one] = self._shelf.newest(found), weight
        places = self._places()
        version = Version(name, None)
        self._stage(version, places, combined(name, self._parts, places, summands))
        self._shelf.put(version)
        return str(version.digest)

    def register(
        self,
        name: str,
        adapter: Adapter | Adapters | None,
        *,
        config: Config | None = None,
        allow_pickle: bool = False,
    ) -> None:
        """Say what a name means; it is read by ``prefetch``, or by the first ``using``.

        What is staged under the name serves until then. A state dict is copied.
        """
        self._shelf.register(Version(name, Source(_copied(adapter), config, allow_pickle)))

    def prefetch(
        self,
        name: str,
        adapter: Adapter | Adapters | None = None,
        *,
        config: Config | None = None,
        allow_pickle: bool = False,
    ) -> Future[str]:
        """Read, validate and stage an adapter in a thread beside the model; its digest is the result.

        Without ``adapter`` it is the one that the name is known for. The future raises what ``add``
        raises, and HotswapError where there is no room; what is staged under the name then goes on serving.
        What was prefetched counts as used last. Raises UnknownAdapterError.
        """
        if adapter is not None:
            self.register(name, adapter, config=config, allow_pickle=allow_pickle)
        return self._prefetch.begin(name, self._read, self._size)

    def _size(self) -> int:
        """The bytes that an adapter takes which changes every part."""
        return sum(place.layout.bytes for place in self._places())

    def _read(self, version: Version) -> None:
        """Read and stage a version, unless somebody did; never while a use of the model is held."""
        with version.reading:
            source = version.source
            if version.staged is not None or source is None:
                return
            incoming = read_parts(
                self._model,
                self._parts,
                source.adapter,
                source.config,
                allow_pickle=source.allow_pickle,
            )
            self._stage(version, self._places(), incoming)
            if not source.lasting:
                version.source = None
            if self._shelf.cold.get(version.name) is version:
                self._shelf.put(version)

    def _stage(
        self,
        version: Version,
        places: Sequence[Placement],
        incoming: Mapping[str, IncomingAdapter],
    ) -> None:
        changing = [
            place.layout
            for part, place in zip(self._parts, places, strict=True)
            if part.key in incoming
        ]
        size = sum(layout.bytes for layout in changing)
        self._shelf.require_limit(size)
        staged = stage_parts(
            self._parts,
            places,
            incoming,
            dict.fromkeys(incoming, version.name),
            lambda place: place.layout.new(self._device),
        )
        digest, before = digest_of(staged), version.expected
        if before is not None and before[0] == changing and before[1] != digest:
            raise HotswapError(
                f"the files of {version.name!r} are others than when it was added; add() it again"
            )
        version.digest, version.bytes, version.staged = digest, size, staged

    def remove(self, name: str) -> None:
        """Forget a name; what is in place stays in place. Raises UnknownAdapterError.

        Those who use it or wait for their turn with it go on.
        """
        self._shelf.remove(name)

    def using(self, name: str, *, timeout: float | None = None) -> Using:
        """Put an adapter in place and keep others from swapping until the scope ends; it stays in place.

        ``with`` waits as threads do, ``async with`` as tasks of asyncio or trio do: first come, first
        served, and up to ``max_shared`` at once of those that want the adapter in place. The scope may end
        in another thread than it began in. Nothing is copied when the adapter is in place already; a
        user's scale factor then stays too. What was not read yet is read before it asks for the model.
        Raises UnknownAdapterError, or BusyError after ``timeout`` seconds or where waiting would never end.
        """
        return Using(self, name, timeout)

    async def swap(self, name: str, *, timeout: float | None = None) -> None:
        """Put an adapter in place, waiting for the model as ``async with using(name)`` does."""
        async with self.using(name, timeout=timeout):
            pass

    def _asked(self, version: Version, held: ExitStack) -> list[tuple[Uses, Use]]:
        """A use of every part, which ends with the scope."""

        def in_place() -> bool:
            try:  # whoever ends the use before asks this
                return _hold(self._places(at_once=True), self._shelf.newest(version))
            except HotswapError:
                return False

        found = []
        for uses, place in uses_of(self._models):
            use = Use(self._names[place], in_place, self._max_shared)
            found.append((uses, held_until_end(held, uses, use)))
        return found

    def _put(self, version: Version, asked: Sequence[tuple[Uses, Use]], agree: Agree) -> None:
        """Put in place what serves the name of a version by now; all parts have their turn."""
        staged, places = self._shelf.newest(version), self._places(at_once=True)
        for place in places:
            place.require_unmerged()
        self._shelf.touch(version)
        if not _hold(places, staged):
            for place in places:
                place.require_resident()
            _require_layout(version.name, places, staged)
            with Changes() as changes, changes:
                commit(places, staged, changes, agree)
        else:
            agree((each.digest for each in staged if each is not None), version.name)
            agree()
        for uses, use in asked:
            uses.share(use)

    @property
    def bytes(self) -> int:
        """The bytes that the staged adapters hold, in every tier."""
        return self._shelf.bytes + self._shelf.device_bytes

    def rows(self) -> list[dict[str, Any]]:
        """What is kept of each name, as ``hotswap.state`` tells it."""
        shelf, found = self._shelf, []
        with shelf.lock:
            versions = {**shelf.cold, **shelf.staged}
        for name, version in versions.items():
            beside, source = self._device is None, version.source
            lifted = beside or version.images is not None
            on_disk = version.staged is None and source is not None and source.lasting
            row = {"name": name, "tier": "disk" if on_disk else "device" if lifted else "host"}
            found.append(
                {
                    **row,
                    "digest": version.digest,
                    "device_bytes": version.bytes if beside else version.device_bytes,
                    "host_bytes": 0 if beside else version.bytes,
                    "users": len(version.users),
                }
            )
        return found

    def digest(self, name: str) -> str:
        """The digest of an adapter, as ``swap`` reports it; reads it if need be. See ``add``."""
        version = self._shelf.find(name)
        if version.digest is None:
            self._read(version)
        return str(version.digest)

    def __contains__(self, name: object) -> bool:
        return name in self._shelf.staged

    def __iter__(self) -> Iterator[str]:
        with self._shelf.lock:
            return iter(list(self._shelf.staged))

    def __len__(self) -> int:
        return len(self._shelf.staged)

    def __bool__(self) -> bool:
        return True  # an empty bank is a bank

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise TypeError(
            "a bank cannot be copied or pickled: it is of one model in one process; "
            "make another one with AdapterBank(model), and add the adapters to that"
        )


class Using:
    """The scope of ``AdapterBank.using``, for ``with`` and for ``async with``."""

    def __init__(self, bank: AdapterBank, name: str, timeout: float | None) -> None:
        self._bank = bank
        self._name = name
        self._timeout = timeout
        self._held: list[ExitStack] = []  # one for each time that it was entered and not left

    def _wanted(self, held: ExitStack) -> Version:
        """The version that is wanted, which is kept until the scope ends."""
        shelf = self._bank._shelf
        if shelf.limits != Limits():
            held.callback(shelf.trim)
        user = User()  # not this object, which would hold itself then
        version = shelf.want(self._name, user)
        held.callback(version.users.discard, user)
        return version

    def __enter__(self) -> None:
        with together(self._bank._parts) as agree, ExitStack() as held:
            version = self._wanted(held)
            if version.staged is None:
                self._bank._read(version)
            asked = self._bank._asked(version, held)
            for uses, use in asked:
                uses.take(use, self._timeout)
            self._bank._put(version, asked, agree)
            self._held.append(held.pop_all())

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._held.pop().close()

    async def __aenter__(self) -> None:
        with together(self._bank._parts) as agree, ExitStack() as held:
            version = self._wanted(held)
            if version.staged is None:
                await in_thread(lambda: self._bank._read(version))
            asked = self._bank._asked(version, held)
            for uses, use in asked:
                await take(uses, use, self._timeout)
            self._bank._put(version, asked, agree)
            self._held.append(held.pop_all())

    async def __aexit__(self, *error: object) -> None:
        self.__exit__(*error)


def _copied(adapter: Adapter | Adapters | None) -> Any:
    """An adapter that stays as it is now: its tensors are copied, if it has them in memory."""
    if by_component(adapter):
        return {key: _copied(each) for key, each in adapter.items()}
    if isinstance(adapter, Mapping):
        tensors: Mapping[str, Any] = adapter
        return {key: value.detach().clone() for key, value in tensors.items()}
    return adapter


def _hold(places: Sequence[Placement], staged: Sequence[StagedAdapter | None]) -> bool:
    pairs = zip(places, staged, strict=True)
    return all(each is None or place.holds(each) for place, each in pairs)


def _require_layout(
    name: str, places: Sequence[Placement], staged: Sequence[StagedAdapter | None]
) -> None:
    """Raise HotswapError for an adapter that was staged before the model was prepared anew."""
    for place, each in zip(places, staged, strict=True):
        if each is None:
            continue
        if not place.takes(each.image.layout):
            raise HotswapError(
                f"the model was prepared anew after {name!r} was staged, or layers of it were replaced: it "
                "has other room, another dtype or another device now; add() it again"
            )
        if each.stale():
            raise HotswapError(
                f"base weights were written or moved after {name!r} was staged, which holds norms of "
                "them; add() it again"
            )


_banks: weakref.WeakSet[AdapterBank] = weakref.WeakSet()


def _forked() -> None:
    for bank in list(_banks):
        bank._shelf.forked()
        bank._prefetch.forked()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forked)
