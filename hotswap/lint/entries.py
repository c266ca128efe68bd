"""Entries: what is called from outside, in an order that the program does not show."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hotswap.lint.interpreter.functions import call_from_outside
from hotswap.lint.interpreter.run import Run, TooLongError
from hotswap.lint.interpreter.state import State, count_on
from hotswap.lint.interpreter.values import Func, Function, Obj, Opaque, Value
from hotswap.lint.judge import Found
from hotswap.lint.relevance import Feature, Relevance
from hotswap.lint.typestate import Ran

_STEPS: tuple[Feature, ...] = ("swap", "compile", "change", "run")
MOST_OPENERS = 5
_TEARS_DOWN = re.compile(
    r"^_*(a?(close|exit)|(clean|shut|tear)_?([uU]p|[dD]own)|del|destroy|dispose|finali[sz]e|release|stop)"
    r"(_|$|[A-Z])|_(shutdown|exit|close|stop)$"
)
"""Names of functions after which models are not called any more."""
_SETS_UP = ("create", "enable", "load", "prepare", "compile")
"""Steps that set a model up, in the order in which they have to be taken."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A call of an entry: the states after it, what it did, and what was wrong with it."""

    func: Func
    ends: list[State]
    did: frozenset[str]
    found: Found
    wrong: Found
    """What of that is told."""

    @property
    def clean(self) -> bool:
        """Whether the entry can be called in that state."""
        return not self.wrong and "absent" not in self.did

    @property
    def right(self) -> list[State]:
        """The states after it that nothing wrong has led to, if there are any."""
        codes = {code for code, *_ in self.found}
        right = [
            end for end in self.ends if all(f.told.isdisjoint(codes) for f in end.models.values())
        ]
        return right or self.ends

    @property
    def rank(self) -> int:
        """When the entry comes among those that set the model up."""
        return next(n for n, step in enumerate((*_SETS_UP, *self.did)) if step in self.did)


