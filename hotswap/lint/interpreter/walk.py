"""Run a program on abstract values: statements, branches and loops, on every path."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hotswap.lint.interpreter.calls import Caller
from hotswap.lint.interpreter.evaluate import TooLongError
from hotswap.lint.interpreter.names import imported
from hotswap.lint.interpreter.objects import last_name
from hotswap.lint.interpreter.relevance import Relevance
from hotswap.lint.interpreter.state import State, merge
from hotswap.lint.interpreter.values import (
    Class,
    Const,
    Dict,
    Func,
    GradMode,
    Obj,
    Opaque,
    Part,
    Ref,
    Seq,
    Value,
    key_of,
)

MOST_STEPS = 1500
"""Statements that one way into the program may take, over all of its paths; its body may take more."""
MOST_TURNS = 8
MOST_OF_BODY = 10_000
_RAISES = frozenset(
    {"raises", "assertRaises", "assertRaisesRegex", "assertWarns", "warns", "assertWarnsRegex"}
)
_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
_EXITS = (
    ast.Return,
    ast.Raise,
    ast.Break,
    ast.Continue,
    ast.FunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
)


class Walker(Caller):
    """Executes statements on every path."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.steps = 0
        self.matters: Relevance | None = None
        """Set before anything runs: what the program has that can matter."""
        self._stored: dict[ast.stmt, list[ast.Name | ast.Attribute] | None] = {}

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
        handler = _STATEMENTS.get(type(node))
        if handler is None:
            return [state]
        if isinstance(node, _BLOCKS) and self._passes_by(node):
            return [state]
        return handler(self, node)

    def may_matter(self, node: ast.AST) -> bool:
        """Tell whether anything in the node's lines can matter."""
        return self.matters is None or self.matters.touches(node)

    def _passes_by(self, node: ast.stmt) -> bool:
        """Pass by a block that neither leaves nor does anything that matters; what it assigns is unknown."""
        if self.may_matter(node):
            return False
        if node not in self._stored:
            inside = list(ast.walk(node))
            self._stored[node] = (
                None
                if any(isinstance(n, _EXITS) for n in inside)
                else [
                    n
                    for n in inside
                    if isinstance(n, ast.Name | ast.Attribute) and isinstance(n.ctx, ast.Store)
                ]
            )
        stored = self._stored[node]
        for target in stored or ():
            self.assign(target, self.fresh())
        return stored is not None

    def _expression(self, node: ast.Expr) -> list[State]:
        if isinstance(node.value, ast.Constant):
            return [self.s]
        return [after for after, _ in self.outcomes(node.value)]

    def outcomes(self, node: ast.expr | None) -> list[tuple[State, Value]]:
        """Evaluate an expression; a call of the file's own functions can have several outcomes."""
        while isinstance(node, ast.Await):
            node = node.value
        if isinstance(node, ast.IfExp):
            return self._either(node)
        if not isinstance(node, ast.Call):
            value = self.ev(node)
            return [(self.s, value)]
        results = []
        for state in self.calls(node):
            returned, state.result = state.result, None
            known = Const(None) if returned is None else self._known_in(state, returned)
            results.append((state, known))
        return results

    def _either(self, node: ast.IfExp) -> list[tuple[State, Value]]:
        holds = self.test(node.test)
        if holds is not None:
            return self.outcomes(node.body if holds else node.orelse)
        other = self.s.copy()
        self.assume(node.test, True)
        first = self.outcomes(node.body)
        self.s = other
        self.assume(node.test, False)
        return first + self.outcomes(node.orelse)

    def _known_in(self, state: State, value: Value) -> Value:
        self.s = state
        return self.known(value)

    def _assign(self, node: ast.Assign) -> list[State]:
        ends = []
        for state, value in self.outcomes(node.value):
            self.s = state
            for target in node.targets:
                self.assign(target, value)
            ends.append(self.s)
        return ends

    def _annotated(self, node: ast.AnnAssign) -> list[State]:
        if node.value is None:
            return [self.s]
        ends = []
        for state, value in self.outcomes(node.value):
            self.s = state
            self.assign(node.target, value)
            ends.append(self.s)
        return ends

    def _augmented(self, node: ast.AugAssign) -> list[State]:
        operation = ast.BinOp(node.target, node.op, node.value)
        result = self.ev(ast.copy_location(operation, node))
        if isinstance(node.target, ast.Name | ast.Attribute):
            self.assign(node.target, result)
        return [self.s]

    def assign(self, target: ast.expr, value: Value) -> None:
        """Bind a name, an attribute, an element, or each of several targets."""
        if isinstance(target, ast.Name):
            frame = self.s.frames[-1]
            if target.id in frame.outer:
                frame = self.s.frames[frame.outer[target.id]]
            frame.bind(target.id, value)
        elif isinstance(target, ast.Attribute):
            self._assign_attribute(target, value)
        elif isinstance(target, ast.Subscript):
            self._assign_element(target, value)
        elif isinstance(target, ast.Tuple | ast.List):
            self._unpack(target.elts, value)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, self.fresh())

    def _assign_attribute(self, target: ast.Attribute, value: Value) -> None:
        owner = self.ev(target.value)
        if (
            isinstance(owner, Opaque)
            and target.attr in ("unet", "transformer")
            and isinstance(value, Obj)
        ):
            owner = self.become(owner, "pipeline") or owner
        if isinstance(owner, Obj):
            name = target.attr
            if self.facts(owner).kind == "pipeline" and name in ("unet", "transformer"):
                name = "denoiser"
            self.s.put((owner.oid, name), value)
        elif isinstance(owner, Opaque | Class):
            self.s.put((owner.oid, target.attr), value)

    def _assign_element(self, target: ast.Subscript, value: Value) -> None:
        owner = self.ev(target.value)
        index = self.ev(target.slice) if not isinstance(target.slice, ast.Slice) else None
        if isinstance(owner, Part) and owner.path.rpartition(".")[2] == "scaling":
            self.do_scale(owner.owner, target, "scaling", value)
        elif isinstance(owner, Dict) and isinstance(index, Const):
            self.mutate(target.value, Dict({**owner.items, index.value: value}))
        elif isinstance(owner, Dict | Seq):
            self.mutate(target.value, self.fresh())
        elif isinstance(owner, Opaque | Obj) and index is not None and (key := key_of(index)):
            name = repr(index.value) if isinstance(index, Const) else key
            self.s.heap[owner.oid, "[]", name] = value

    def _unpack(self, targets: list[ast.expr], value: Value) -> None:
        starred = next((i for i, t in enumerate(targets) if isinstance(t, ast.Starred)), None)
        if isinstance(value, Seq) and starred is not None and len(value.items) >= len(targets) - 1:
            after = len(value.items) - (len(targets) - 1 - starred)
            middle = Seq(value.items[starred:after])
            value = Seq((*value.items[:starred], middle, *value.items[after:]))
        if isinstance(value, Seq) and len(value.items) == len(targets):
            for target, item in zip(targets, value.items, strict=True):
                self.assign(target.value if isinstance(target, ast.Starred) else target, item)
        elif isinstance(value, Part) and "named_" in value.path:
            for target in targets[:-1]:
                self.assign(target, self.fresh())
            self.assign(targets[-1], value)
        else:
            for target in targets:
                self.assign(target, self.fresh())

    def _return(self, node: ast.Return) -> list[State]:
        ends = []
        for state, value in self.outcomes(node.value):
            state.exit, state.result = "return", value
            ends.append(state)
        return ends

    def _leave(self, node: ast.stmt) -> list[State]:
        names: dict[type[ast.stmt], Any] = {
            ast.Break: "break",
            ast.Continue: "continue",
            ast.Raise: "raise",
        }
        if isinstance(node, ast.Raise) and node.exc is not None:
            self.ev(node.exc)
        self.s.exit = names[type(node)]
        return [self.s]

    def _assert(self, node: ast.Assert) -> list[State]:
        self.ev(node.test)
        self.assume(node.test, True)
        return [self.s]

    def _if(self, node: ast.If) -> list[State]:
        holds = self.test(node.test)
        if holds is not None:
            return self.block(node.body if holds else node.orelse, self.s)
        other = self.s.copy()
        self.assume(node.test, True)
        ends = self.block(node.body, self.s)
        self.s = other
        self.assume(node.test, False)
        ends += self.block(node.orelse, self.s)
        return ends

    def _for(self, node: ast.For | ast.AsyncFor) -> list[State]:
        over = self.ev(node.iter)
        elements = self.elements(over)
        if elements is None:
            elements = [self.fresh(), self.fresh()]
        elif isinstance(over, Part):
            elements = elements[:1]
        return self._turns(node.body, node.orelse, elements[:MOST_TURNS], node.target)

    def _while(self, node: ast.While) -> list[State]:
        holds = self.test(node.test)
        if holds is False:
            return self.block(node.orelse, self.s)
        return self._turns(node.body, node.orelse, [None, None], None)

    def _turns(
        self,
        body: list[ast.stmt],
        orelse: list[ast.stmt],
        elements: Sequence[Value | None],
        target: ast.expr | None,
    ) -> list[State]:
        live, ends, broken = [self.s], [], []
        turn = self.turn
        for number, element in enumerate(elements):
            self.turn = (*turn, body[0], number)
            after: list[State] = []
            for state in live:
                self.s = state
                if target is not None and element is not None:
                    self.assign(target, element)
                for end in self.block(body, self.s):
                    if end.exit in (None, "continue"):
                        end.exit = None
                        after.append(end)
                    elif end.exit == "break":
                        end.exit = None
                        broken.append(end)
                    else:
                        ends.append(end)
            live = merge(after, self.fresh)
        self.turn = turn
        finished: list[State] = []
        for state in live:
            finished += self.block(orelse, state)
        return merge(finished + broken, self.fresh) + ends

    def _with(self, node: ast.With | ast.AsyncWith) -> list[State]:
        grad, muted = self.s.grad, self.s.muted
        quiet = False
        for item in node.items:
            value = self.ev(item.context_expr)
            quiet = quiet or last_name(item.context_expr) in _RAISES
            if isinstance(value, GradMode):
                self.s.grad = (*self.s.grad, value.mode)
            if item.optional_vars is not None:
                self.assign(item.optional_vars, value)
        if quiet:
            before = self.s.copy()
            self.s.muted += 1
            self.block(node.body, self.s)
            return [before]
        ends = self.block(node.body, self.s)
        for end in ends:
            end.grad, end.muted = grad, muted
        return ends

    def _try(self, node: ast.Try) -> list[State]:
        before = self.s.copy()
        ends = []
        for end in self.block(node.body, self.s):
            ends += [end] if end.exit else self.block(node.orelse, end)
        for handler in node.handlers:
            state = before.copy()
            state.muted += 1
            if handler.name:
                state.frames[-1].bind(handler.name, self.fresh())
            for end in self.block(handler.body, state):
                end.muted -= 1
                ends.append(end)
        finished: list[State] = []
        for end in merge(ends, self.fresh):
            exit_, result = end.exit, end.result
            end.exit = end.result = None
            for last in self.block(node.finalbody, end):
                if last.exit is None:
                    last.exit, last.result = exit_, result
                finished.append(last)
        return finished

    def _match(self, node: ast.Match) -> list[State]:
        self.ev(node.subject)
        ends = [self.s.copy()]
        for case in node.cases:
            state = self.s.copy()
            for part in ast.walk(case.pattern):
                name = getattr(part, "name", None) or getattr(part, "rest", None)
                if isinstance(name, str):
                    state.frames[-1].bind(name, self.fresh())
            ends += self.block(case.body, state)
        return ends

    def _import(self, node: ast.Import | ast.ImportFrom) -> list[State]:
        for name, qualified in imported(node):
            self.s.frames[-1].bind(name, Ref(qualified))
        return [self.s]

    def _global(self, node: ast.Global) -> list[State]:
        for name in node.names:
            self.s.frames[-1].outer[name] = 0
        return [self.s]

    def _nonlocal(self, node: ast.Nonlocal) -> list[State]:
        for name in node.names:
            self.s.frames[-1].outer[name] = max(self.s.frames[-1].parent, 0)
        return [self.s]

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[State]:
        func = Func(node, None, len(self.s.frames) - 1)
        self.s.frames[-1].bind(node.name, func)
        if self._nested and all(func.node is not other.node for other in self._nested[-1]):
            self._nested[-1].append(func)
        return [self.s]

    def _class(self, node: ast.ClassDef) -> list[State]:
        cls = Class(self.fresh().oid, node, tuple(self.ev(base) for base in node.bases))
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                self.s.put((cls.oid, child.name), Func(child, None, len(self.s.frames) - 1))
            elif isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Name):
                self.s.put((cls.oid, child.targets[0].id), self.ev(child.value))
            elif (
                isinstance(child, ast.AnnAssign)
                and isinstance(child.target, ast.Name)
                and child.value
            ):
                self.s.put((cls.oid, child.target.id), self.ev(child.value))
        self.s.frames[-1].bind(node.name, cls)
        return [self.s]

    def _delete(self, node: ast.Delete) -> list[State]:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.s.frames[-1].bind(target.id, Const(None))
        return [self.s]


_STATEMENTS: dict[type[ast.AST], Callable[[Walker, Any], list[State]]] = {
    ast.AnnAssign: Walker._annotated,
    ast.Assert: Walker._assert,
    ast.Assign: Walker._assign,
    ast.AsyncFor: Walker._for,
    ast.AsyncFunctionDef: Walker._function,
    ast.AsyncWith: Walker._with,
    ast.AugAssign: Walker._augmented,
    ast.Break: Walker._leave,
    ast.ClassDef: Walker._class,
    ast.Continue: Walker._leave,
    ast.Delete: Walker._delete,
    ast.Expr: Walker._expression,
    ast.For: Walker._for,
    ast.FunctionDef: Walker._function,
    ast.Global: Walker._global,
    ast.If: Walker._if,
    ast.Import: Walker._import,
    ast.ImportFrom: Walker._import,
    ast.Match: Walker._match,
    ast.Nonlocal: Walker._nonlocal,
    ast.Raise: Walker._leave,
    ast.Return: Walker._return,
    ast.Try: Walker._try,
    ast.TryStar: Walker._try,
    ast.While: Walker._while,
    ast.With: Walker._with,
}
