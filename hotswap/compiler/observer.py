"""The process-wide observer, and the listeners that it tells. PYTEST_DONT_REWRITE

It chains into torch's guard hook (a hit or a miss at every compiled frame), is told when a compile
starts, and reads torch's compile records; a miss that is followed by no compile ran eagerly. It
touches no stance, config, logger or counter, and leaves nothing installed.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Literal
from weakref import WeakSet

from torch import nn

from hotswap.compiler import private
from hotswap.compiler.compiled import ignored_hooks
from hotswap.compiler.guards import modules_read, nearest
from hotswap.compiler.reasons import Cause, Reason
from hotswap.compiler.regions import Names, Place, Region, Regions, graph_break
from hotswap.compiler.rules import Guarded, explain

Kind = Literal["first", "recompile", "backward", "failed"]


@dataclass(frozen=True, slots=True)
class Compile:
    """One compile: the region, why its compiled code did not fit, torch's own words, seconds."""

    region: str
    reasons: tuple[Reason, ...]
    raw: str
    seconds: float

    @property
    def cause(self) -> Cause | Literal[""]:
        """Whose fault it is: the worst cause of all reasons; empty for a first compile."""
        return self.reasons[0].cause if self.reasons else ""

    @property
    def sentence(self) -> str:
        """What changed and what to do, for every reason."""
        return "; also ".join(str(reason) for reason in self.reasons)

    @property
    def swapped(self) -> bool:
        """Whether a swap is to blame, or nobody knows."""
        return self.cause in {"swap", "unknown"}

    def __str__(self) -> str:
        return f"{self.region}: {self.sentence}" if self.sentence else self.region


class Listener:
    """What was heard; regions that have nothing to do with the models are left out."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._places: dict[Region, Place | None] = {}
        self._compiles: defaultdict[Kind, list[Compile]] = defaultdict(list)
        self._why: dict[str, str] = {}
        self._graph_breaks: dict[str, None] = {}
        self._problems: dict[str, None] = {}
        self.cudagraphs_heard = 0
        self.resets_heard = 0

    def heard_compile(self, kind: Kind, region: Region, found: Compile, broken_at: str) -> None:
        """Write down a compile that ended, its region and modules as the watch names them."""
        if (place := self._place(region)) is None:
            return
        reasons = tuple(reason.inside(place.prefix) for reason in found.reasons)
        self._compiles[kind].append(replace(found, region=place.label, reasons=reasons))
        if broken_at:
            self._graph_breaks[f"{place.label}: the graph breaks in {broken_at}"] = None

    def heard_eager(self, region: Region, why: str) -> None:
        """Note why a call missed every variant and ran eagerly."""
        if why and (place := self._place(region)) is not None:
            self._why[place.label] = why

    def heard_ignored_hook(self, region: Region, module: str) -> None:
        """Write down a module inside the region whose forward hook compiled code does not call."""
        if (place := self._place(region)) is not None:
            self.heard_problem(
                f"{place.prefix}{module}: a forward hook was added after torch.compile, and compiled "
                "code never calls it; add it before torch.compile"
            )

    def heard_problem(self, text: str) -> None:
        """Write down what cannot be observed."""
        self._problems[text] = None

    def close(self) -> None:
        """Let go of the models: nothing more will be heard, and what was counted will be forgotten."""
        self._names = Names((), {})

    def _place(self, region: Region) -> Place | None:
        if region not in self._places:
            place, owner = self._names.of(region), region.owner()
            if place is None and owner is not None and self._names.any_of(modules_read(owner)):
                place = region.place
            self._places[region] = place
        return self._places[region]


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
        self._missed: dict[int, tuple[Region, str]] = {}  # by thread
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
                self._guard_hook = self._new_guard_hook(self._previous)
                private.set_guard_hook(self._guard_hook)
                self._callbacks.append(self._start_hook)
            self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Stop telling a listener; uninstall if it was the last."""
        with self._lock:
            self.flush()
            for thread in list(self._missed):
                self._settle(thread)
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
                if self._start_hook not in self._callbacks:  # torch._dynamo.reset() was called
                    self._callbacks.append(self._start_hook)
                    for listener in self._listeners:
                        listener.resets_heard += 1

    def counts(self) -> dict[Region, tuple[int, int]]:
        """Hits and eager misses of every region since the observer was installed."""
        with self._lock:
            self.flush()
            return {region: (region.hits(), region.eager) for region in self.regions}

    def _new_guard_hook(self, previous: private.GuardHook | None) -> private.GuardHook:
        def on_guard(hit: bool) -> bool:
            if previous is not None:
                hit = previous(hit)
            if self._guard_hook is not on_guard:  # an earlier watch's, which another's hook calls
                return hit
            frame = sys._getframe(1)
            owner = frame.f_locals.get("self")  # the quick way, for every call of a module
            region = self.regions.known.get(id(owner))
            if region is None or region.owner() is not owner:
                with self._lock:
                    region = self.regions.of(*private.callee(frame), frame)
            if self._missed or self._start_hook not in self._callbacks:
                self.flush()
            if hit:
                region.hit()
            else:
                with self._lock:
                    self._missed[threading.get_ident()] = (region, self._why_eager(region, frame))
            return hit

        return on_guard

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
            stance, limit = private.stance(), private.recompile_limit()
            key = (region, stance)
            if key in self._why:  # explaining takes milliseconds, and every call may be a miss
                return self._why[key]
            call = private.called_from(frame)
            codes = [call.code] if call else private.resumed(frame.f_code, frame.f_globals)
            found = [private.variants(code) for code in codes if code is not None]
            variants = max(found, key=len, default=[])
            if stance != "default":
                cause = f"torch.compiler.set_stance({stance!r}) is in force"
            elif len(variants) >= limit:
                cause = f"its {len(variants)} compiled variants fill recompile_limit={limit}"
            else:
                return ""
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
            for listener in self._listeners:
                listener.heard_eager(region, why)

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
