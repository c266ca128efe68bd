"""What is known about one model: adapters loaded, prepared, compiled, run, swapped, merged.

A fact that is absent is certain only while the model is not ``open``: an open model has a history that
the file does not show, so nothing is concluded from what was not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

Node: TypeAlias = ast.AST
Kind = Literal["pipeline", "component", "transformers", "peft", "module", "instance", "unknown"]
How = Literal["wrapper", "in place", "forward", "blocks", "function"]
Step = Literal["prepare", "enable", "load", "swap", "compile", "run", "toggle", "scale", "package"]
Until = Literal["now", "run", "call", "compile"]
"""When something is a problem: a program that ends there lets models ``run``, but does not ``call`` them."""
Guards: TypeAlias = "Mapping[Node, Guard]"
By = Literal["peft", "diffusers", "transformers", "hotswap"]


@dataclass(frozen=True, slots=True)
class Guard:
    """A branch that was taken although its condition is unknown, and which models had adapters then."""

    branch: bool
    loaded: frozenset[int]
    turn: tuple[Any, ...] = ()
    """When it was taken: at one time, only one of the two branches is."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preparation: up to which rank (None: ranks stay or are unknown), where, and by whose function."""

    rank: int | None
    where: Node
    by: By
    strict: bool = True
    """Whether a compiled or loaded model is refused (``check_compiled="error"``)."""
    drawn_from: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """Rank and alpha of an adapter, each None if unknown; the same ``origin`` means the same config."""

    rank: int | None = None
    alpha: float | None = None
    origin: Any = None

    def seems(self, other: Shape) -> bool:
        """Tell whether all that is known of the two is equal, and their ranks are known."""
        if self.origin is not None and self.origin == other.origin:
            return True
        known = self.rank is not None and self.rank == other.rank
        return known and (None in (self.alpha, other.alpha) or self.alpha == other.alpha)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One loaded adapter; ``name`` is None if it is not known."""

    name: str | None
    where: Node
    shape: Shape = Shape()
    prepared: Prepared | None = None
    token: Any = None
    """What identifies a name that is not known."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Where and how the model was compiled."""

    where: Node
    how: How


@dataclass(frozen=True, slots=True)
class Ran:
    """The first call since the model was compiled, and the gradient mode of that call."""

    where: Node
    grad: str | None


@dataclass(frozen=True, slots=True)
class Deferred:
    """A problem that becomes one only if the model ``runs``, or is ``compiled``, afterwards."""

    code: str
    where: Node
    problem: Problem
    turn: tuple[Any, ...]
    guards: Guards = field(compare=False)
    name: str | None = None
    """The name of the adapter that the step is about, if it is known."""

    @property
    def until(self) -> Until:
        """What makes it one."""
        return self.problem.until


@dataclass(frozen=True, slots=True)
class Problem:
    """What a rule found; ``related`` are places that explain it."""

    message: str
    remedy: str
    related: tuple[tuple[Node, str], ...] = ()
    where: Node | None = None
    until: Until = "now"


