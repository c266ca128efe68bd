"""The judge: shows each step of a program to the rules, and keeps what they find."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from hotswap.lint.rules.rule import FINE, rules_on
from hotswap.lint.rules.swaps import other_name
from hotswap.lint.typestate import Deferred, Event, Guards, Problem

_MADE_GOOD_BY = {
    "HSW202": ("load",),
    "HSW205": ("prepare", "enable"),
    "HSW208": ("load",),
    "HSW209": ("load",),
}
"""What, done earlier, makes up for what a rule misses."""
_SETS_UP, _USES = {"prepare", "enable", "compile"}, {"load", "run", "swap", "toggle"}
_SAID_BY = {"HSW210": ("HSW212",), "HSW216": ("HSW206", "HSW209")}
"""Rules that have nothing to add where another one has spoken."""
_CAUSES = {
    "HSW205": frozenset({"HSW202", "HSW205", "HSW213"}),
    "HSW209": frozenset({"HSW202"}),
}
"""Problems of a model after which another has nothing to add: the cause is told once."""
Turn: TypeAlias = tuple[Any, ...]
Place: TypeAlias = tuple[str, ast.AST, Turn]
Done: TypeAlias = tuple[str, int, ast.AST, str | None, frozenset[tuple[ast.AST, bool, Turn]]]
"""A step: its kind, the model, where, the adapter's name, and the branches that it is behind."""
Found: TypeAlias = dict[Place, tuple[int, Deferred]]


