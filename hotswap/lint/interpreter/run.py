"""One run of a program on abstract values: the path that it is on, and what it asks of others."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.state import Frame, State, join, merge
from hotswap.lint.judge import Judge
from hotswap.lint.typestate import Deferred, Event, Facts, Kind

MOST_STEPS = 3_000
"""Statements that one way into the program may take, over all of its paths; its body may take more."""
GRAD_MODES = {"enable_grad": "grad", "inference_mode": "inference_mode", "no_grad": "no_grad"}
"""Functions of torch that set the gradient mode, by their last name."""
MOST_OF_BODY = 4_000
MOST_FOR_A_LINE = 16
"""Statements that all ways into a program may take together, for each of its lines."""
MOST_OF_SMALL = 5_000
MOST_OF_PROGRAM = 16_000


Callables: TypeAlias = "dict[type[Any], Callable[[Run, Any, v.Args], list[State]]]"
"""How each kind of value is called; a method of a model is a part of it."""


class TooLongError(Exception):
    """The program is larger than the budget; what is not analysed is not reported."""


class Matters(Protocol):
    """What a run need not do, for nothing about models comes of it."""

    def touches(self, node: ast.AST) -> bool:
        """Tell whether anything in the node's lines can matter."""

    def idle(self, node: ast.stmt) -> bool:
        """Tell whether a simple statement does nothing to a model, nor to what a step or condition needs."""

    def inert(self, node: ast.AST) -> bool:
        """Tell whether a statement does nothing to models, nor to what steps and conditions need."""

    def fills(self, name: str) -> bool:
        """Tell whether something is kept in what has that name, as an attribute or an element."""

    def negligible(self, node: ast.AST) -> bool:
        """Tell whether a function is inert, and too long to be run for what it returns."""


@dataclass(frozen=True, slots=True)
class Language:
    """What Python does, and what libraries do with models."""

    expressions: Mapping[type[ast.AST], Callable[[Run, Any], v.Value]]
    statements: Mapping[type[ast.AST], Callable[[Run, Any], list[State]]]
    callables: Callables
    make: Callable[[Run, str, v.Args], v.Value | None]
    """Create a model by the qualified name of its class; None for a class that makes none."""
    kind_with: Callable[[str, v.Args], Kind | None]
    """Say what something unknown is if that method of it is called."""
    kind_of: Callable[[str], Kind | None]
    """Say what kind of model a class makes, by its qualified name."""
    set_item: Callable[[Run, v.Part, ast.AST, v.Value], None]
    """Assign to an element of something inside a model."""


