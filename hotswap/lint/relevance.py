"""Which lines of a program can matter: most of a file does nothing to a model."""

from __future__ import annotations

import ast
import bisect
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

from hotswap.lint.apis.methods import CALLS, METHODS
from hotswap.lint.interpreter.objects import last_name

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Feature = Literal["make", "swap", "compile", "change", "run"]
_MAKES = {"from_pretrained", "from_single_file", "from_pipe", "get_peft_model"}
_COMPILES = {"compile", "compile_repeated_blocks", "optimize"}
_SCALES = {"scale_layer", "scaling", "set_scale", "unscale_layer"}
_NAMES: dict[Feature, set[str]] = {
    "make": _MAKES,
    "swap": {
        "AdapterBank", "enable_lora_hotswap", "enable_peft_hotswap", "hotswap_adapter",
        "hotswap_adapter_from_state_dict", "prepare_model_for_compiled_hotswap",
    },
    "compile": _COMPILES,
    "change": (METHODS.keys() | _MAKES | _SCALES | {"inject_adapter_in_model"})
    - (_COMPILES | {"modules", "named_modules", "save_pretrained"}),
}  # fmt: skip
_FEATURES: dict[str, list[Feature]] = {
    name: [feature for feature in _NAMES if name in _NAMES[feature]]
    for name in set().union(*_NAMES.values())
}
_NOTED = frozenset(
    {
        *(ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.withitem, ast.Import, ast.ImportFrom),
        *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    }
)
_OWN = frozenset({"load", "prepare", "swap"})
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


class Relevance:
    """The lines that matter, by what they do to models; the callers of a function do what it does."""

    def __init__(self, tree: ast.Module) -> None:
        self._lines: dict[Feature, list[int]] = {feature: [] for feature in (*_NAMES, "run")}
        self._named: dict[str, list[int]] = defaultdict(list)
        """Name → the lines of code on which it stands; not those of comments and docstrings."""
        self._called: dict[str, list[int]] = defaultdict(list)
        """Name → the lines on which it is called."""
        self._bound: dict[int, set[str]] = defaultdict(set)
        """Line of an assignment → the names that it binds."""
        self._definitions: list[Definition] = []
        self._imports_hotswap = False
        self._read(tree)
        lines = self._lines
        self.applies = bool(lines["swap"] or (lines["compile"] and lines["change"]))
        """Whether any rule can apply to what the program calls."""
        if self.applies:
            for feature in _NAMES:
                lines[feature] = self._reaching(lines[feature])
            models = self._models()
            runs = [line for name in models | CALLS for line in self._called[name]]
            lines["run"] = self._reaching([*runs, *self._named["_orig_mod"]])

    def touches(self, node: ast.AST, *features: Feature) -> bool:
        """Tell whether the node's lines do any of these things; with no feature, anything at all."""
        if isinstance(node, ast.Module):
            return any(self._lines[f] for f in features)
        first = _first_line(node)
        last = getattr(node, "end_lineno", 0) or first
        return any(_between(self._lines[f], first, last) for f in features or self._lines)

    def _read(self, tree: ast.Module) -> None:
        own: list[int] = []
        named = self._named
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
                if node.attr in _FEATURES:
                    self._note(node.attr, node.lineno)
            elif kind is ast.Call:
                self._call(node, own)
            elif kind in _NOTED:
                self._statement(node)
        self._lines["swap"] += own if self._imports_hotswap else ()

    def _call(self, node: ast.Call, own: list[int]) -> None:
        name = last_name(node.func)
        self._called[name].append(node.lineno)
        if name in _OWN:
            own.append(node.lineno)
        if name in _FEATURES:
            self._note(name, node.lineno)
            swaps = any(keyword.arg == "hotswap" for keyword in node.keywords)
            self._lines["swap"] += [node.lineno] if swaps and "change" in _FEATURES[name] else []

    def _statement(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            self._bind([*node.targets], node.value)
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value:
            self._bind([node.target], node.value)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            self._bind([node.optional_vars], node.context_expr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            self._imports_hotswap = self._imports_hotswap or "hotswap" in names
        elif isinstance(node, Definition):
            self._definitions.append(node)

    def _note(self, name: str, line: int) -> None:
        for feature in _FEATURES.get(name, ()):
            self._lines[feature].append(line)

    def _bind(self, targets: list[ast.expr], value: ast.expr) -> None:
        while targets:
            target = targets.pop()
            if isinstance(target, ast.Tuple | ast.List):
                targets += target.elts
            elif isinstance(target, ast.Name | ast.Attribute | ast.Starred | ast.Subscript):
                inner = target.value if isinstance(target, ast.Starred | ast.Subscript) else target
                for line in range(value.lineno, (value.end_lineno or value.lineno) + 1):
                    self._bound[line].add(last_name(inner))

    def _models(self) -> set[str]:
        """Return the names that a model may have: those beside a step, and what is assigned from them."""
        lines = {line for feature in _NAMES for line in self._lines[feature]}
        models: set[str] = set()
        new = {name for name, places in self._named.items() if not lines.isdisjoint(places)}
        while new:
            models |= new
            reached = {line for name in new for line in self._named[name]}
            new = {name for line in reached for name in self._bound.get(line, ())}
            new |= {
                argument.arg
                for definition in self._definitions
                if not isinstance(definition, ast.ClassDef)
                and not reached.isdisjoint(self._named[definition.name])
                for argument in definition.args.args
            }
            new -= models
        return models

    def _reaching(self, lines: Iterable[int]) -> list[int]:
        """Add the lines on which a function is named that does it, and so on."""
        waiting, lines = self._definitions, sorted(lines)
        while True:
            found = [
                d for d in waiting if _between(lines, _first_line(d), d.end_lineno or d.lineno)
            ]
            if not found:
                return lines
            waiting = [d for d in waiting if d not in found]
            more = {n for d in found for n in self._named[d.name]} - {d.lineno for d in found}
            lines = sorted({*lines, *more})


def _first_line(node: ast.AST) -> int:
    """Return the line on which a node begins, with its decorators."""
    decorators = getattr(node, "decorator_list", None)
    return int(decorators[0].lineno if decorators else getattr(node, "lineno", 0))


def _between(lines: list[int], first: int, last: int) -> bool:
    at = bisect.bisect_left(lines, first)
    return at < len(lines) and lines[at] <= last
