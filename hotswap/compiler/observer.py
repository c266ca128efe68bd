"""The process-wide observer, and the listeners that it tells. PYTEST_DONT_REWRITE

It chains into torch's guard hook (a hit or a miss at every compiled frame), is told of each call of
something compiled and when a compile starts, and reads torch's compile records. A call that is followed
by neither ran eagerly, and so did a miss that is followed by no compile. It touches no stance, config,
logger or counter, and leaves nothing installed.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import FrameType
from typing import Any
from weakref import WeakSet

from torch import nn

from hotswap.compiler import private
from hotswap.compiler.compiled import ignored_hooks
from hotswap.compiler.guards import modules_read, nearest
from hotswap.compiler.listener import Compile, Kind, Listener
from hotswap.compiler.reasons import Reason
from hotswap.compiler.regions import Region, Regions, graph_break
from hotswap.compiler.rules import Guarded, explain
from hotswap.compiler.stack import called_whole, is_running, takes_tensors
from hotswap.errors import CannotObserveError

_SKIPPED = "torch skips its frame, as after a compile that failed"


class Observer:
    """One per process; installed while at least one listener is there."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._previous: private.GuardHook | None = None
        self._callbacks: list[Any] = []
        self._guard_hook: private.GuardHook | None = None  # while installed
        self._start_hook: Callable[[Any], None] = self._on_start
        self._met: WeakSet[nn.Module] = WeakSet()  # what earlier watches saw compiled
        self.regions = Regions()
        self._forget()

    def _forget(self) -> None:
        for region in self.regions:
            owner = region.owner()
            if owner is not None and (region.compiled or region.hits()):
                self._met.add(owner)
        self.regions = Regions()
        self._last: Any = None
        self._called: dict[
            int, FrameType
        ] = {}  # by thread: torch's wrapper, while nothing came of it
        self._disabled: dict[int, int] = {}  # calls of whole modules by torch.compiler.disable
        self._missed: dict[int, tuple[Region, str]] = {}  # by thread
        self._unrecorded: dict[
            str, tuple[Region, int]
        ] = {}  # by compile id: what began, and its thread
        self._why: dict[tuple[Region, str], str] = {}
        self._starts: dict[str, tuple[Region, tuple[Reason, ...], str]] = {}

    def add(self, listener: Listener) -> None:
        """Start to tell a listener what happens; install if it is the first."""
        with self._lock:
            if self._listeners:
                self.flush()
            else:
                records = private.compile_records()
                self._last = records[-1] if records else None
                self._callbacks = private.start_callbacks()
                self._previous = private.set_guard_hook(None)
                try:
                    private.set_call_hook(self._on_call)
                except CannotObserveError:
                    private.set_guard_hook(self._previous)
                    raise
                self._guard_hook = self._new_guard_hook(self._previous)
                private.set_guard_hook(self._guard_hook)
                self._callbacks.append(self._start_hook)
            self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Stop telling a listener; uninstall if it was the last."""
        with self._lock:
            self.flush()
            compiling = private.compiling_elsewhere()
            for thread in self._missed.keys() - compiling.keys():
                self._settle(thread)
            self._look_for_unfinished(listener, compiling)
            self._look_for_ignored_hooks()
            found = private.set_guard_hook(self._guard_hook)
            if found is not self._guard_hook:
                listener.heard_problem(
                    "another guard hook was installed inside the scope: not every call was seen"
                )
            listener.close()
            self._listeners = [kept for kept in self._listeners if kept is not listener]
            if not self._listeners:
                if self._start_hook in self._callbacks:
                    self._callbacks.remove(self._start_hook)
                found = self._previous if found is self._guard_hook else found
                private.set_call_hook(None)
                self._guard_hook = None
                self._forget()
            private.set_guard_hook(found)

    def flush(self) -> None:
        """Report what has happened and was not reported yet."""
        with self._lock:
            if self._listeners:
                self._read_records()
                running = {thread.ident for thread in threading.enumerate()}
                running.discard(threading.get_ident())
                for thread in self._missed.keys() - running:  # another one may be about to compile
                    self._settle(thread)
                for thread, call in list(self._called.items()):
                    if not is_running(call, thread):
                        self._called.pop(thread, None)
                        self._note_eager(call, _SKIPPED)
                if self._start_hook not in self._callbacks:  # torch._dynamo.reset() was called
                    self._callbacks.append(self._start_hook)
                    for listener in self._listeners:
                        listener.resets_heard += 1

    def counts(self) -> dict[Region, tuple[int, int, int]]:
        """Hits, eager misses and hits without a graph of every region since the observer was installed."""
        with self._lock:
            self.flush()
            found = {}
            for region in self.regions:
                hits, past = region.hits(), self._disabled.get(id(region.owner()), 0)
                if past and (region.compiled or hits or region.empty):
                    self._tell_eager(region, "it was called under torch.compiler.disable")
                else:
                    past = 0
                found[region] = hits, region.eager + past, region.empty
            return found

    def _new_guard_hook(self, previous: private.GuardHook | None) -> private.GuardHook:
        def on_guard(hit: bool) -> bool:
            if previous is not None:
                hit = previous(hit)
            if self._guard_hook is not on_guard:  # an earlier watch's, which another's hook calls
                return hit
            frame = sys._getframe(1)
            self._called.pop(threading.get_ident(), None)
            owner = frame.f_locals.get("self")  # the quick way, for every call of a module
            region = self.regions.known.get(id(owner))
            if region is None or region.owner() is not owner:
                with self._lock:
                    region = self.regions.of(*private.callee(frame), frame)
            if self._missed or self._start_hook not in self._callbacks:
                self.flush()
            if not hit:
                with self._lock:
                    for listener in self._listeners:
                        listener.heard_on_stack(region, frame)
                    self._missed[threading.get_ident()] = (region, self._why_eager(region, frame))
            elif region.holds_graph and not region.is_function:
                region.hit()
            else:
                self._note_hit(region, frame)
            return hit

        return on_guard

    def _note_hit(self, region: Region, frame: FrameType) -> None:
        """Count a hit if the compiled code has a graph, and learn which modules a function reads."""
        with self._lock:
            try:
                call = private.called_from(frame)
                codes = [call.code] if call else private.resumed(frame.f_code, frame.f_globals)
                region.holds_graph |= private.holds_graph([code for code in codes if code])
                asking = [listener for listener in self._listeners if listener.asks(region)]
                modules = list(modules_read(call, call.values())) if asking and call else ()
                for listener in asking:
                    listener.heard_reads(region, modules)
            except Exception as error:  # the user's call must go on
                for listener in self._listeners:
                    listener.heard_problem(str(error))
            if region.holds_graph:
                region.hit()
            else:
                region.empty += 1

    def _on_call(self, frame: FrameType, looks: bool) -> None:
        thread = threading.get_ident()
        if self._start_hook not in self._callbacks:
            self.flush()
        if frame.f_code.co_name != "compile_wrapper":  # of torch.compiler.disable
            if (owner := called_whole(frame)) is not None:
                self._disabled[id(owner)] = self._disabled.get(id(owner), 0) + 1
            return
        if (before := self._called.pop(thread, None)) is not None:
            self._note_eager(before, _SKIPPED)
        if looks:
            self._called[thread] = frame
        else:
            self._note_eager(frame, f"torch.compiler.set_stance({private.stance()!r}) is in force")

    def _note_eager(self, call: FrameType, why: str) -> None:
        """Count a call of something compiled for which torch looked for no compiled code."""
        with self._lock:
            owner, code = private.callee(call)
            if owner is None and not takes_tensors(call):
                return  # torch leaves Python code without tensors alone
            region = self.regions.of(owner, code, call)
            region.eager += 1
            self._tell_eager(region, why)

    def _tell_eager(self, region: Region, why: str) -> None:
        for listener in self._listeners:
            listener.heard_eager(region, why)

    def _on_start(self, arguments: Any) -> None:
        with self._lock:
            if not self._listeners:
                return
            try:
                self._read_records()
                trigger = arguments.callback_trigger.name
                if trigger == "CUDAGRAPH_RECORDING":
                    for listener in self._listeners:
                        listener.cudagraphs_heard += 1
                elif trigger == "DYNAMO":
                    self._called.pop(threading.get_ident(), None)
                    self._missed.pop(threading.get_ident(), None)
                    self._note_start(str(arguments.compile_id))
            except Exception as error:  # the user's compile must go on
                for listener in self._listeners:
                    listener.heard_problem(str(error))

    def _note_start(self, compile_id: str) -> None:
        found = private.compiling(sys._getframe(2))
        if found is None:
            return
        caller, call, variants = found
        region = self.regions.of(*private.callee(caller), caller)
        for listener in self._listeners:
            listener.heard_on_stack(region, caller)
        self._unrecorded[compile_id] = (region, threading.get_ident())
        owner = region.owner()
        known = region.compiled or region.hits() > 0 or owner in self._met
        region.compiled = True
        reasons = nearest(variants, call)
        if owner is not None and not known and private.was_traced(owner) is False:
            reasons = _first_call(owner, reasons)
        broken = graph_break(call.code) if call.code else None
        broken_at = f"{broken[0]}, line {broken[1]}" if broken else ""
        self._starts[compile_id] = (region, reasons, broken_at)

    def _why_eager(self, region: Region, frame: FrameType) -> str:
        """Say why a miss will not be followed by a compile, where that is certain already."""
        try:
            stance, limits = private.stance(), private.recompile_limits()
            key = (region, stance)
            if key in self._why:  # explaining takes milliseconds, and every call may be a miss
                return self._why[key]
            call = private.called_from(frame)
            codes = [call.code] if call else private.resumed(frame.f_code, frame.f_globals)
            found = [private.variants(code) for code in codes if code is not None]
            variants = max(found, key=len, default=[])
            if stance != "default":
                cause = f"torch.compiler.set_stance({stance!r}) is in force"
            else:
                full = [f"{key}={n}" for key, n in limits.items() if len(variants) >= n]
                if not full:
                    return ""
                cause = f"its {len(variants)} compiled variants fill {full[0]}"
            reasons = nearest(variants, call) if call is not None else ()
            because = "; ".join(map(str, reasons))
        except Exception as error:  # the user's call must go on
            return f"no reason is known: {error}"
        self._why[key] = f"{cause}, and none fits: {because}" if because else cause
        return self._why[key]

    def _settle(self, thread: int) -> None:
        region, why = self._missed.pop(thread, (None, ""))
        if region is not None:
            region.eager += 1
            self._tell_eager(region, why)

    def _look_for_unfinished(self, listener: Listener, compiling: Mapping[int, FrameType]) -> None:
        for caller in compiling.values():
            region = self.regions.of(*private.callee(caller), caller)
            listener.heard_of_compile(
                region, "another thread was compiling it when the scope ended"
            )
        for region, thread in self._unrecorded.values():
            if thread not in compiling:
                listener.heard_of_compile(
                    region,
                    "torch kept no record of a compile: its compilation metrics were cleared or switched "
                    "off, so whether it was a recompile is not known",
                )

    def _look_for_ignored_hooks(self) -> None:
        for region in self.regions:
            if region.hits() and (owner := region.owner()) is not None:
                for module in ignored_hooks(owner):
                    for listener in self._listeners:
                        listener.heard_ignored_hook(region, module)

    def _read_records(self) -> None:
        records = reversed(private.compile_records())
        new = list(itertools.takewhile(lambda record: record is not self._last, records))
        self._last = new[0] if new else self._last
        for record in reversed(new):
            if not record.is_runtime:
                self._tell_compile(record)

    def _tell_compile(self, record: Any) -> None:
        raw = record.recompile_reason or ""
        self._unrecorded.pop(record.compile_id, None)
        if record.fail_type and record.co_name is None and raw:
            return  # the recompile limit: the miss that led to it is counted
        start = self._starts.get(record.compile_id)
        if start is None:
            start = (self.regions.of(None, record.co_name or "?", None), (), "")
        region, reasons, broken_at = start
        kind: Kind = "recompile" if raw or (record.cache_size or 0) > 0 else "first"
        if record.fail_type:
            kind, raw = "failed", f"{record.fail_type}: {record.fail_reason}"
        elif record.is_forward is False:
            kind = "backward"
        if kind != "recompile":
            reasons = ()
        elif raw and not reasons:
            reasons = (explain(Guarded.guess(raw)),)
        found = Compile("", reasons, raw, (record.duration_us or 0) / 1e6)
        for listener in self._listeners:
            listener.heard_compile(kind, region, found, broken_at)


def _first_call(owner: nn.Module, reasons: tuple[Reason, ...]) -> tuple[Reason, ...]:
    """Blame the other module whose code a module shares that is called for the first time."""
    if not reasons or any(reason.cause == "other model" for reason in reasons):
        return tuple(replace(reason, cause="other model") for reason in reasons)
    return (
        Reason(
            "other model",
            f"the first call of this {type(owner).__name__}, which shares its code with another one and "
            f"differs from it: {'; '.join(reason.message for reason in reasons)}",
            "warm up each model, or compile each with isolate_recompiles=True",
            raw=tuple(text for reason in reasons for text in reason.raw),
        ),
    )


OBSERVER = Observer()