@dataclass(frozen=True, slots=True)
class Facts:
    """The state of one model on one path."""

    kind: Kind = "unknown"
    open: bool = False
    adapters: tuple[Adapter, ...] = ()
    active: tuple[str | None, ...] = ()
    enabled: Prepared | None = None
    auto_swap: bool = False
    compiled: Compiled | None = None
    ran: Ran | None = None
    merged: Node | None = None
    swapped: Node | None = None
    removed: Adapter | None = None
    """An adapter that was removed; its preparation went with it."""
    told: frozenset[str] = frozenset()
    """The codes of what was found to be wrong with the model on this path."""
    deferred: tuple[Deferred, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the adapters; None unless every one of them is known."""
        names = tuple(a.name for a in self.adapters if a.name is not None)
        return None if self.open or len(names) < len(self.adapters) else names

    @property
    def prepared(self) -> Prepared | None:
        """The preparation of the adapters that are loaded."""
        return next((a.prepared for a in self.adapters if a.prepared), None)

    @property
    def intends_to_swap(self) -> bool:
        """Whether anything was done to the model that only hot-swapping needs."""
        undone = self.removed is not None and self.removed.prepared
        return bool(self.enabled or self.prepared or self.swapped or undone)

    def adapter(self, name: str | None) -> Adapter | None:
        """Return the adapter of that name; with None, the only one there is."""
        if name is None:
            return self.adapters[0] if len(self.adapters) == 1 else None
        return next((a for a in self.adapters if a.name == name), None)

    def named(self, name: str | None, token: Any) -> Adapter | None:
        """Return the adapter that has the name, known or not."""
        if name is not None:
            return self.adapter(name)
        return next((a for a in self.adapters if token is not None and a.token == token), None)


def loaded(facts: Facts, adapter: Adapter) -> Facts:
    """Load an adapter; diffusers and transformers activate it, and prepare it if that was enabled.

    What was removed before is replaced: that the set of adapters changed is told here, if at all.
    """
    if facts.enabled is not None:
        adapter = replace(adapter, prepared=facts.enabled)
    others = tuple(a for a in facts.adapters if a.name != adapter.name or a.name is None)
    active = facts.active if facts.kind == "peft" and facts.active else (adapter.name,)
    deferred = facts.deferred
    if facts.removed:
        deferred = tuple(d for d in deferred if d.code != "HSW212")
    adapters = (*others, adapter)
    return replace(facts, adapters=adapters, active=active, enabled=None, deferred=deferred)


def prepared(facts: Facts, by: Prepared) -> Facts:
    """Prepare every loaded adapter."""
    return replace(facts, adapters=tuple(replace(a, prepared=by) for a in facts.adapters))


def unless_run(facts: Facts) -> tuple[Deferred, ...]:
    """Return what is a problem even if the model does not run as it is."""
    return tuple(d for d in facts.deferred if d.until not in ("run", "call"))


def unloaded(facts: Facts, names: tuple[str | None, ...] | None = None) -> Facts:
    """Remove adapters, with None all of them; if their weights were fused, the model stays usable."""
    kept = () if names is None else tuple(a for a in facts.adapters if a.name not in names)
    deferred = facts.deferred if kept else unless_run(facts)
    active = tuple(a.name for a in kept if a.name in facts.active)
    merged = facts.merged if kept else None
    gone = [*(a for a in facts.adapters if a not in kept), facts.removed, None]
    removed = next((a for a in gone if a and a.prepared), gone[0])
    return replace(
        facts, adapters=kept, active=active, deferred=deferred, merged=merged, removed=removed
    )


def swapped(facts: Facts, name: str | None, where: Node) -> Facts:
    """Swap an adapter in; where that raises, go on as if the mistake were mended."""
    if not facts.adapters and (facts.removed or not facts.open):
        facts = loaded(facts, facts.removed or Adapter(name, where))
    return replace(facts, swapped=where, merged=None)


def compiled(facts: Facts, how: Compiled) -> Facts:
    """Compile, or compile anew: what would have recompiled is compiled on purpose now."""
    deferred = unless_run(facts)
    return replace(facts, compiled=how, ran=None, deferred=deferred)


def opened(facts: Facts) -> Facts:
    """Let code that is not in this file have done anything to the model."""
    return replace(facts, open=True)


def joined(a: Facts, b: Facts) -> Facts:
    """Keep what holds on both paths; the rest becomes unknown."""
    if a == b:
        return a
    return Facts(
        kind=a.kind if a.kind == b.kind else "unknown",
        open=True,
        adapters=tuple(x for x in a.adapters if x in b.adapters),
        active=a.active if a.active == b.active else (),
        compiled=a.compiled if b.compiled else None,
        ran=a.ran if b.ran else None,
        merged=a.merged if b.merged else None,
        swapped=a.swapped or b.swapped,
        removed=a.removed or b.removed,
        told=a.told | b.told,
        auto_swap=a.auto_swap and b.auto_swap,
        enabled=a.enabled if b.enabled else None,
        deferred=tuple(d for d in a.deferred if d in b.deferred),
    )


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that is done to a model, with what was known just before."""

    kind: Step
    node: Node
    facts: Facts
    api: str
    wrapped: bool = False
    name: str | None = None
    """The adapter's name: a constant, or None if it is not given or not known."""
    named: bool | None = False
    """Whether a name is given; None if that is unknown."""
    hotswap: bool | None = False
    shape: Shape = Shape()
    prepared: Prepared | None = None
    token: Any = None
    among: tuple[str, ...] = ()
    """The names of which the adapter's is one, if that is all that is known of it."""
    names: tuple[str | None, ...] | None = None
    value: str = ""
    swaps_elsewhere: bool = False
    """Whether the model was prepared or swapped on a path that was run before."""
    file_swaps: bool = False
    """Whether anything in the file hot-swaps."""
    keeps: bool | None = False
    """Whether a package keeps its constants apart; None if that is unknown."""
    grad: str | None = None