class Entries:
    """Calls what is called from outside on a run."""

    def __init__(self, run: Run, matters: Callable[[Function], Relevance]) -> None:
        self.run, self.judge, self.matters = run, run.judge, matters
        self._calls = 0
        self._did: dict[Function, frozenset[str]] = {}
        """What each entry did when it was called last."""
        self._called: list[Func] = []
        """What was called before the rest, as it sets models up."""

    def call(
        self, func: Func, paths: list[State], given: Mapping[Any, Value] | None = None
    ) -> list[State]:
        """Call a function on every path, with unknown arguments but for those given; return its ends."""
        self._called += [func] if given is None else []
        return self._attempt(func, paths, keep=True, given=given).ends

    def _attempt(
        self,
        func: Func,
        paths: list[State],
        *,
        keep: bool = False,
        given: Mapping[Any, Value] | None = None,
    ) -> Attempt:
        run, judge = self.run, self.judge
        self._calls += 1
        judge.log.clear()
        run.turn, run.steps = (func.node, self._calls), 0
        try:
            ends = call_from_outside(run, func, [state.copy() for state in paths], given)
            if not _tears_down(func):
                run.finish(ends)
        except TooLongError:
            run.give_up(func.node)
            ends = [state.copy() for state in paths]
        found = judge.take_back((func.node, self._calls))
        if keep:
            judge.keep(found)
        did = self._did[func.node] = frozenset(judge.log)
        wrong = {place: said for place, said in found.items() if not judge.rules_out(*said)}
        return Attempt(func, ends, did, found, wrong)

    def use(self, paths: list[State], functions: Sequence[Func]) -> None:
        """Call functions in every order that the program may have meant.

        First each on its own. Then, after those that set the model up, each of the rest: what is wrong then
        is wrong whatever ran before, unless it can be called earlier. What does not set up is called twice,
        as one request after another.
        """
        called, self._called = self._called, []
        compiled = any(f.compiled for state in paths for f in state.models.values())
        attempts = []
        for func in functions:
            if func.node not in self.run.executed and self.matters(func.node).touches(
                func.node, *_STEPS
            ):
                self.judge.entries.add(func.node)
                attempts.append(self._attempt(func, paths, keep=True))
        chain, states = self._open(paths, attempts)
        again = [a for a in attempts if a.func not in chain]
        if chain:
            again = [self._attempt(a.func, states[-1]) for a in again]
        elif not compiled:
            return
        for func in (*called, *chain):  # some set up on the first call only
            serves = {"load", "run"} <= self._did.get(func.node, frozenset())
            if serves or self.matters(func.node).touches(func.node, "swap"):
                later = self._attempt(func, states[-1])
                served = {"compile"} if "swap" in later.did else set()
                served |= {"load"} if "run" in later.did else set()
                if not later.did.intersection(_SETS_UP) - served:
                    self.judge.keep(later.found)
                elif later.clean:  # it sets up in steps
                    further = self._attempt(func, later.right)
                    if not further.did.intersection(_SETS_UP):
                        self.judge.keep(further.found)
        ran = {oid for a in again for s in a.ends for oid, facts in s.models.items() if facts.ran}
        used = [_after_a_run(state, ran) for state in states[-1]]
        for before in again:
            found = before.found if chain else {}
            if not before.did.intersection(_SETS_UP) - {"load"} and before.did - {"run"}:
                once = self._attempt(before.func, used)
                count_on(once.ends, used[0])
                twice = self._attempt(before.func, once.ends)
                found = found | once.found | twice.found
            if found and not (chain and self._can_come_earlier(before, chain, states)):
                self.judge.keep(found)

    def _open(
        self, paths: list[State], attempts: list[Attempt]
    ) -> tuple[list[Func], list[list[State]]]:
        """Call one after another what sets the model up; return what it was, and the states in between."""
        chain: list[Func] = []
        states = [paths]
        done: set[str] = set()
        rest = [
            a for a in attempts if a.did.intersection(_SETS_UP) and self._changes(paths, a.ends)
        ]
        for attempt in sorted(rest, key=lambda a: a.rank)[:MOST_OPENERS]:
            only_loads = not attempt.did.intersection(_SETS_UP) - {"load"}
            opened = attempt
            if only_loads and ("load" in done or "run" in attempt.did):
                if not attempt.clean or not self.matters(attempt.func.node).touches(
                    attempt.func.node, "compile"
                ):
                    continue
                opened = self._attempt(attempt.func, attempt.right)  # it sets up in steps
                if "compile" not in opened.did or chain:
                    continue
            elif chain:
                opened = self._attempt(attempt.func, states[-1])
            if opened.clean:
                chain.append(attempt.func)
                states.append(opened.right)
                done |= opened.did
        if done & {"enable", "prepare", "compile"}:
            return chain, states
        return [], [paths]

    def _changes(self, before: list[State], after: list[State]) -> bool:
        """Tell whether a call changed what outlasts it: a model, an attribute, a global name, an app."""
        start = before[0]
        for state in after:
            if any(state.models.get(oid) != facts for oid, facts in start.models.items()):
                return True
            new = [(key, value) for key, value in state.heap.items() if key not in start.heap]
            if any(key == "web app" or key[0] in start.models for key, _ in new):
                return True
            if self._is_kept({key[0] for key, value in new if isinstance(value, Obj)}, start):
                return True
            modules = zip(state.frames, start.frames, strict=True)
            if any(now.names != then.names for now, then in modules):
                return True
        return False

    def _is_kept(self, owners: set[object], start: State) -> bool:
        """Tell whether any of these is an attribute, at any depth, of what outlasts a call."""
        if not owners:
            return False
        memos = self.run.memos.items()
        made_of = {each.oid: key for key, each in memos if isinstance(each, Opaque)}
        values = (value for frame in start.frames for value in frame.names.values())
        names = {value.oid for value in values if hasattr(value, "oid")}
        for owner in owners:
            while owner in made_of and made_of[owner][0] not in ("global", "handed"):
                owner = made_of[owner][0]
            if owner in made_of or owner in names:
                return True
        return False

    def _can_come_earlier(
        self, attempt: Attempt, chain: list[Func], states: list[list[State]]
    ) -> bool:
        """Tell whether an entry is fine before the model is all set up, and the rest of that then too.

        What is no part of setting up also comes afterwards: a switch, a request that loads and runs.
        """
        if not attempt.did.intersection(_SETS_UP) or {"load", "run"} <= attempt.did:
            return False
        for number, paths in enumerate(states[:-1]):
            trial = self._attempt(attempt.func, paths)
            for func in chain[number:]:
                if trial.clean:
                    trial = self._attempt(func, trial.ends)
            if trial.clean:
                return True
        return False


def _tears_down(func: Func) -> bool:
    """Tell whether models are not called any more after a function, as its name or a decorator says."""
    marks = getattr(func.node, "decorator_list", [])
    parts = [part for mark in marks for part in ast.walk(mark)]
    words = [
        getattr(part, "value" if isinstance(part, ast.Constant) else "attr", "") for part in parts
    ]
    words += [getattr(func.node, "name", ""), *(p.id for p in parts if isinstance(p, ast.Name))]
    return any(isinstance(word, str) and _TEARS_DOWN.search(word) for word in words)


def _after_a_run(state: State, ran: set[int]) -> State:
    """Return the path on which the models have been called since they were compiled."""
    used = state.copy()
    for oid in ran:
        facts = used.models.get(oid)
        if facts and facts.compiled and not facts.ran:
            used.know(oid, replace(facts, ran=Ran(facts.compiled.where, None)))
    return used
