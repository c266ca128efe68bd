"""The process-wide listener behind every watch. PYTEST_DONT_REWRITE

It chains into torch's guard hook (a hit or a miss at every compiled frame) and reads torch's compile
records; a miss that is followed by no record ran eagerly. It touches no stance, config, logger or
counter, and leaves nothing installed.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any, Protocol

from hotswap.compiler import private


class Listener(Protocol):
    """What a watch hears."""

    def heard_compile(self, kind: str, region: str, record: Any) -> None:
        """A compile ended: ``kind`` is first, recompile, backward, limit or failed."""

    def heard_hit(self, region: str) -> None:
        """Compiled code of the region is about to run."""

    def heard_eager(self, region: str) -> None:
        """A call missed every cache entry and ran eagerly."""

    def heard_reset(self) -> None:
        """``torch._dynamo.reset()`` was called."""

    def heard_problem(self, text: str) -> None:
        """Something cannot be observed."""


class Observer:
    """One per process; installed while at least one listener is there."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._previous: private.GuardHook | None = None
        self._last: Any = None
        self._missed = threading.local()

    def add(self, listener: Listener) -> None:
        """Start to tell a listener what happens; install if it is the first."""
        with self._lock:
            if self._listeners:
                self.flush()
            else:
                records = private.compile_records()
                self._last = records[-1] if records else None
                self._missed.region = None
                private.start_callbacks().append(self._on_start)
                self._previous = private.set_guard_hook(self._on_guard)
            self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Stop telling a listener; uninstall if it was the last."""
        with self._lock:
            self.flush()
            self._listeners = [kept for kept in self._listeners if kept is not listener]
            if self._listeners:
                return
            found = private.set_guard_hook(self._previous)
            if found != self._on_guard:
                private.set_guard_hook(found)
                listener.heard_problem(
                    "the guard hook was replaced inside the scope: hits and misses are not all seen"
                )
            callbacks = private.start_callbacks()
            if self._on_start in callbacks:
                callbacks.remove(self._on_start)
            self._last = None

    def flush(self) -> None:
        """Report what has happened and was not reported yet."""
        with self._lock:
            if not self._listeners:
                return
            self._read_records()
            self._settle()
            self._check_reset()

    def _on_start(self, _: Any) -> None:
        """Exist, so that a reset, which empties torch's list of callbacks, can be noticed."""

    def _on_guard(self, hit: bool) -> bool:
        if self._previous is not None:
            hit = self._previous(hit)
        region = _region(sys._getframe(1))
        with self._lock:
            self.flush()
            if hit:
                for listener in self._listeners:
                    listener.heard_hit(region)
            else:
                self._missed.region = region
        return hit

    def _settle(self) -> None:
        region = getattr(self._missed, "region", None)
        if region is not None:
            self._missed.region = None
            for listener in self._listeners:
                listener.heard_eager(region)

    def _check_reset(self) -> None:
        callbacks = private.start_callbacks()
        if self._on_start not in callbacks:
            callbacks.append(self._on_start)
            for listener in self._listeners:
                listener.heard_reset()

    def _read_records(self) -> None:
        new = []
        for record in reversed(private.compile_records()):
            if record is self._last:
                break
            new.append(record)
        if new:
            self._last = new[0]
        for record in reversed(new):
            if getattr(record, "is_runtime", False):
                continue
            kind = _kind(record)
            region = getattr(self._missed, "region", None) or record.co_name or "?"
            if kind != "backward":
                self._missed.region = None
            for listener in self._listeners:
                if kind == "limit":
                    listener.heard_eager(region)
                else:
                    listener.heard_compile(kind, region, record)


def _kind(record: Any) -> str:
    if record.fail_type:
        return "limit" if record.co_name is None and record.recompile_reason else "failed"
    if record.is_forward is False:
        return "backward"
    return "recompile" if record.recompile_reason or (record.cache_size or 0) > 0 else "first"


def _region(caller: FrameType) -> str:
    """Name what is called from a frame: the class of the module, or the function."""
    function = caller.f_locals.get("fn") if caller.f_code.co_name == "compile_wrapper" else None
    owner = getattr(function, "__self__", None) if function else caller.f_locals.get("self")
    if owner is not None:
        return type(owner).__name__
    return getattr(function, "__name__", caller.f_code.co_name)


OBSERVER = Observer()
