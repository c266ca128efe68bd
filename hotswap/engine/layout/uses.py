"""Uses: who has a model's adapters, and who waits for them, in the order in which they came."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from hotswap.errors import BusyError

_mine: ContextVar[tuple[weakref.ref[Use], ...]] = ContextVar("hotswap_uses", default=())
"""The uses that were taken in this context: this thread, or this task of an event loop."""


def _always_alone() -> bool:
    return False


class Use:
    """One use of a model's adapters under one name. Whoever has it may end it, in any thread.

    It ends at the latest when nobody holds the object any more. ``in_place`` tells whether what is wanted
    is in place, so that it may be shared with others who want the same, at most ``most`` of them.
    """

    __slots__ = (
        *(
            "__weakref__",
            "_wake",
            "granted",
            "in_place",
            "most",
            "name",
            "shared",
            "since",
            "thread",
        ),
    )

    def __init__(
        self, name: str | None, in_place: Callable[[], bool] = _always_alone, most: int = 1
    ) -> None:
        self.name = name
        self.in_place = in_place
        self.most = most
        self.thread = threading.get_ident()
        self.granted = False
        self.shared = False
        self.since = 0.0  # when it began to wait
        self._wake: Callable[[], Any] = _always_alone

    def grant(self) -> bool:
        """Tell whoever waits that it may go on; False: its event loop is closed, so it never will."""
        self.granted = True
        try:
            self._wake()
        except RuntimeError:
            self.granted = False
        return self.granted

    def wakes(self, wake: Callable[[], Any]) -> bool:
        """Have this called when it is this one's turn; tell whether it is already."""
        self._wake = wake
        return self.granted


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Uses:
    """The uses of one model: those that have its adapters, and a queue.

    ``waits`` counts those that could not begin at once, ``waited`` the seconds that they took to begin or
    to give up.
    """

    def __init__(self) -> None:
        self.waits = 0
        self.waited = 0.0
        self._lock = threading.RLock()  # held for moments; the end of a Use may come at any line
        self._holders: OrderedDict[int, weakref.ref[Use]] = OrderedDict()
        self._queue: OrderedDict[int, weakref.ref[Use]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def using(self) -> int:
        """How many have the adapters now."""
        return len(self._holders)

    def mine(self) -> list[Use]:
        """The uses of this context that have the adapters now."""
        found = [ref() for ref in _mine.get()]
        return [use for use in found if use is not None and id(use) in self._holders]

    def take(self, use: Use, timeout: float | None = None) -> None:
        """Wait until a use has its turn; raises BusyError after ``timeout`` seconds.

        Within one's own use it has its turn at once, or never where it would exchange what that has:
        then, without a timeout, BusyError comes at once, as it does in an event loop of which another
        task has the adapters.
        """
        if self.ask(use, wait=timeout is not None):
            return
        if _in_event_loop() and use.thread in self._threads():
            self.end(use)
            raise BusyError(
                "another task of this event loop uses the model's adapters, and waiting here would "
                "stop it; write: async with bank.using(name)"
            )
        turn = threading.Event()
        if not use.wakes(turn.set):
            turn.wait(timeout)
        self.require(use, timeout)

    def _threads(self) -> set[int]:
        return {use.thread for ref in [*self._holders.values()] if (use := ref()) is not None}

    def ask(self, use: Use, *, wait: bool = True) -> bool:
        """Queue a use; tell whether it has its turn already."""
        own = self.mine()
        with self._lock:
            if own and self._within(use, own):
                self._holders[id(use)] = weakref.ref(use, self._ended(id(use)))
                use.grant()
            else:
                if own and not wait:
                    raise BusyError(
                        "this thread is inside AdapterBank.using() of the same model; swap after its end"
                    )
                self._queue[id(use)] = weakref.ref(use, self._ended(id(use)))
                self._next()
                if not use.granted:
                    self.waits += 1
                    use.since = time.monotonic()
        _mine.set((*(ref for ref in _mine.get() if ref() is not None), weakref.ref(use)))
        return use.granted

    def require(self, use: Use, timeout: float | None) -> None:
        """Raise BusyError, and leave the queue, unless a use that waited has its turn."""
        with self._lock:
            self.waited += time.monotonic() - use.since
        if not use.granted:
            self.end(use)
            raise BusyError(f"the model's adapters were in use for {timeout} s; raise timeout=")

    def share(self, use: Use) -> None:
        """Let others who want what is in place now share it."""
        with self._lock:
            use.shared = use.most > 1
            self._next()

    def end(self, use: Use) -> None:
        """End a use, or stop waiting; doing it twice is harmless."""
        with self._lock:
            self._holders.pop(id(use), None)
            self._queue.pop(id(use), None)
            self._next()

    def forked(self) -> bool:
        """Forget those of threads that a child process does not have; tell whether one had the adapters."""
        self._lock = threading.RLock()  # one of them may have held it
        here, foreign = threading.get_ident(), False
        for uses in (self._queue, self._holders):
            for key, ref in list(uses.items()):
                use = ref()
                if use is None or use.thread != here:
                    del uses[key]
                    foreign = uses is self._holders
        self._next()
        return foreign

    def _within(self, use: Use, own: list[Use]) -> bool:
        """Whether a use may begin inside others of its context: of another name, or of the same adapter."""
        if len(own) < len(self._holders) and not use.in_place():
            return False  # others share what would be exchanged
        return use.in_place() or all(use.name is not None and use.name != one.name for one in own)

    def _next(self) -> None:
        """Give those their turn that have come first and may go on together."""
        while self._queue:
            key, ref = next(iter(self._queue.items()))
            use = ref()
            if use is None:
                del self._queue[key]
                continue
            holders = [holder for one in self._holders.values() if (holder := one()) is not None]
            if holders:
                together = len(holders) < use.most and all(one.shared for one in holders)
                if not (together and use.in_place()):
                    return
                use.shared = True
            if self._queue.pop(key, None) is not None:  # the end of another may have come between
                self._holders[key] = ref
                if not use.grant():
                    self._holders.pop(key, None)

    def _ended(self, key: int) -> Callable[[object], None]:
        """What is called when nobody holds a use any more; an id is given anew only after that."""
        mine = weakref.ref(self)

        def forget(_: object) -> None:
            uses = mine()
            if uses is not None:
                with uses._lock:
                    uses._holders.pop(key, None)
                    uses._queue.pop(key, None)
                    uses._next()

        return forget
