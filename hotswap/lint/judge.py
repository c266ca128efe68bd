"""The judge: shows each step of a program to the rules, and keeps what they find."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import replace
from typing import Any, TypeAlias

from hotswap.lint.rules.rule import FINE, rules_on
from hotswap.lint.typestate import Deferred, Event, Problem

_MADE_GOOD_BY = {
    "HSW202": ("load",),
    "HSW205": ("prepare", "enable"),
    "HSW208": ("load",),
    "HSW209": ("load",),
}
"""What, done earlier, makes up for what a rule misses."""
_SAID_BY = {"HSW216": "HSW206", "HSW210": "HSW212"}
"""Rules that have nothing to add where another one has spoken."""
Turn: TypeAlias = tuple[Any, ...]
Place: TypeAlias = tuple[str, ast.AST, Turn]


class Judge:
    """Keeps what the rules say of every path until all paths are known."""

    def __init__(self, *, file_swaps: bool) -> None:
        self.file_swaps = file_swaps
        self.entries: set[ast.AST] = set()
        """The functions that are called from outside, in an order that is not known."""
        self.log: set[str] = set()
        """The kinds of steps since it was last cleared."""
        self._done: dict[ast.AST, set[tuple[str, int]]] = defaultdict(set)
        self._found: dict[Place, tuple[int, Problem]] = {}
        self._fine: set[Place] = set()
        self._swapping: set[int] = set()

    def look(self, oid: int, event: Event, turn: Turn, *, muted: bool) -> Deferred | None:
        """Show a step to the rules; keep what the first that objects says, or return it if it has to wait."""
        self.log.add(event.kind)
        if turn:
            self._done[turn[0]].add((event.kind, oid))
        if event.facts.intends_to_swap or event.kind in ("prepare", "enable", "swap"):
            self._swapping.add(oid)
        elif event.kind in ("load", "toggle"):
            elsewhere = oid in self._swapping
            event = replace(event, swaps_elsewhere=elsewhere, file_swaps=self.file_swaps)
        said: Deferred | None = None
        for rule in rules_on(event.kind):
            outcome = rule.check(event)
            if outcome is FINE:
                self._fine.add((rule.code, event.node, turn))
            elif isinstance(outcome, Problem) and said is None and not muted:
                where = outcome.where or event.node
                said = Deferred(rule.code, where, outcome, turn)
        if said is not None and said.until == "now":
            self.report(oid, said)
            return None
        return said

    def report(self, oid: int, found: Deferred) -> None:
        """Keep a problem."""
        self._found.setdefault((found.code, found.where, found.turn), (oid, found.problem))

    @property
    def problems(self) -> dict[tuple[str, ast.AST], Problem]:
        """What was found, except where another path of the same turn, or another entry, makes it good."""
        kept = {
            (code, where): problem
            for (code, where, turn), (oid, problem) in self._found.items()
            if (code, where, turn) not in self._fine and not self._made_good(code, turn, oid)
        }
        return {
            (code, where): problem
            for (code, where), problem in kept.items()
            if (_SAID_BY.get(code), where) not in kept
        }

    def _made_good(self, code: str, turn: Turn, oid: int) -> bool:
        """Tell whether a function that may have been called before does what is missing here."""
        missing = _MADE_GOOD_BY.get(code, ())
        return bool(turn) and any(
            (kind, oid) in self._done[entry]
            for entry in self.entries - {turn[0]}
            for kind in missing
        )
