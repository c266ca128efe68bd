"""One run of a program on abstract values: the path that it is on, and what it asks of others."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from hotswap.lint.interpreter.state import Frame, State, join, merge
from hotswap.lint.interpreter.values import Args, Const, Func, Obj, Opaque, Part, Value
from hotswap.lint.judge import Judge
from hotswap.lint.typestate import Deferred, Event, Facts, Kind

MOST_STEPS = 1500
"""Statements that one way into the program may take, over all of its paths; its body may take more."""
MOST_OF_BODY = 10_000


class TooLongError(Exception):
    """The program is larger than the budget; what is not analysed is not reported."""


class Library(Protocol):
    """What a run asks about code that is not in the program; None for what does nothing that matters."""

    def function(self, run: Run, name: str, args: Args) -> Value | None:
        """Call something imported, by its qualified name."""

    def method(self, run: Run, obj: Obj, name: str, args: Args) -> Value | None:
        """Call a method of a model."""

    def method_inside(self, run: Run, part: Part, args: Args) -> Value | None:
        """Call something inside a model."""

    def call(self, run: Run, obj: Obj, node: ast.AST) -> None:
        """Call a model itself."""

    def make(self, run: Run, name: str, args: Args) -> Value | None:
        """Create an object of a class, by its qualified name."""

    def kind_with(self, name: str, args: Args) -> Kind | None:
        """Say what something unknown is if that method of it is called."""

    def set_item(self, run: Run, part: Part, node: ast.AST, value: Value) -> None:
        """Assign to an element of something inside a model."""


@dataclass(frozen=True, slots=True)
class Language:
    """What each kind of expression, of statement and of called value does."""

    expressions: Mapping[type[ast.AST], Callable[[Run, Any], Value]]
    statements: Mapping[type[ast.AST], Callable[[Run, Any], list[State]]]
    callables: Mapping[type[Any], Callable[[Run, Any, Args], list[State]]]


class Run:
    """Follows a program; ``s`` is the state of the path that is followed now."""

    def __init__(
        self,
        language: Language,
        library: Library,
        judge: Judge,
        matters: Callable[[ast.AST], bool],
        folder: Path | None,
    ) -> None:
        self.s = State([])
        self.language, self.library, self.judge = language, library, judge
        self.matters, self.folder = matters, folder
        self.turn: tuple[Any, ...] = ()
        """Which calls and which turns of loops are running: what is compared between paths."""
        self.steps = 0
        self.executed: set[ast.AST] = set()
        self.running: list[tuple[ast.AST, Value | None]] = []
        """The functions that are running, each with what ``self`` is."""
        self.defined: list[list[Func]] = []
        """The functions that each running function has defined."""
        self.memos: dict[Any, Value] = {}
        """What unknown things are made of: the same attribute of the same thing is the same."""
        self.cache: dict[Any, Any] = {}
        """What was found out about a node once and for all."""
        self._ids = itertools.count(1)

    # -- Python ---------------------------------------------------------------------------------

    def ev(self, node: ast.expr | None) -> Value:
        """Evaluate an expression in the current state."""
        if node is None:
            return Const(None)
        handler = self.language.expressions.get(type(node))
        if handler is not None:
            return self.known(handler(self, node))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.ev(child)
        return self.fresh()

    def block(self, nodes: Sequence[ast.stmt], state: State) -> list[State]:
        """Execute statements; return the states in which they end, on every path."""
        live, done = [state], list[State]()
        for node in nodes:
            after: list[State] = []
            for one in live:
                for end in self.statement(node, one):
                    (done if end.exit else after).append(end)
            live = merge(after, self.fresh)
            if not live:
                break
        return live + done

    def statement(self, node: ast.stmt, state: State) -> list[State]:
        """Execute one statement."""
        self.steps += 1
        if self.steps > (MOST_STEPS if self.turn else MOST_OF_BODY):
            raise TooLongError
        self.s = state
        handler = self.language.statements.get(type(node))
        return [state] if handler is None else handler(self, node)

    def invoke(self, func: Value, args: Args) -> list[State]:
        """Call a value; each outcome is a state with its ``result``."""
        func = self.known(func)
        return self.language.callables[type(func)](self, func, args)

    def invoke_one(self, func: Value, args: Args) -> Value:
        """Call a value, uniting the outcomes."""
        return self.united(self.invoke(func, args))

    def united(self, outcomes: list[State]) -> Value:
        """Unite the outcomes of a call; return its result."""
        self.s = join(outcomes, self.fresh)
        result, self.s.result = self.s.result, None
        return result if result is not None else Const(None)

    def done(self, value: Value | None) -> list[State]:
        """Return the current state with the result of a call."""
        self.s.result = value
        return [self.s]

    # -- values ---------------------------------------------------------------------------------

    def fresh(self) -> Opaque:
        """Return something unknown that is like nothing else."""
        return Opaque(next(self._ids))

    def memo(self, key: Any) -> Value:
        """Return the value that the key stands for on this path, or an unknown one, always the same."""
        found = self.s.heap.get(key)
        if found is None:
            found = self.memos.get(key)
        if found is None:
            found = self.memos[key] = self.fresh()
        return found

    def known(self, value: Value) -> Value:
        """Return what an unknown value has turned out to be."""
        if isinstance(value, Opaque):
            found = self.s.heap.get(("is", value.oid))
            if isinstance(found, Obj):
                return found
        return value

    def frame_of(self, name: str) -> Frame | None:
        """Return the frame in which the running function finds the name."""
        frame = self.s.frames[-1]
        if name in frame.outer:
            frame = self.s.frames[frame.outer[name]]
        while name not in frame.names:
            if frame.parent < 0:
                return None
            frame = self.s.frames[frame.parent]
        return frame

    @property
    def grad(self) -> str | None:
        """The gradient mode on this path."""
        return self.s.grad[-1] if self.s.grad else None

    # -- models ---------------------------------------------------------------------------------

    def new(self, kind: Kind, *, history_unknown: bool = False) -> Obj:
        """Create an object."""
        obj = Obj(next(self._ids))
        self.put(obj, Facts(kind=kind, open=history_unknown))
        return obj

    def facts(self, obj: Obj) -> Facts:
        """Return what is known of the object."""
        found = self.s.heap.get(obj.oid)
        return found if isinstance(found, Facts) else Facts(open=True)

    def put(self, obj: Obj, facts: Facts) -> None:
        """Replace what is known of the object."""
        self.s.put(obj.oid, facts)

    def emit(self, obj: Obj, event: Event) -> None:
        """Show a step to the judge; a problem that depends on what comes next waits with the object."""
        found = self.judge.look(obj.oid, event, self.turn, muted=bool(self.s.muted))
        if found is not None:
            facts = self.facts(obj)
            self.put(obj, replace(facts, deferred=(*facts.deferred, found)))

    def flush(self, obj: Obj, until: Literal["run", "compile"]) -> None:
        """Report what waited for the model to run or to be compiled."""
        facts = self.facts(obj)
        if facts.deferred:
            left: list[Deferred] = []
            for wait in facts.deferred:
                if wait.until == until:
                    self.judge.report(obj.oid, wait)
                else:
                    left.append(wait)
            self.put(obj, replace(facts, deferred=tuple(left)))

    def finish(self, ends: list[State]) -> None:
        """Report what still waits for a run: the model is there to be run."""
        for end in ends:
            self.s = end
            for oid, facts in list(end.heap.items()):
                if isinstance(facts, Facts) and facts.deferred:
                    self.flush(Obj(oid), "run")
