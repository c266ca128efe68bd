"""Run a program: the module's body, what sets models up, then what is called later."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from hotswap.lint.apis.classes import kind_made_by, make
from hotswap.lint.apis.functions import call_imported
from hotswap.lint.apis.methods import call_inside, kind_with, set_item
from hotswap.lint.chunk import Chunk
from hotswap.lint.definitions import Def, functions_of, outermost, sets_up
from hotswap.lint.entries import Entries
from hotswap.lint.interpreter.calls import CALLABLES
from hotswap.lint.interpreter.expressions import EXPRESSIONS
from hotswap.lint.interpreter.fixtures import fixture_name
from hotswap.lint.interpreter.instances import AFTER_INIT, make_fields
from hotswap.lint.interpreter.objects import class_of, last_name, line_of, read_attribute
from hotswap.lint.interpreter.run import Callables, Language, Run, TooLongError
from hotswap.lint.interpreter.state import Frame, State, merge
from hotswap.lint.interpreter.statements import STATEMENTS, passed_over
from hotswap.lint.interpreter.values import Class, Dict, Func, Function, Obj, Part, Ref
from hotswap.lint.judge import Judge, not_followed
from hotswap.lint.outline import root
from hotswap.lint.relevance import Relevance
from hotswap.lint.tree import Tree
from hotswap.lint.typestate import Facts, Problem

Problems: TypeAlias = dict[tuple[str, ast.AST], Problem]
_CALLABLES: Callables = {**CALLABLES, Part: call_inside, Ref: call_imported}
_LANGUAGE = Language(EXPRESSIONS, STATEMENTS, _CALLABLES, make, kind_with, kind_made_by, set_item)


MOST_MODULES = 12


def analyse(chunk: Chunk, tree: Tree | None = None) -> tuple[Problems, Mapping[ast.AST, Chunk]]:
    """Return every problem in a program by rule code and place; and which places are in other modules."""
    try:
        program = _Program(chunk, tree or Tree(()))
        program.execute()
    except RecursionError:
        nodes: list[ast.AST] = [*chunk.tree.body[:1]]
        return {("HSW200", node): not_followed(nodes) for node in nodes}, {}
    places = {node: program.chunks[home] for node, home in program.run.foreign.items()}
    return program.run.judge.problems, places


class _Program:
    """The module that is checked, after the modules of the tree that it imports; each has its own names."""

    def __init__(self, chunk: Chunk, tree: Tree) -> None:
        self.tree = tree
        self.chunks: list[Chunk] = []
        self.modules: list[Relevance] = []
        self.homes: dict[Path, int] = {}
        self.bindings: dict[ast.AST, list[tuple[str, int, str]]] = {}
        matters = self._gather(chunk, {chunk.path}, imported=False)
        folder = chunk.path.parent if chunk.path.name else None
        judge = Judge(file_swaps=matters.touches(chunk.tree, "swap"))
        self.run = Run(_LANGUAGE, judge, matters, folder)
        self.run.modules, self.run.bindings = [*self.modules], self.bindings
        self.run.main = len(self.modules) - 1
        self.run.limit(sum(len(each.lines) for each in self.chunks))
        self.matters = matters
        self.entries = Entries(self.run, self._matters)

    def _gather(self, chunk: Chunk, open_: set[Path], *, imported: bool = True) -> Relevance:
        """Read a module, after those of the tree that it imports."""
        known = self.tree.relevance.get(chunk.path) if imported else None
        matters = known or Relevance(chunk.tree)
        derived = {root(b) for d in matters.outline.definitions for b in getattr(d, "bases", ())}
        """The names of which classes are derived."""
        aliases: dict[str, str] = {}
        others: dict[int, Relevance] = {}
        for path in self.tree.conftests(chunk.path):
            home = self._home(path, open_)
            others |= {home: self.modules[home]} if home is not None else {}
        for node in matters.outline.imports:
            for name, path, inner in self.tree.imports(chunk.path, node):
                home = self._home(path, open_, plain=name in derived)
                if home is not None:
                    others[home] = self.modules[home]
                    self.bindings.setdefault(node, []).append((name, home, inner))
                    aliases |= {inner: name} if inner else {}
        if known is None:
            matters.complete(others.values(), aliases, imported=imported)
        if imported:
            self.tree.relevance[chunk.path] = matters
        self.chunks.append(chunk)
        self.modules.append(matters)
        return matters

    def _home(self, path: Path, open_: set[Path], *, plain: bool = False) -> int | None:
        """Return the module of a file, read once; one that names no API only if it is ``plain`` or small."""
        if path not in self.homes and path not in open_ and len(self.chunks) < MOST_MODULES:
            needed = plain or self.tree.mentions(path) or self.tree.small(path)
            chunk = self.tree.chunk(path) if needed else None
            if chunk is not None:
                self._gather(chunk, {*open_, path})
                self.homes[path] = len(self.chunks) - 1
        return self.homes.get(path)

    def execute(self) -> None:
        """Run the bodies, then the functions that set globals, then everything that was not called."""
        if not self.matters.applies:
            return
        tree = self.chunks[-1].tree
        paths = self._bodies()
        free = [node for node in functions_of(tree.body) if self.matters.touches(node)]
        for node in self._left(free):
            func = self._named(paths, node)
            if func and sets_up(self.matters, node, None):
                paths = self.entries.call(func, paths)
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef):
                paths = self._shared(statement, paths)
        later = self._left(free)
        ordered = sorted([*outermost(later, self._matters), *later], key=_last)
        functions = [func for node in ordered if (func := self._named(paths, node))]
        functions += [f for f in self.run.lambdas if f.node not in self.run.foreign]
        self.entries.use(paths, functions)
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef):
                self._class(statement, paths)

    def _bodies(self) -> list[State]:
        run = self.run
        paths = [State([], grad=("grad",))]
        for home, chunk in enumerate(self.chunks):
            run.at(home)
            for state in paths:
                state.frames.append(Frame(-1, home=home))
            paths = self._body(chunk.tree, paths)
        return paths

    def _body(self, tree: ast.Module, live: list[State]) -> list[State]:
        run, home = self.run, self.run.home
        left = list[State]()
        for statement in tree.body:
            before = live
            if run.modules[home].touches(statement):
                before = [state.copy() for state in live]
            run.steps = 0
            try:
                ends = [end for state in live for end in run.block([statement], state)]
            except TooLongError:
                run.here(statement)
                run.give_up(statement)
                run.at(home)
                ends = [passed_over(run, statement, state) for state in before]
            left += [end for end in ends if end.exit]
            live = merge([end for end in ends if not end.exit], run.fresh)
        ends = live + left
        run.finish(ends, last=True)
        alive = [end for end in ends if end.exit != "raise"] or ends
        for end in alive:
            end.exit = end.result = None
        return merge(alive, run.fresh)

    def _matters(self, node: Function) -> Relevance:
        """Return what matters in the module in which a function is defined."""
        return self.modules[self.run.foreign.get(node, self.run.main)]

    def _left(self, nodes: list[Def]) -> list[Def]:
        return [node for node in nodes if node not in self.run.executed]

    def _shared(self, node: ast.ClassDef, paths: list[State]) -> list[State]:
        """Run the methods of a class that set up what all have: attributes of classes, and global names."""
        cls = paths[0].frames[self.run.main].names.get(node.name)
        if not isinstance(cls, Class):
            return paths
        own = [n for n in node.body if isinstance(n, Def) and n.name != "__init__"]
        for method in self._left(own):
            by_class = any(last_name(mark) == "classmethod" for mark in method.decorator_list)
            if sets_up(self.matters, method, "cls" if by_class else None):
                obj = self._instance(cls, paths) or Obj(self.run.fresh().oid)
                paths = self.entries.call(_bound(paths, cls, method, obj), paths)
        return paths

    def _class(self, node: ast.ClassDef, paths: list[State]) -> None:
        """Run a class: ``__init__``, then the methods that set it up, then each of the others."""
        cls = paths[0].frames[self.run.main].names.get(node.name)
        own = [n for n in node.body if isinstance(n, Def) and self.matters.touches(n)]
        if not isinstance(cls, Class) or not self._left(own):
            return
        methods = _methods(cls)
        before, self.run.executed = self.run.executed, set()
        obj = self._instance(cls, paths)
        if obj is None:
            obj = Obj(self.run.fresh().oid)
            paths = [state.copy() for state in paths]
            for self.run.s in paths:
                self.run.put(obj, Facts(kind="instance"))
                self.run.s.put((obj.oid, "__class__"), cls)
                make_fields(self.run, obj, cls)
            for name in ("__init__", *AFTER_INIT):
                self.run.s = paths[0]
                init = read_attribute(self.run, obj, name)
                if isinstance(init, Func):
                    paths = self.entries.call(init, paths)
            given = paths[0].heap.get((cls.oid, "initialize()"))
            for m in methods:
                if m.name == "initialize" and isinstance(given, Dict):
                    paths = self.entries.call(_bound(paths, cls, m, obj), paths, given.items)
        setups = [m for m in self._left(methods) if m not in before or m not in own]
        setups = [m for m in setups if sets_up(self._matters(m), m, "self")]
        for method in outermost(setups, self._matters):
            paths = self.entries.call(_bound(paths, cls, method, obj), paths)
        later = [m for m in self._left(own) if m not in before]
        later += [m for m in self._left(methods) if m not in own and self._matters(m).touches(m)]
        ordered = sorted([*outermost(later, self._matters), *later], key=_last)
        self.entries.use(paths, [_bound(paths, cls, m, obj) for m in ordered])
        self.run.executed |= before

    def _named(self, paths: list[State], node: Def) -> Func | None:
        func = paths[0].frames[self.run.main].names.get(node.name)
        return func if isinstance(func, Func) and func.node is node else None

    def _instance(self, cls: Class, paths: list[State]) -> Obj | None:
        """Return an instance of the class that the module keeps under a name."""
        for value in paths[0].frames[self.run.main].names.values():
            self.run.s = paths[0]
            if isinstance(value, Obj) and class_of(self.run, value) == cls:
                return value
        return None


def _last(node: Def) -> bool:
    """Order functions: fixtures come last, as tests call them."""
    return fixture_name(node) is not None


def _methods(cls: Class) -> list[Def]:
    """Return the methods of a class, with those that it inherits and does not override."""
    found: dict[str, Def] = {}
    for each in line_of(cls):
        for node in each.node.body:
            if isinstance(node, Def):
                found.setdefault(node.name, node)
    return [node for name, node in found.items() if name != "__init__"]


def _bound(paths: list[State], cls: Class, node: Def, obj: Obj) -> Func:
    """Return a method of an instance."""
    stored = (paths[0].heap.get((each.oid, node.name)) for each in line_of(cls))
    found = next((func for func in stored if isinstance(func, Func) and func.node is node), None)
    marks = {last_name(mark) for mark in node.decorator_list}
    owner = cls if "classmethod" in marks else None if "staticmethod" in marks else obj
    return replace(found or Func(node), owner=owner)
