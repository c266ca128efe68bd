"""One path through a program: the names that are bound, and every object with what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hotswap.lint.interpreter.values import (
    DENOISERS,
    AtLeast,
    Const,
    Dict,
    Func,
    Obj,
    Part,
    Partial,
    Ref,
    Seq,
    Value,
    whole_of,
)
from hotswap.lint.typestate import Facts, Guards, joined

MOST_PATHS = 4
_COMPILER = Ref("torch.compile")
Exit = Literal["return", "break", "continue", "raise"]


class Table(dict[Any, Any]):
    """A dictionary that paths share until one of them writes to it."""

    __slots__ = ("shared",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.shared = False


def _own(table: Table) -> Table:
    return Table(table) if table.shared else table


@dataclass(slots=True)
class Frame:
    """The names of one running function; ``parent`` is the frame in which it was defined."""

    parent: int
    names: Table = field(default_factory=Table)
    outer: dict[str, int] = field(default_factory=dict)
    """Names declared global or nonlocal, and the frame they live in."""
    home: int = 0
    """The frame of the module."""
    cell: Any = None
    """Where the names are kept when the function that is running has ended."""

    def copy(self) -> Frame:
        """Return a frame that shares the names until either is written to."""
        self.names.shared = True
        return Frame(self.parent, self.names, dict(self.outer), self.home, self.cell)

    def bind(self, name: str, value: Value) -> None:
        """Bind a name."""
        self.names = _own(self.names)
        self.names[name] = value


@dataclass(slots=True)
class State:
    """Everything that differs between two paths; copied when a path forks."""

    frames: list[Frame]
    models: Table = field(default_factory=Table)
    """Object → Facts. Read it; write with ``know``."""
    heap: Table = field(default_factory=Table)
    """(object, attribute) → value. Read it; write with ``put``."""
    assumed: dict[Any, bool] = field(default_factory=dict)
    grad: tuple[str | None, ...] = ()
    compiler: Any = None
    """Where the function that is running was compiled, if it was."""
    muted: int = 0
    """Above 0 inside ``pytest.raises`` and in exception handlers: nothing is reported."""
    guards: Guards = field(default_factory=dict)
    """The conditions that nobody could evaluate and that led onto this path; replaced, never written to."""
    exit: Exit | None = None
    result: Value | None = None

    def copy(self) -> State:
        """Return another path from here."""
        self.heap.shared = self.models.shared = True
        return State(
            [frame.copy() for frame in self.frames],
            self.models,
            self.heap,
            dict(self.assumed),
            self.grad,
            self.compiler,
            self.muted,
            self.guards,
            self.exit,
            self.result,
        )

    def snapshot(self) -> Table:
        """Return what is known of every model now; it stays as it is."""
        self.models.shared = True
        return self.models

    def know(self, oid: int, facts: Facts) -> None:
        """Replace what is known of an object."""
        self.models = _own(self.models)
        self.models[oid] = facts

    def put(self, key: Any, value: Any) -> None:
        """Store an attribute."""
        self.heap = _own(self.heap)
        self.heap[key] = value


def count_on(states: Iterable[State], before: State) -> bool:
    """Take the numbers that have grown since for counters that count further; tell whether there are any."""
    grown = False
    for state in states:
        for key, then, now in _differences(before.heap, state.heap):
            if (more := _further(then, now)) is not None:
                state.put(key, more)
                grown = True
        for frame, old in zip(state.frames, before.frames, strict=False):
            for name, then, now in _differences(old.names, frame.names):
                if (more := _further(then, now)) is not None:
                    frame.bind(name, more)
                    grown = True
    return grown


def _further(then: Value | None, now: Value | None) -> Value | None:
    if isinstance(then, Dict) and isinstance(now, Dict):
        more = {k: m for k, each in now.items.items() if (m := _further(then.items.get(k), each))}
        return Dict({**now.items, **more}) if more else None
    first, last = whole_of(then), whole_of(now)
    return AtLeast(last) if first is not None and last is not None and last > first else None


def reachable(state: State, kept: Iterable[Value | None]) -> set[int]:
    """Return the objects that something refers to: what is kept, names, and what is unknown."""
    found: set[int] = set()
    inside: dict[Any, list[Any]] = {}
    waiting: list[Any] = [*kept, *(each for frame in state.frames for each in frame.names.values())]
    for key, value in state.heap.items():
        if isinstance(key, tuple) and key[0] in state.models:
            inside.setdefault(key[0], []).append(value)
        else:
            waiting.append(value)
    while waiting:
        value = waiting.pop()
        if isinstance(value, Obj) and value.oid not in found:
            found.add(value.oid)
            waiting += inside.get(value.oid, [])
        elif isinstance(value, Part | Func):
            waiting.append(value.owner)
        elif isinstance(value, Seq):
            waiting += value.items
        elif isinstance(value, Dict):
            waiting += value.items.values()
        elif isinstance(value, Partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
    return found


def same_component(a: Value, b: Value) -> Value | None:
    """Return a name of a pipeline's denoiser if both are one: each pipeline has one of the two."""
    names = [
        each.value for each in (a, b) if isinstance(each, Const) and isinstance(each.value, str)
    ]
    return a if len(names) == 2 and DENOISERS.issuperset(names) else None