class Run:
    """Follows a program; ``s`` is the state of the path that is followed now."""

    def __init__(
        self,
        language: Language,
        judge: Judge,
        matters: Matters,
        folder: Path | None,
    ) -> None:
        self.s = State([])
        self.language, self.judge = language, judge
        self.matters, self.folder = matters, folder
        self.modules: list[Matters] = [matters]
        """What matters in each module of the program, by the frame of its names."""
        self.home = self.main = 0
        """The module whose code is running, and the one that is checked."""
        self.foreign: dict[ast.AST, int] = {}
        """Nodes of other modules than the one that is checked, and their modules."""
        self.bindings: dict[ast.AST, list[tuple[str, int, str]]] = {}
        """Import → the names that it binds, each to a module, or to a name in it."""
        self.turn: tuple[Any, ...] = ()
        """Which calls and which turns of loops are running: what is compared between paths."""
        self.steps = self.all_steps = 0
        self.most_steps = MOST_OF_PROGRAM
        self.executed: set[ast.AST] = set()
        self.running: list[tuple[ast.AST, v.Value | None]] = []
        """The functions that are running, each with what ``self`` is."""
        self.defined: list[list[v.Func]] = []
        """The functions that each running function has defined."""
        self.decorating = 0
        """Above 0 while decorators are applied: what they define is called instead of what they are given."""
        self.lambdas: list[v.Func] = []
        """The functions without a name that the bodies of modules have defined."""
        self.yielded: list[list[v.Value]] = []
        """What each running function has yielded."""
        self.memos: dict[Any, v.Value] = {}
        """What unknown things are made of: the same attribute of the same thing is the same."""
        self.cache: dict[Any, Any] = {}
        """What was found out about a node once and for all."""
        self._handed: set[Any] = set()
        self._ids = itertools.count(1)

    # -- Python ---------------------------------------------------------------------------------

    def ev(self, node: ast.expr | None) -> v.Value:
        """Evaluate an expression in the current state."""
        if node is None:
            return v.Const(None)
        handler = self.language.expressions.get(type(node))
        if handler is not None:
            value = handler(self, node)
            return self.known(value) if value.__class__ is v.Opaque else value
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
            forked = len(after) > len(live) or (len(live) > 1 and self.matters.touches(node))
            live = merge(after, self.fresh) if forked else after
            if not live:
                break
        return live + done

    def limit(self, lines: int) -> None:
        """Let the program take as many steps as are right for its length."""
        self.most_steps = min(max(MOST_FOR_A_LINE * lines, MOST_OF_SMALL), MOST_OF_PROGRAM)

    def give_up(self, node: ast.AST) -> None:
        """Note that something is too long, and that nothing of it is running any more."""
        if node not in self.foreign:
            self.judge.given_up.append(node)
        self.at(self.main)
        self.running.clear()
        self.defined.clear()
        self.yielded.clear()

    def statement(self, node: ast.stmt, state: State) -> list[State]:
        """Execute one statement."""
        self.steps += 1
        self.all_steps += 1
        most = MOST_STEPS if self.turn else MOST_OF_BODY
        if self.steps > most or self.all_steps > self.most_steps:
            raise TooLongError
        self.s = state
        handler = self.language.statements.get(type(node))
        return [state] if handler is None else handler(self, node)

    def invoke(self, func: v.Value, args: v.Args) -> list[State]:
        """Call a value; each outcome is a state with its ``result``."""
        func = self.known(func)
        return self.language.callables[type(func)](self, func, args)

    def invoke_one(self, func: v.Value, args: v.Args) -> v.Value:
        """Call a value, uniting the outcomes."""
        return self.united(self.invoke(func, args))

    def united(self, outcomes: list[State]) -> v.Value:
        """Unite the outcomes of a call; return its result."""
        self.s = join(outcomes, self.fresh)
        result, self.s.result = self.s.result, None
        return result if result is not None else v.Const(None)

    def done(self, value: v.Value | None) -> list[State]:
        """Return the current state with the result of a call."""
        self.s.result = value
        return [self.s]

    def define(self, func: v.Func) -> None:
        """Remember a function that the running one, or the body, has defined: somebody may call it later."""
        defined = self.defined[-1] if self.defined else self.lambdas
        if all(func.node is not other.node for other in defined):
            defined.append(func)

    def at(self, home: int) -> None:
        """Go on with the code of another module."""
        self.home, self.matters = home, self.modules[home]

    def here(self, node: ast.AST) -> None:
        """Remember in which module a node stands."""
        if self.home != self.main:
            self.foreign[node] = self.home

    # -- values ---------------------------------------------------------------------------------

    def fresh(self) -> v.Opaque:
        """Return something unknown that is like nothing else."""
        return v.Opaque(next(self._ids))

    def memo(self, key: Any) -> v.Value:
        """Return the value that the key stands for on this path, or an unknown one, always the same."""
        found = self.s.heap.get(key)
        if found is None:
            found = self.memos.get(key)
        if found is None:
            found = self.memos[key] = self.fresh()
            if isinstance(key, tuple) and key[0] in self._handed:
                self._handed.add(found.oid)
        return found

    def handed(self, name: str) -> v.Value:
        """Return what is given from outside under a name: the same for all functions of the module.

        What is kept in it stays there; whatever else it may be, each call is given another one.
        """
        value = self.memo(("handed", self.home, name))
        if isinstance(value, v.Opaque):
            self._handed.add(value.oid)
        return value

    def identity(self, value: v.Opaque) -> tuple[Any, ...]:
        """Return the key of what an unknown value has turned out to be."""
        return ("is", value.oid, *(self.turn[:2] if value.oid in self._handed else ()))

    def known(self, value: v.Value) -> v.Value:
        """Return what an unknown value has turned out to be."""
        if isinstance(value, v.Opaque):
            found = self.s.heap.get(self.identity(value))
            if isinstance(found, v.Obj):
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

    def new(self, kind: Kind, *, history_unknown: bool = False) -> v.Obj:
        """Create an object."""
        obj = v.Obj(next(self._ids))
        self.put(obj, Facts(kind=kind, open=history_unknown))
        return obj

    def facts(self, obj: v.Obj) -> Facts:
        """Return what is known of the object."""
        return self.s.models.get(obj.oid) or Facts(open=True)

    def put(self, obj: v.Obj, facts: Facts) -> None:
        """Replace what is known of the object."""
        self.s.know(obj.oid, facts)

    def emit(self, obj: v.Obj, event: Event) -> str | None:
        """Show a step to the judge; return the code of what is wrong with it, if anything is.

        A problem that depends on what comes next waits with the object.
        """
        state = self.s
        self.here(event.node)
        found = self.judge.look(obj.oid, event, self.turn, state.guards, muted=state.muted > 0)
        if found is None:
            return None
        facts = self.facts(obj)
        facts = replace(facts, told=facts.told | {found.code})
        if found.until == "now":
            self.judge.report(obj.oid, found)
        else:
            facts = replace(facts, deferred=(*facts.deferred, found))
        self.put(obj, facts)
        return found.code

    def flush(self, obj: v.Obj, until: Literal["run", "compile"]) -> None:
        """Report what waited for the model to run or to be compiled."""
        facts = self.facts(obj)
        if facts.deferred:
            left: list[Deferred] = []
            for wait in facts.deferred:
                if wait.until == until or (wait.until == "call" and until == "run"):
                    self.judge.report(obj.oid, wait)
                else:
                    left.append(wait)
            self.put(obj, replace(facts, deferred=tuple(left)))

    def finish(self, ends: list[State], *, last: bool = False) -> None:
        """Report what still waits for a run: models are there to be run, but for the ``last`` time."""
        for end in ends:
            self.s = end
            for oid, facts in list(end.models.items()):
                if last and facts.deferred:
                    left = tuple(d for d in facts.deferred if d.until != "call")
                    end.know(oid, replace(facts, deferred=left))
                if facts.deferred:
                    self.flush(v.Obj(oid), "run")
