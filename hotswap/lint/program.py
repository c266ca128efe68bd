"""Find the ways into a module, and run each: its body, what sets it up, then what is called later."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hotswap.lint.apis.classes import kind_made_by, make
from hotswap.lint.apis.functions import call_imported
from hotswap.lint.apis.methods import call_inside, kind_with, set_item
from hotswap.lint.interpreter.calls import CALLABLES
from hotswap.lint.interpreter.expressions import EXPRESSIONS
from hotswap.lint.interpreter.functions import call_from_outside
from hotswap.lint.interpreter.objects import read_attribute
from hotswap.lint.interpreter.run import Callables, Language, Run, TooLongError
from hotswap.lint.interpreter.state import Frame, State, merge
from hotswap.lint.interpreter.statements import STATEMENTS
from hotswap.lint.interpreter.values import Class, Func, Obj, Part, Ref
from hotswap.lint.judge import Judge
from hotswap.lint.relevance import Relevance
from hotswap.lint.typestate import Facts, Problem, Ran

_CALL = re.compile(r"\b(\w+)\(")
_CALLABLES: Callables = {**CALLABLES, Part: call_inside, Ref: call_imported}
_LANGUAGE = Language(EXPRESSIONS, STATEMENTS, _CALLABLES, make, kind_with, kind_made_by, set_item)
Def = ast.FunctionDef | ast.AsyncFunctionDef


def analyse(
    tree: ast.Module, text: str, folder: Path | None = None
) -> dict[tuple[str, ast.AST], Problem]:
    """Return every problem in a module by rule code and place."""
    matters = Relevance(tree)
    judge = Judge(file_swaps=matters.touches(tree, "swap"))
    run = Run(_LANGUAGE, judge, matters.touches, folder)
    if matters.applies:
        with contextlib.suppress(TooLongError, RecursionError):
            _Program(run, matters, text).execute(tree)
    return judge.problems


class _Program:
    def __init__(self, run: Run, matters: Relevance, text: str) -> None:
        self.run, self.judge, self.matters = run, run.judge, matters
        self.lines = text.splitlines()
        self.entered = 0
        self._names: dict[Def, set[str]] = {}

    def execute(self, tree: ast.Module) -> None:
        """Run the body, then the functions that set globals, then everything that was not called."""
        functions = list(_functions(tree.body))
        paths = self._body(tree)
        free = [node for node, cls in functions if cls is None and self.matters.touches(node)]
        for node in free:
            if node not in self.run.executed and self._sets_up(node, None):
                paths = self._enter(paths, _named(paths, node))
        later = [n for n in free if n not in self.run.executed]
        self._entries(
            paths, [_named(paths, node) for node in later if not self._called_by(node, later)]
        )
        self._entries(paths, [_named(paths, node) for node in later])
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef):
                self._class(statement, paths)

    def _body(self, tree: ast.Module) -> list[State]:
        ends = self.run.block(tree.body, State([Frame(-1)], grad=("grad",)))
        self.run.finish(ends)
        alive = [end for end in ends if end.exit != "raise"] or ends
        for end in alive:
            end.exit = end.result = None
        return merge(alive, self.run.fresh)

    def _called_by(self, node: Def, others: list[Def]) -> bool:
        return any(node.name in self._calls(other) for other in others if other is not node)

    def _calls(self, node: Def) -> set[str]:
        """Return the names that stand before a parenthesis in the function's lines."""
        found = self._names.get(node)
        if found is None:
            text = "\n".join(self.lines[node.lineno : node.end_lineno])
            found = self._names[node] = set(_CALL.findall(text))
        return found

    def _class(self, node: ast.ClassDef, paths: list[State]) -> None:
        """Run a class: ``__init__``, then the methods that set it up, then each of the others."""
        cls = paths[0].frames[0].names.get(node.name)
        left = [n for n in _methods(node) if self.matters.touches(n)]
        left = [m for m in left if m not in self.run.executed]
        if not isinstance(cls, Class) or not left:
            return
        inherited = [
            m for base in cls.bases if isinstance(base, Class) for m in _methods(base.node)
        ]
        paths = _copies(paths)
        obj = Obj(self.run.fresh().oid)
        for state in paths:
            state.know(obj.oid, Facts(kind="instance"))
            state.put((obj.oid, "__class__"), cls)
        for name in ("__init__", "__post_init__"):
            self.run.s = paths[0]
            init = read_attribute(self.run, obj, name)
            if isinstance(init, Func):
                paths = self._enter(paths, init)
        own = {m.name for m in left}
        setups = [m for m in left if m not in self.run.executed]
        setups += [m for m in inherited if m.name not in own and m.name != "__init__"]
        setups = [m for m in setups if self._sets_up(m, "self")]
        for method in setups:
            if not self._called_by(method, setups):
                paths = self._enter(paths, Func(method, obj))
        later = [m for m in left if m not in self.run.executed]
        self._entries(paths, [Func(m, obj) for m in later if not self._called_by(m, later)])
        self._entries(paths, [Func(m, obj) for m in later])

    def _sets_up(self, node: Def, instance: str | None) -> bool:
        """Tell whether the function makes a model and keeps it, on the instance or outside of itself."""
        if not self.matters.touches(node, "make"):
            return False
        outer = {instance} if instance else _outer_names(node)
        stored = [n for n in ast.walk(node) if isinstance(n, ast.Assign)]
        made = {n for n in stored if self.matters.touches(n, "make")}
        local = {t.id for n in made for t in n.targets if isinstance(t, ast.Name)} - outer
        kept = [n for n in stored if n in made or local & _names_in(n.value)]
        return any(
            _root(target) in outer and (not instance or isinstance(target, ast.Attribute))
            for n in kept
            for target in n.targets
        )

    def _entries(self, paths: list[State], entries: list[Func | None]) -> None:
        """Run what is called from outside: once each, and what may be called again a second time."""
        ran: set[int] = set()
        again = []
        compiled = any(facts.compiled for state in paths for facts in state.models.values())
        for func in entries:
            if func is None or func.node in self.run.executed:
                continue
            if not self._can_matter(func.node, compiled=compiled):
                continue
            self.judge.log.clear()
            self.judge.entries.add(func.node)
            for end in self._enter(_copies(paths), func):
                ran |= {oid for oid, facts in end.models.items() if facts.ran}
            if compiled and not self.judge.log & {"create", "prepare", "enable", "compile"}:
                again.append(func)
        for func in again:
            used = _copies(paths)
            for state in used:
                for oid in ran:
                    facts = state.models.get(oid)
                    if facts and facts.compiled and not facts.ran:
                        state.know(oid, replace(facts, ran=Ran(facts.compiled.where, None)))
            self._enter(self._enter(used, func), func)

    def _can_matter(self, node: ast.AST, *, compiled: bool) -> bool:
        """Tell whether running the function can show a mistake, or a run of a model that is compiled."""
        touches = self.matters.touches
        if touches(node, "swap") or (compiled and touches(node, "run", "change")):
            return True
        return touches(node, "change") and (self.judge.file_swaps or touches(node, "compile"))

    def _enter(self, paths: list[State], func: Func | None) -> list[State]:
        """Call a function with unknown arguments on every path; return the states after it."""
        if func is None:
            return paths
        run, before = self.run, _copies(paths)
        self.entered += 1
        run.turn, run.steps = (func.node, self.entered), 0
        try:
            ends = call_from_outside(run, func, paths)
        except TooLongError:
            run.running.clear()
            run.defined.clear()
            return before
        run.finish(ends)
        return ends