def merge(states: list[State], fresh: Any, *, most: int = MOST_PATHS) -> list[State]:
    """Unite paths on which the same is known of every object; beyond ``most`` paths unite more."""
    if len(states) < 2:
        return states
    kept: list[State] = []
    for state in states:
        for other in kept:
            if other.exit == state.exit and _alike(other, state, _twins(other, state)):
                _unite(other, state, fresh)
                break
        else:
            kept.append(state)
    while len(kept) > most:
        last = kept.pop()
        into = next((s for s in reversed(kept) if s.exit == last.exit), None)
        if into is None:
            return [*kept, last]
        _unite(into, last, fresh)
    return kept


def join(states: list[State], fresh: Any) -> State:
    """Unite all paths into one."""
    first, *others = states
    for other in others:
        _unite(first, other, fresh)
    return first


def _alike(a: State, b: State, twins: Mapping[int, int]) -> bool:
    if len(a.frames) != len(b.frames) or a.grad != b.grad or a.muted != b.muted:
        return False
    if any(a.models.get(x) != b.models.get(y) for x, y in twins.items()):
        return False
    known = {*twins, *twins.values()}
    models = _differences(a.models, b.models)
    if any(_matters(x, y) for oid, x, y in models if oid not in known):
        return False
    return not any(_differs(x, y) and not _is_twin(x, y, twins) for x, y in _values(a, b))


def _values(a: State, b: State) -> Iterator[tuple[Any, Any]]:
    """Yield the values of names and attributes that differ."""
    tables = [(a.heap, b.heap)]
    tables += [(f.names, g.names) for f, g in zip(a.frames, b.frames, strict=False)]
    for one, other in tables:
        yield from ((x, y) for _, x, y in _differences(one, other))


def _is_twin(a: Any, b: Any, twins: Mapping[int, int]) -> bool:
    return isinstance(a, Obj) and isinstance(b, Obj) and twins.get(a.oid) == b.oid


def _twins(a: State, b: State) -> dict[int, int]:
    """Return the objects that were made on one path in the place of those that were made on the other."""
    twins: dict[int, int] = {}
    waiting = [*_values(a, b)]
    while waiting:
        x, y = waiting.pop()
        if not isinstance(x, Obj) or not isinstance(y, Obj) or x.oid in twins:
            continue
        if x.oid not in b.models and y.oid not in a.models:
            twins[x.oid] = y.oid
            inside = [(key, part) for key, part in a.heap.items() if key[0] == x.oid]
            waiting += [(part, b.heap.get((y.oid, *key[1:]))) for key, part in inside]
    return twins


def _differences(a: Table, b: Table) -> list[tuple[Any, Any, Any]]:
    """Return the keys whose values differ, with both values; None where there is none."""
    if a is b:
        return []
    get = b.get
    found = [(k, v, other) for k, v in a.items() if (other := get(k)) is not v]
    if len(b) > len(a) - sum(other is None for _, _, other in found):
        found += [(k, None, b[k]) for k in b.keys() - a.keys()]
    return found


def _matters(a: Facts | None, b: Facts | None) -> bool:
    """Tell whether a difference matters: a model that exists on one path only may have nothing to it."""
    one = b if a is None else a
    if one is not None and (a is None or b is None):
        return bool(one.adapters or one.compiled or one.enabled)
    return a != b


def _differs(a: Value | None, b: Value | None) -> bool:
    both = a is not None and b is not None
    return both and (isinstance(a, Obj) or isinstance(b, Obj) or _COMPILER in (a, b)) and a != b


def _unite(into: State, other: State, fresh: Any) -> None:
    twins = _twins(into, other)
    for x, y in twins.items():
        into.know(x, joined(into.models[x], other.models[y]))
    for oid, x, y in _differences(into.models, other.models):
        into.know(oid, joined(x, y) if x and y else x or y)
    for key, a, b in _differences(into.heap, other.heap):
        if a != b:
            into.put(key, _united(a, b, fresh, twins))
    for frame, twin in zip(into.frames, other.frames, strict=False):
        for name, a, b in _differences(frame.names, twin.names):
            if a != b:
                frame.bind(name, _united(a, b, fresh, twins))
    into.guards = {k: g for k, g in into.guards.items() if other.guards.get(k) == g}
    into.assumed = {k: v for k, v in into.assumed.items() if other.assumed.get(k) == v}
    if into.result != other.result:
        into.result = _united(into.result, other.result, fresh, twins)


def _united(a: Any, b: Any, fresh: Any, twins: Mapping[int, int]) -> Any:
    if isinstance(a, Obj) and isinstance(b, Obj) and b.oid in (a.oid, twins.get(a.oid)):
        return Obj(a.oid, wrapped=a.oid != b.oid and a.wrapped and b.wrapped)
    if a is None or b is None:
        return b if a is None else a
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Ref) and other == Const(None):
            return one  # None in the place of what could not be imported is not used
    return same_component(a, b) or fresh()
