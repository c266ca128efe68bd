"""Run a program: the module's body, what sets models up, then what is called later."""

from __future__ import annotations

import ast
from pathlib import Path

from hotswap.lint.apis.classes import kind_made_by, make
from hotswap.lint.apis.functions import call_imported
from hotswap.lint.apis.methods import call_inside, kind_with, set_item
from hotswap.lint.definitions import Def, Definitions, functions_of
from hotswap.lint.entries import Entries
from hotswap.lint.interpreter.calls import CALLABLES
from hotswap.lint.interpreter.expressions import EXPRESSIONS
from hotswap.lint.interpreter.functions import line_of
from hotswap.lint.interpreter.objects import class_of, read_attribute
from hotswap.lint.interpreter.run import Callables, Language, Run, TooLongError
from hotswap.lint.interpreter.state import Frame, State, merge
from hotswap.lint.interpreter.statements import STATEMENTS, passed_over
from hotswap.lint.interpreter.values import Class, Func, Obj, Part, Ref
from hotswap.lint.judge import Judge
from hotswap.lint.relevance import Relevance
from hotswap.lint.typestate import Facts, Problem

_CALLABLES: Callables = {**CALLABLES, Part: call_inside, Ref: call_imported}
_LANGUAGE = Language(EXPRESSIONS, STATEMENTS, _CALLABLES, make, kind_with, kind_made_by, set_item)


def analyse(
    tree: ast.Module, text: str, folder: Path | None = None
) -> dict[tuple[str, ast.AST], Problem]:
    """Return every problem in a module by rule code and place."""
    matters = Relevance(tree)
    judge = Judge(file_swaps=matters.touches(tree, "swap"))
    run = Run(_LANGUAGE, judge, matters, folder)
    if matters.applies:
        try:
            _Program(run, matters, Definitions(matters, text)).execute(tree)
        except RecursionError:
            run.give_up(tree.body[0])
    return judge.problems


class _Program:
    def __init__(self, run: Run, matters: Relevance, definitions: Definitions) -> None:
        self.run, self.matters, self.definitions = run, matters, definitions
        self.entries = Entries(run, matters)

    def execute(self, tree: ast.Module) -> None:
        """Run the body, then the functions that set globals, then everything that was not called."""
        paths = self._body(tree)
        free = [node for node in functions_of(tree.body) if self.matters.touches(node)]
        for node in self._left(free):
            func = _named(paths, node)
            if func and self.definitions.sets_up(node, None):
                paths = self.entries.call(func, paths)
        later = self._left(free)
        ordered = [*self.definitions.outermost(later), *later]
        functions = [func for node in ordered if (func := _named(paths, node))]
        self.entries.use(paths, functions)
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef):
                self._class(statement, paths)

    def _body(self, tree: ast.Module) -> list[State]:
        run = self.run
        live, left = [State([Frame(-1)], grad=("grad",))], list[State]()
        for statement in tree.body:
            long = self.matters.touches(statement)
            before = [state.copy() for state in live] if long else live
            run.steps = 0
            try:
                ends = [end for state in live for end in run.block([statement], state)]
            except TooLongError:
                run.give_up(statement)
                ends = [passed_over(run, statement, state) for state in before]
            left += [end for end in ends if end.exit]
            live = merge([end for end in ends if not end.exit], run.fresh)
        ends = live + left
        run.finish(ends)
        alive = [end for end in ends if end.exit != "raise"] or ends
        for end in alive:
            end.exit = end.result = None
        return merge(alive, self.run.fresh)

    def _left(self, nodes: list[Def]) -> list[Def]:
        return [node for node in nodes if node not in self.run.executed]

    def _class(self, node: ast.ClassDef, paths: list[State]) -> None:
        """Run a class: ``__init__``, then the methods that set it up, then each of the others."""
        cls = paths[0].frames[0].names.get(node.name)
        own = [n for n in node.body if isinstance(n, Def) and self.matters.touches(n)]
        if not isinstance(cls, Class) or not self._left(own):
            return
        methods = _methods(cls)
        before, self.run.executed = self.run.executed, set()
        obj = self._instance(cls, paths)
        if obj is None:
            obj = Obj(self.run.fresh().oid)
            paths = [state.copy() for state in paths]
            for state in paths:
                state.know(obj.oid, Facts(kind="instance"))
                state.put((obj.oid, "__class__"), cls)
            for name in ("__init__", "__post_init__"):
                self.run.s = paths[0]
                init = read_attribute(self.run, obj, name)
                if isinstance(init, Func):
                    paths = self.entries.call(init, paths)
        setups = [m for m in self._left(methods) if m not in before or m not in own]
        setups = [m for m in setups if self.definitions.sets_up(m, "self")]
        for method in self.definitions.outermost(setups):
            paths = self.entries.call(Func(method, obj), paths)
        opening = [m for m in self._left(methods) if self.matters.touches(m, "compile", "swap")]
        self.run.executed |= before
        later = self._left(own)
        ordered = [*self.definitions.outermost(later), *later]
        opening = [m for m in opening if m not in later]
        openers = [m for m in self.definitions.outermost(opening) if not m.name.startswith("__")]
        self.entries.use(paths, [Func(m, obj) for m in ordered], [Func(m, obj) for m in openers])

    def _instance(self, cls: Class, paths: list[State]) -> Obj | None:
        """Return an instance of the class that the module keeps under a name."""
        for value in paths[0].frames[0].names.values():
            self.run.s = paths[0]
            if isinstance(value, Obj) and class_of(self.run, value) == cls:
                return value
        return None


def _methods(cls: Class) -> list[Def]:
    """Return the methods of a class, with those that it inherits and does not override."""
    found: dict[str, Def] = {}
    for each in line_of(cls):
        for node in each.node.body:
            if isinstance(node, Def):
                found.setdefault(node.name, node)
    return [node for name, node in found.items() if name != "__init__"]


def _named(paths: list[State], node: Def) -> Func | None:
    func = paths[0].frames[0].names.get(node.name)
    return func if isinstance(func, Func) and func.node is node else None