def _methods(node: ast.ClassDef) -> list[Def]:
    return [n for n in node.body if isinstance(n, Def)]


def _copies(paths: list[State]) -> list[State]:
    return [state.copy() for state in paths]


def _named(paths: list[State], node: Def) -> Func | None:
    func = paths[0].frames[0].names.get(node.name)
    return func if isinstance(func, Func) and func.node is node else None


def _functions(body: list[ast.stmt]) -> Iterator[tuple[Def, ast.ClassDef | None]]:
    for node in body:
        if isinstance(node, Def):
            yield node, None
        elif isinstance(node, ast.ClassDef):
            for child in node.body:
                if isinstance(child, Def):
                    yield child, node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _functions(node.body)


def _outer_names(node: Def) -> set[str]:
    """Return the names that a function does not bind itself."""
    spec = node.args
    bound = {a.arg for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)}
    names: set[str] = set()
    declared: set[str] = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Global):
            declared |= set(n.names)
        elif isinstance(n, ast.Name):
            (bound if isinstance(n.ctx, ast.Store) else names).add(n.id)
    return (names - bound) | declared


def _names_in(node: ast.expr) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _root(target: ast.expr) -> str:
    while isinstance(target, ast.Attribute | ast.Subscript):
        target = target.value
    return target.id if isinstance(target, ast.Name) else ""
