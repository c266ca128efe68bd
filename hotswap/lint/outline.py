"""The outline of a module: which names, calls, assignments and definitions stand on which lines."""

from __future__ import annotations

import ast
import bisect
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from hotswap.lint.apis.methods import CALLS
from hotswap.lint.interpreter.objects import last_name

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_NOTED = frozenset(
    {
        *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.withitem),
        *(ast.If, ast.IfExp, ast.While, ast.Return, ast.For, ast.AsyncFor, ast.Match),
        *(ast.match_case, ast.comprehension, ast.Global, ast.Nonlocal),
    }
)
_DEFINES = frozenset({ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef})
_ASKS = ("test", "iter", "subject", "guard", "context_expr")
_LEAVES = frozenset(
    {
        *(int, str, bytes, float, complex, bool, type(None), type(...)),
        *(ast.Constant, ast.Load, ast.Store, ast.Del),
        *(
            kind
            for base in (ast.operator, ast.cmpop, ast.boolop, ast.unaryop)
            for kind in base.__subclasses__()
        ),
    }
)
"""What has no calls inside."""


class Outline:
    """What stands on the lines of a module; not on those of comments and docstrings."""

    def __init__(self, tree: ast.Module) -> None:
        self.named: dict[str, list[int]] = defaultdict(list)
        """Name → the lines on which it stands."""
        self.calls: dict[str, list[ast.Call]] = defaultdict(list)
        """Name → its calls."""
        self.attributes: list[ast.Attribute] = []
        self.definitions: list[Definition] = []
        self.lambdas: list[ast.Lambda] = []
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.bound: dict[int, set[str]] = defaultdict(set)
        """Line of an assignment → the names that it binds."""
        self.given: dict[str, set[str]] = defaultdict(set)
        """Name → the names that are assigned from it; with parentheses, from what it returns."""
        self.kept: dict[int, set[str]] = defaultdict(set)
        """Line of an assignment → the attributes and global names that it sets."""
        self.filled: set[str] = set()
        """The names of what attributes and elements are set of."""
        self.asked: set[int] = set()
        """The lines of conditions, of what loops go over and of what functions return."""
        self.renamed: list[tuple[str, str]] = []
        """Names of imports → the names that they have here."""
        self.elements: list[ast.Subscript] = []
        """What is assigned to an element of something."""
        self._later: list[ast.AST] = []
        self._read(tree)

    def _read(self, tree: ast.Module) -> None:
        named = self.named
        waiting: list[Any] = [tree]
        while waiting:  # what ast.walk does, in a third of the time
            node = waiting.pop()
            kind = node.__class__
            if kind is ast.Name:
                named[node.id].append(node.lineno)
                continue
            if kind in _LEAVES:
                continue
            for inside in node.__dict__.values():
                if inside.__class__ is list:
                    waiting += inside
                elif inside.__class__ not in _LEAVES:
                    waiting.append(inside)
            if kind is ast.Attribute:
                named[node.attr].append(node.end_lineno)
                self.attributes.append(node)
            elif kind is ast.Call:
                self.calls[last_name(node.func)].append(node)
            elif kind in _NOTED:
                self._later.append(node)
            elif kind is ast.Import or kind is ast.ImportFrom:
                self.imports.append(node)
            elif kind in _DEFINES:
                self.definitions.append(node)
            elif kind is ast.Lambda:
                self.lambdas.append(node)
        for node in self.imports:
            self.renamed += [
                (each.name, each.asname)
                for each in node.names
                if each.asname not in (None, each.name)
            ]
        for name, alias in self.renamed:
            if alias in self.calls:
                self.calls[name] = [*self.calls.get(name, ()), *self.calls[alias]]

    def complete(self) -> None:
        """Read what is assigned to what, which only matters in few modules."""
        for definition in self.definitions:
            self.asked.update(range(first_line(definition), definition.body[0].lineno))
            for mark in definition.decorator_list:
                if last_name(mark) == "register":  # it is called by the name of a generic function
                    self.given[definition.name].add(
                        root(mark.func if isinstance(mark, ast.Call) else mark)
                    )
        for node in self._later:
            self._statement(node)
        self._later.clear()
        for name, alias in self.renamed:
            self.given[name].add(alias)
            self.given[f"{name}()"] |= self.given.get(f"{alias}()", set())

    def _statement(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            self._bind([*node.targets], node.value)
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.AugAssign) and node.value:
            self._bind([node.target], node.value)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            self._bind([node.optional_vars], node.context_expr)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            self.kept[node.lineno].update(node.names)
        elif isinstance(node, ast.Return):
            self.asked.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        else:
            if isinstance(node, ast.For | ast.AsyncFor):
                self._bind([node.target], node.iter)
            for name in _ASKS:
                asked = getattr(node, name, None)
                if asked is not None:
                    self.asked.update(range(asked.lineno, asked.end_lineno + 1))

    def _bind(self, targets: list[ast.expr], value: ast.expr) -> None:
        lines = range(value.lineno, (value.end_lineno or value.lineno) + 1)
        origins = list(sources(value))
        while targets:
            target = targets.pop()
            if isinstance(target, ast.Tuple | ast.List):
                targets += target.elts
                continue
            if isinstance(target, ast.Subscript):
                self.elements.append(target)
            name = last_name(
                target.value if isinstance(target, ast.Starred | ast.Subscript) else target
            )
            if not name:
                continue
            for line in lines:
                self.bound[line].add(name)
            for source in origins:
                self.given[source].add(name)
            if not isinstance(target, ast.Name):
                self.kept[target.lineno].add(name)
                self.filled.add(root(target))


