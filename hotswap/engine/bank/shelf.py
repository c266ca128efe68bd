"""Shelf: the versions of a bank by name, where each is kept, and which may go for another."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from hotswap.engine.incoming.parts import Adapters, by_component
from hotswap.engine.incoming.source import Adapter, Config
from hotswap.engine.layout.arena import Arena, Layout
from hotswap.engine.layout.staging import StagedAdapter
from hotswap.errors import HotswapError, UnknownAdapterError


@dataclass(frozen=True, slots=True)
class Source:
    """What an adapter is read from."""

    adapter: Adapter | Adapters | None
    config: Config | None
    allow_pickle: bool = False

    @property
    def lasting(self) -> bool:
        """Whether it can be read again: it is on a disk, in a hub, or the base model."""
        return _lasting(self.adapter)


def _lasting(adapter: Adapter | Adapters | None) -> bool:
    if by_component(adapter):
        return all(map(_lasting, adapter.values()))
    return adapter is None or isinstance(adapter, str | Path)


class User:
    """Somebody who uses a version, or waits for it; forgotten at the latest when nobody holds it."""


class Version:
    """One adapter under a name: named, then read once by whoever comes first, then staged.

    ``users`` are those who use it or wait for their turn; they keep it, whatever its name means by then.
    ``images`` are those in host memory while ``staged`` has others on the model's device, which are made
    while ``lifting``. ``expected`` are the layouts and the digest that it had when it was read before.
    """

    def __init__(
        self,
        name: str,
        source: Source | None,
        expected: tuple[list[Layout], str] | None = None,
    ) -> None:
        self.name = name
        self.source = source
        self.expected = expected
        self.staged: list[StagedAdapter | None] | None = None  # None of a part: it stays as it is
        self.images: list[Arena] | None = None
        self.lifting = False
        self.digest: str | None = expected[1] if expected is not None else None
        self.bytes = 0
        self.reading = threading.Lock()
        self.fetched: Future[str] | None = None
        self.users: weakref.WeakSet[User] = weakref.WeakSet()

    @property
    def changing(self) -> list[StagedAdapter]:
        """What it puts in place, of the parts that it changes."""
        return [each for each in self.staged or () if each is not None]

    @property
    def layouts(self) -> list[Layout]:
        """How it is laid out, part by part."""
        return [each.image.layout for each in self.changing]

    @property
    def device_bytes(self) -> int:
        """The bytes of its images on the device beside those in host memory."""
        return self.bytes if self.images is not None or self.lifting else 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a bank may keep staged, and on the model's device beside that; None: no limit."""

    adapters: int | None = None
    bytes: int | None = None
    device_bytes: int | None = None


