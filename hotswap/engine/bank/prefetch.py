"""Prefetch: the thread beside the model, in which versions are read and staged before they are wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from hotswap.engine.bank.shelf import Shelf, Version
from hotswap.engine.layout.arena import Arena
from hotswap.errors import UnknownAdapterError


class Prefetch:
    """One thread for a shelf, which begins with what is prefetched first."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._thread: ThreadPoolExecutor | None = None

    def begin(
        self, name: str, read: Callable[[Version], object], size: Callable[[], int]
    ) -> Future[str]:
        """Let the thread read what a name means next, unless it is about to; its digest is the result.

        ``size`` tells the bytes that a version takes. Raises UnknownAdapterError.
        """
        shelf = self._shelf
        with shelf.lock:
            version = shelf.cold.get(name) or shelf.find(name)
            if version.fetched is None or version.fetched.done():
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, "hotswap-prefetch")
                version.fetched = self._thread.submit(self._fetch, version, read, size)
            return version.fetched

    def _fetch(
        self, version: Version, read: Callable[[Version], object], size: Callable[[], int]
    ) -> str:
        """What the thread does."""
        shelf = self._shelf
        if not (shelf.current(version) and threading.main_thread().is_alive()):
            raise UnknownAdapterError(
                f"{version.name!r} was removed or added anew before it was read"
            )
        if version.staged is None:
            shelf.require_room(size())
            read(version)
        if shelf.reserve(version):
            images: list[Arena] = []
            try:
                for each in version.changing:
                    images.append(each.image.layout.new())
                    images[-1].copy(each.image)
            finally:
                shelf.lift(version, images)
        shelf.touch(version)
        return str(version.digest)

    def forked(self) -> None:
        """Begin anew in a child process, which does not have the thread."""
        self._thread = None