def sources(value: ast.expr) -> Iterator[str]:
    """Yield the names of what an expression can be, as far as models are concerned."""
    if isinstance(value, ast.Name):
        yield value.id
    elif isinstance(value, ast.Attribute):
        yield value.attr
    elif isinstance(value, ast.Subscript | ast.Await | ast.Starred | ast.NamedExpr):
        yield from sources(value.value)
    elif isinstance(value, ast.Call):
        name = last_name(value.func)
        yield f"{name}()"
        if name not in CALLS:
            for each in given(value):
                yield from sources(each) if not isinstance(each, ast.Call) else ()
            if isinstance(value.func, ast.Attribute):
                yield from sources(value.func.value)
    elif isinstance(value, ast.Lambda):
        yield name_of(value)
    elif isinstance(value, ast.IfExp):
        yield from (*sources(value.body), *sources(value.orelse))
    elif isinstance(value, ast.BoolOp | ast.Dict):
        for each in value.values:
            yield from sources(each)
    elif isinstance(value, ast.Tuple | ast.List | ast.Set):
        for each in value.elts:
            yield from sources(each)


def name_of(node: Definition | ast.Lambda) -> str:
    """Return the name of a definition; that of a lambda is its place."""
    if isinstance(node, ast.Lambda):
        return f"lambda of {node.lineno}:{node.col_offset}"
    return node.name


def given(call: ast.Call) -> Iterator[ast.expr]:
    """Yield what a step can be done to: what the method is of, the arguments, and what they are parts of."""
    waiting = [call.func.value] if isinstance(call.func, ast.Attribute) else []
    waiting += [
        argument
        for argument in (*call.args, *(keyword.value for keyword in call.keywords))
        if isinstance(argument, ast.Name | ast.Attribute)
    ]
    for value in waiting:
        yield value
        while isinstance(value, ast.Attribute):
            value = value.value
            yield value


def matched(call: ast.Call, parameters: list[str]) -> Iterator[tuple[ast.expr, str]]:
    """Yield each argument with the parameter that it is for."""
    own = parameters[1:] if parameters[:1] in (["self"], ["cls"]) else parameters
    yield from zip(call.args, own, strict=False)
    yield from ((k.value, k.arg) for k in call.keywords if k.arg in own)


def root(target: ast.expr) -> str:
    """Return the first name of a dotted name, with what is an element of which."""
    while not isinstance(target, ast.Name):
        if isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
            target = target.value
        elif isinstance(target, ast.Call) and last_name(target) == "type" and target.args:
            target = target.args[0]
        else:
            return ""
    return target.id


def first_line(node: ast.AST) -> int:
    """Return the line on which a node begins, with its decorators."""
    decorators = getattr(node, "decorator_list", None)
    return int(decorators[0].lineno if decorators else getattr(node, "lineno", 0))


def between(lines: list[int], first: int, last: int) -> bool:
    at = bisect.bisect_left(lines, first)
    return at < len(lines) and lines[at] <= last