class Shelf:
    """The versions of a bank: ``staged`` ones, least recently used first, and ``cold`` ones, yet to be read.

    A name may have one of each: what is staged serves until the other was read. ``in_place`` tells
    what the model has in place. What is in place, used or waited for does not go for another.
    """

    def __init__(self, limits: Limits, in_place: Callable[[], Sequence[StagedAdapter]]) -> None:
        self.lock = threading.RLock()  # held for moments, and never while a use is asked for
        self.limits = limits
        self.staged: OrderedDict[str, Version] = OrderedDict()
        self.cold: dict[str, Version] = {}
        self._in_place = in_place

    @property
    def bytes(self) -> int:
        """What the staged ones take, without images on the device beside those in host memory."""
        with self.lock:
            return sum([version.bytes for version in self.staged.values()])

    @property
    def device_bytes(self) -> int:
        """What the images on the device take that are there beside those in host memory."""
        with self.lock:
            return sum([version.device_bytes for version in self.staged.values()])

    def find(self, name: str) -> Version:
        """The version that serves a name, or will; raises UnknownAdapterError."""
        with self.lock:
            found = self.staged.get(name) or self.cold.get(name)
            if found is None:
                names = list(dict.fromkeys([*self.staged, *self.cold]))
                raise UnknownAdapterError(
                    f"the bank has no adapter {name!r} (found: {names}); add() it first"
                )
            return found

    def want(self, name: str, user: User) -> Version:
        """Find a version and keep it for a user, until that one goes; raises UnknownAdapterError."""
        with self.lock:
            found = self.find(name)
            found.users.add(user)
            return found

    def newest(self, version: Version) -> list[StagedAdapter | None]:
        """What serves the name of a version now: one that came after it, or itself."""
        found = self.staged.get(version.name, version).staged
        if found is None:
            raise HotswapError(f"{version.name!r} was not read yet")
        return found

    def current(self, version: Version) -> bool:
        """Whether a version still serves its name, or will."""
        name = version.name
        return self.staged.get(name) is version or self.cold.get(name) is version

    def register(self, version: Version) -> None:
        """Let a version be what is read next under its name."""
        with self.lock:
            old = self.cold.get(version.name)
            self.cold[version.name] = version
        _give_up(old)

    def put(self, version: Version) -> None:
        """Let a version that was read serve its name, in place of what did."""
        name = version.name
        with self.lock:
            self.staged[name] = version
            self.staged.move_to_end(name)
            old = self.cold.pop(name, None)
            self.trim()
        if old is not version:
            _give_up(old)

    def remove(self, name: str) -> None:
        """Forget a name; who uses it or waits for it goes on. Raises UnknownAdapterError."""
        with self.lock:
            self.find(name)
            old = self.cold.pop(name, None)
            self.staged.pop(name, None)
        _give_up(old)

    def touch(self, version: Version) -> None:
        """Note that a name was used."""
        with self.lock:
            if version.name in self.staged:
                self.staged.move_to_end(version.name)

    def trim(self) -> None:
        """Drop the least recently used above the limits; what can be read again is cold from then on."""
        with self.lock:
            for version in self._idle() if self._over() else ():
                if not self._over() or version is next(reversed(self.staged.values())):
                    return
                if version.source is not None and version.digest is not None:
                    expected = version.layouts, version.digest
                    again = Version(version.name, version.source, expected)
                    self.cold.setdefault(version.name, again)
                del self.staged[version.name]

    def require_room(self, size: int) -> None:
        """Raise HotswapError unless one more of this size fits beside what cannot go."""
        with self.lock:
            kept = len(self.staged) - len(self._idle())
        limits = self.limits
        for limit, taken in ((limits.adapters, kept + 1), (limits.bytes, (kept + 1) * size)):
            if limit is not None and taken > limit:
                raise HotswapError(
                    f"there is no room to prefetch: {kept} adapters are in place, used or waited for and "
                    f"the limit is {limit}; raise max_adapters or max_bytes, or prefetch later"
                )

    def require_limit(self, size: int) -> None:
        """Raise HotswapError for an adapter that is larger than all that may be kept."""
        limit = self.limits.bytes
        if limit is not None and size > limit:
            raise HotswapError(
                f"an adapter takes {size} bytes, above max_bytes={limit}; "
                "raise the limit, or prepare with a smaller rank"
            )

    def reserve(self, version: Version) -> bool:
        """Make room for a version's images on the device; tell whether there is room."""
        limit = self.limits.device_bytes
        with self.lock:
            if limit is None or version.images is not None or not self.current(version):
                return False
            for other in self._idle():
                if self.device_bytes + version.bytes <= limit:
                    break
                if other is not version:
                    _lower(other)
            version.lifting = self.device_bytes + version.bytes <= limit
            return version.lifting

    def lift(self, version: Version, images: Sequence[Arena]) -> None:
        """Let a version serve from images on the device, for which room was reserved; without them not."""
        with self.lock:
            version.lifting = False
            changing = version.changing
            if self.current(version) and len(images) == len(changing):
                version.images = [each.image for each in changing]
                for each, image in zip(changing, images, strict=True):
                    each.image = image

    def forked(self) -> None:
        """Begin anew in a child process, which has none of the threads that may have been reading."""
        self.lock = threading.RLock()
        for version in (*self.staged.values(), *self.cold.values()):
            version.reading, version.fetched, version.lifting = threading.Lock(), None, False

    def _idle(self) -> list[Version]:
        """Those that nobody needs now, least recently used first."""
        kept = set(map(id, self._in_place()))
        return [
            version
            for version in self.staged.values()
            if not len(version.users) and kept.isdisjoint(map(id, version.changing))
        ]

    def _over(self) -> bool:
        most, size = self.limits.adapters, self.limits.bytes
        too_many = most is not None and len(self.staged) > most
        return too_many or (size is not None and self.bytes > size)


def _lower(version: Version) -> None:
    """Let a version serve from host memory again."""
    if version.images is not None:
        for each, image in zip(version.changing, version.images, strict=True):
            each.image = image
        version.images = None


def _give_up(version: Version | None) -> None:
    """Do not read a version that nobody will get by its name any more, unless somebody does already."""
    if version is not None and version.fetched is not None:
        version.fetched.cancel()