class Judge:
    """Keeps what the rules say of every path until all paths are known."""

    def __init__(self, *, file_swaps: bool) -> None:
        self.file_swaps = file_swaps
        self.entries: set[ast.AST] = set()
        """The functions that are called from outside, in an order that is not known."""
        self.log: set[str] = set()
        """The kinds of steps since it was last cleared."""
        self.given_up: list[ast.AST] = []
        """What was too long to be followed."""
        self.steps = 0
        """How many steps there were that are more than a call of a model."""
        self._done: dict[ast.AST | None, set[Done]] = defaultdict(set)
        """What was done to each model, by the way into the program; with None, by the body."""
        self._under: dict[tuple[ast.AST, bool, int], set[str]] = defaultdict(set)
        """What was done to a model behind each branch of a condition that nobody could evaluate."""
        self._first: set[tuple[ast.AST, bool, int]] = set()
        """The branches that a model has gone through without an adapter."""
        self._first_loads: set[tuple[ast.AST, int]] = set()
        """The loads that were the first of a model."""
        self.decided: set[tuple[ast.AST, bool]] = set()
        """The branches of conditions that could be evaluated, once at least."""
        self._found: Found = {}
        self._fine: set[Place] = set()
        self._swapping: set[int] = set()

    def look(
        self, oid: int, event: Event, turn: Turn, guards: Guards, *, muted: bool
    ) -> Deferred | None:
        """Show a step to the rules; return what the first that objects says."""
        self.log.add(event.kind)
        self.steps += event.kind != "run"
        behind = frozenset((node, guard.branch, guard.turn) for node, guard in guards.items())
        done = (event.kind, oid, event.node, event.name, behind)
        self._done[turn[0] if turn else None].add(done)
        for node, guard in guards.items():
            self._under[node, guard.branch, oid].add(event.kind)
            if oid not in guard.loaded:
                self._first.add((node, guard.branch, oid))
        if event.facts.intends_to_swap or event.kind in ("prepare", "enable", "swap"):
            self._swapping.add(oid)
        elif event.kind in ("load", "toggle"):
            elsewhere = oid in self._swapping
            event = replace(event, swaps_elsewhere=elsewhere, file_swaps=self.file_swaps)
        if event.kind == "load" and not (event.facts.adapters or event.facts.removed):
            self._first_loads.add((event.node, oid))
        said: Deferred | None = None
        for rule in rules_on(event.kind):
            outcome = rule.check(event)
            if event.facts.told & _CAUSES.get(rule.code, frozenset()):
                continue
            if outcome is FINE:
                self._fine.add((rule.code, event.node, turn))
            elif isinstance(outcome, Problem) and said is None and not muted:
                where = outcome.where or event.node
                said = Deferred(rule.code, where, outcome, turn, guards, event.name)
        return said

    def report(self, oid: int, found: Deferred) -> None:
        """Keep a problem."""
        self._found.setdefault((found.code, found.where, found.turn), (oid, found))

    def take_back(self, turn: Turn) -> Found:
        """Take back what was found in a turn, and say what it was, without what is fine on another path."""
        taken = {place: said for place, said in self._found.items() if place[2][:2] == turn}
        self._found = {p: said for p, said in self._found.items() if p not in taken}
        return {place: said for place, said in taken.items() if place not in self._fine}

    def keep(self, found: Found) -> None:
        """Keep what was taken back."""
        self._found |= found

    @property
    def problems(self) -> dict[tuple[str, ast.AST], Problem]:
        """What was found, except where another path of the same turn, or another entry, makes it good."""
        kept = dict(
            self._named(found, oid)
            for (code, where, turn), (oid, found) in self._found.items()
            if (code, where, turn) not in self._fine
            and not self._made_good(found, oid)
            and not self.rules_out(oid, found)
        )
        told = {
            (code, where): problem
            for (code, where), problem in kept.items()
            if not any((other, where) in kept for other in _SAID_BY.get(code, ()))
        }
        for where in self.given_up[:1]:
            told["HSW200", where] = not_followed(self.given_up)
        return told

    def _made_good(self, found: Deferred, oid: int) -> bool:
        """Tell whether a function that may have been called before does what is missing here.

        Behind a condition that nobody could evaluate, anything in the program may do it,
        other than what was done before and does not help.
        """
        before = {node for node, _ in found.problem.related}
        missing = _MADE_GOOD_BY.get(found.code, ())
        return any(
            kind in missing and node not in before
            for kind, node, name in self._elsewhere(found, oid)
            if None in (name, found.name) or name == found.name
        )

    def _elsewhere(self, found: Deferred, oid: int) -> Iterator[tuple[str, ast.AST, str | None]]:
        """Yield what may have been done to the model before, on another path or by another entry."""
        entry = found.turn[0] if found.turn else None
        others = self._done.keys() if found.guards else self.entries - {entry} if entry else ()
        against = {(node, not g.branch, g.turn) for node, g in found.guards.items()}
        for other in others:
            for kind, of, node, name, behind in self._done[other]:
                if of == oid and behind.isdisjoint(against):
                    yield kind, node, name

    def _named(self, found: Deferred, oid: int) -> tuple[tuple[str, ast.AST], Problem]:
        """Return what is told of a problem: a first swap is of another name, if that is what is loaded."""
        loads = {n: node for kind, node, n in self._elsewhere(found, oid) if kind == "load" and n}
        if found.code == "HSW209" and found.name and loads:
            return ("HSW208", found.where), other_name((found.name,), loads)
        return (found.code, found.where), found.problem

    def rules_out(self, oid: int, found: Deferred) -> bool:
        """Tell whether a condition that nobody could evaluate rules out what the problem takes for granted.

        One branch loads and the other swaps, or only one sets the model up that the other uses: then the
        condition asks whether that was done, and of each branch only what agrees with it is believed. So it
        does if it could be evaluated at a first load, and cannot any more when the load is repeated.
        """
        first = (found.where, oid) in self._first_loads
        for node, guard in found.guards.items():
            if first and (node, guard.branch) in self.decided:
                return True
            here, there = (self._under[node, b, oid] for b in (guard.branch, not guard.branch))
            loaded = oid in guard.loaded
            if ("swap" in here and "load" in there - here and not loaded) or (
                "load" in here and "swap" in there - here and loaded
            ):
                return True
            sets_up = here & _SETS_UP and "swap" not in here
            sets_up = sets_up and there & _USES and not there & _SETS_UP
            if loaded and sets_up and (node, guard.branch, oid) in self._first:
                return True
        return False


def not_followed(nodes: list[ast.AST]) -> Problem:
    """Say what was given up, in one sentence for a program."""
    names = list(dict.fromkeys(f"{node.name}()" for node in nodes if hasattr(node, "name")))
    what = ", ".join(names[:3]) or "this"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Problem(
        f"{what}{more} is more than is followed: mistakes in it are not found",
        "split it into smaller functions",
    )
