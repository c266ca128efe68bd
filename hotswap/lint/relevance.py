"""Which lines of a program can matter: most of a file does nothing to a model."""

from __future__ import annotations

import ast
import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from hotswap.lint.apis.classes import kind_made_by
from hotswap.lint.apis.methods import CALLS, METHODS
from hotswap.lint.interpreter.objects import last_name

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Feature = Literal["make", "swap", "compile", "change", "run"]
_MAKES = {"from_pretrained", "from_single_file", "from_pipe", "get_peft_model"}
_COMPILES = {"compile", "compile_repeated_blocks", "optimize"}
_SCALES = {"scale_layer", "set_scale", "unscale_layer"}
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
_OWN = frozenset({"load", "prepare", "swap"})
_LEAVES_PROGRAM = ("abort", "error", "exit", "_exit", "fail", "quit", "skip")
_MUTATES = (
    "append", "clear", "extend", "insert", "pop", "remove", "reverse", "setdefault", "sort", "update",
)  # fmt: skip
MOST_OF_SMALL = 8
"""Lines up to which a function is run for what it returns."""
_NOTED = frozenset(
    {
        *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.withitem),
        *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
        *(ast.If, ast.IfExp, ast.While, ast.Return, ast.For, ast.AsyncFor, ast.Match),
        *(ast.match_case, ast.comprehension, ast.Global, ast.Nonlocal),
    }
)
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


class Relevance:
    """The lines that matter, by what they do to models; the callers of a function do what it does."""

    def __init__(self, tree: ast.Module) -> None:
        self._lines: dict[Feature, list[int]] = {feature: [] for feature in (*_NAMES, "run")}
        self._named: dict[str, list[int]] = defaultdict(list)
        """Name → the lines of code on which it stands; not those of comments and docstrings."""
        self._calls: dict[str, list[ast.Call]] = defaultdict(list)
        """Name → its calls."""
        self._bound: dict[int, set[str]] = defaultdict(set)
        """Line of an assignment → the names that it binds."""
        self._from: dict[str, set[str]] = defaultdict(set)
        """Name → the names that are assigned from it; with parentheses, from what it returns."""
        self._kept: dict[int, set[str]] = defaultdict(set)
        """Line of an assignment → the attributes and global names that it sets."""
        self._asked: set[int] = set()
        """The lines of conditions, of what loops go over and of what functions return."""
        self._definitions: list[Definition] = []
        self._imports_hotswap = False
        self.takes_steps = False
        """Whether the module itself does anything to a model but make one."""
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.models: set[str] = set()
        """The names that a model may have."""
        self.does: set[Feature] = set()
        """What is done in the module, and in those that it imports."""
        self._read(tree)
        self.outside: dict[str, set[Feature]] = {}
        """What is defined in other modules of the program → what it does."""

    def complete(
        self,
        others: Iterable[Relevance] = (),
        aliases: Mapping[str, str] | None = None,
        *,
        imported: bool = False,
    ) -> None:
        """Find out what matters, now that the modules are known that the module imports.

        ``aliases`` are the names under which their definitions are imported. Of a module that is itself
        ``imported`` everything can matter.
        """
        for other in others:
            self.outside |= other.exports
            self.models |= other.models
            self.does |= other.does
        self.does.update(feature for feature, lines in self._lines.items() if lines)
        for name, alias in (aliases or {}).items():
            self.outside |= {alias: self.outside[name]} if name in self.outside else {}
            self.models |= {alias} if name in self.models else set()
        for name, features in self.outside.items():
            for feature in features:
                self._lines[feature] += self._named.get(name, ())
        if imported or self.applies:
            self._spread()

    @property
    def applies(self) -> bool:
        """Whether any rule can apply to what the program calls, here or in what it imports."""
        own = any(self._lines[feature] for feature in ("swap", "compile", "change"))
        return own and ("swap" in self.does or self.does >= {"compile", "change"})

    @property
    def exports(self) -> dict[str, set[Feature]]:
        """What the definitions of the module do, by their names."""
        found = dict(self.outside)
        for definition in self._definitions:
            features = {f for f in self._lines if self.touches(definition, f)}
            if features:
                found[definition.name] = found.get(definition.name, set()) | features
        return found

    def touches(self, node: ast.AST, *features: Feature) -> bool:
        """Tell whether the node's lines do any of these things; with no feature, anything at all."""
        if isinstance(node, ast.Module):
            return any(self._lines[f] for f in features)
        first = _first_line(node)
        last = getattr(node, "end_lineno", 0) or first
        if not features:
            return _between(self._steps, first, last)
        return any(_between(self._lines[f], first, last) for f in features)

    def idle(self, node: ast.stmt) -> bool:
        """Tell whether a simple statement does nothing to a model, nor to what a step or condition needs."""
        if _between(self._busy, node.lineno, node.end_lineno or node.lineno):
            return False
        if isinstance(node, ast.Expr | ast.Assert):
            call = isinstance(node, ast.Assert) or isinstance(node.value, ast.Call)
            return call and not self.touches(node)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        names = {last_name(t) for t in targets if isinstance(t, ast.Name | ast.Attribute)}
        idle = len(names) == len(targets) and names.isdisjoint(self._needed)
        return idle and not self.touches(node)

    def keeps(self, node: ast.stmt) -> bool:
        """Tell whether a function sets an attribute or a global name."""
        lines = range(_first_line(node), (node.end_lineno or node.lineno) + 1)
        return any(line in self._kept for line in lines)

    def inert(self, node: ast.AST) -> bool:
        """Tell whether a statement does nothing to models, nor to what steps and conditions need."""
        first, last = _first_line(node), getattr(node, "end_lineno", None) or 0
        return not _between(self._busy, first, last) and not self.touches(node)

    def negligible(self, node: ast.AST) -> bool:
        """Tell whether a function is inert, and too long to be run for what it returns."""
        first, last = _first_line(node), getattr(node, "end_lineno", None) or 0
        return last - first >= MOST_OF_SMALL and self.inert(node)

    def _read(self, tree: ast.Module) -> None:
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
                if node.attr in _FEATURES and getattr(node.value, "id", "") != "re":
                    self._note(node.attr, node.lineno)
            elif kind is ast.Call:
                self._call(node)
            elif kind in _NOTED:
                self._statement(node)
        for name in _OWN if self._imports_hotswap else ():
            self._lines["swap"] += [call.lineno for call in self._calls[name]]

    def _note(self, name: str, line: int) -> None:
        self.takes_steps = self.takes_steps or name not in _MAKES
        for feature in _FEATURES[name]:
            self._lines[feature].append(line)

    def _call(self, node: ast.Call) -> None:
        name = last_name(node.func)
        self._calls[name].append(node)
        if name in _FEATURES and isinstance(node.func, ast.Name):
            self._note(name, node.lineno)
        swaps = "change" in _FEATURES.get(name, ()) and any(
            k.arg == "hotswap" for k in node.keywords
        )
        self._lines["swap"] += [node.lineno] if swaps else []

    def _statement(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            self._bind([*node.targets], node.value)
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.AugAssign) and node.value:
            self._bind([node.target], node.value)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            self._bind([node.optional_vars], node.context_expr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            self._imports_hotswap = self._imports_hotswap or "hotswap" in names
            self.imports.append(node)
        elif isinstance(node, Definition):
            self._definitions.append(node)
            self._asked.update(range(_first_line(node), node.body[0].lineno))
        elif isinstance(node, ast.Global | ast.Nonlocal):
            self._kept[node.lineno].update(node.names)
        elif isinstance(node, ast.Return):
            self._asked.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        else:
            if isinstance(node, ast.For | ast.AsyncFor):
                self._bind([node.target], node.iter)
            for name in _ASKS:
                asked = getattr(node, name, None)
                if asked is not None:
                    self._asked.update(range(asked.lineno, asked.end_lineno + 1))

    def _bind(self, targets: list[ast.expr], value: ast.expr) -> None:
        lines = range(value.lineno, (value.end_lineno or value.lineno) + 1)
        sources = list(_sources(value))
        while targets:
            target = targets.pop()
            if isinstance(target, ast.Tuple | ast.List):
                targets += target.elts
                continue
            if isinstance(target, ast.Subscript) and last_name(target.value) == "scaling":
                self.takes_steps = True
                self._lines["change"].append(target.lineno)
            name = last_name(
                target.value if isinstance(target, ast.Starred | ast.Subscript) else target
            )
            if not name:
                continue
            for line in lines:
                self._bound[line].add(name)
            for source in sources:
                self._from[source].add(name)
            if not isinstance(target, ast.Name):
                self._kept[target.lineno].add(name)

    def _spread(self) -> None:
        """Let the callers of a function do what it does; find the lines of models and of what is needed."""
        lines = self._lines
        for feature in _NAMES:
            lines[feature] = self._reaching(lines[feature])
        models = self.models = self._models()
        runs = [call.lineno for name in models | CALLS for call in self._calls.get(name, ())]
        lines["run"] = self._reaching([*runs, *self._named["_orig_mod"]])
        self._steps = sorted({line for of_feature in lines.values() for line in of_feature})
        self._needed = self._needed_names()
        own = {line for name in models for line in self._named[name]}
        own |= {call.lineno for name in _MUTATES for call in self._calls.get(name, ())}
        own |= {n for n, names in self._kept.items() if not names.isdisjoint(self._needed)}
        leaving = [call.lineno for name in _LEAVES_PROGRAM for call in self._calls.get(name, ())]
        self._busy = sorted(own.union(self._reaching(leaving)))
        """The lines on which models are named, containers are changed, or the program is left."""

    def _models(self) -> set[str]:
        """Return the names that a model may have: of what steps are done to, and what is assigned from it."""
        makes = _MAKES | _COMPILES
        makers = {f"{name}()" for name in self._calls if name in makes or kind_made_by(name)}
        makers |= {f"{d.name}()" for d in self._definitions if self.touches(d, "make")}
        makers |= {f"{name}()" for name, features in self.outside.items() if "make" in features}
        new = {target for maker in makers for target in self._from.get(maker, ())} | self.models
        for name in (name for name in _FEATURES if name not in _MAKES):
            for call in self._calls.get(name, ()):
                new.update(*(_sources(each) for each in _given(call)))
        parameters = {
            d.name: [a.arg for a in d.args.args]
            for d in self._definitions
            if not isinstance(d, ast.ClassDef)
        }
        passed: dict[str, set[str]] = defaultdict(set)
        for name, own in parameters.items():
            for call in self._calls.get(name, ()):
                for argument, parameter in _matched(call, own):
                    for source in _sources(argument):
                        passed[source].add(parameter)
        models: set[str] = set()
        while new:
            models |= new
            reached = (*(self._from.get(n, ()) for n in new), *(passed.get(n, ()) for n in new))
            new = set().union(*reached) - models
        return (models | {"scaling"}) - {"self", "cls"}

    def _needed_names(self) -> set[str]:
        """Return the names that steps and conditions depend on, directly or through other names."""
        names_on: dict[int, list[str]] = defaultdict(list)
        for name, lines in self._named.items():
            for line in lines:
                names_on[line].append(name)
        bound: dict[str, list[int]] = defaultdict(list)
        for line, names in self._bound.items():
            for name in names:
                bound[name].append(line)
        reached = self._asked.union(self._steps)
        needed: set[str] = set()
        while reached:
            new = {name for line in reached for name in names_on.get(line, ())} - needed
            needed |= new
            reached = {line for name in new for line in bound.get(name, ())}
        return needed

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


def _sources(value: ast.expr) -> Iterator[str]:
    """Yield the names of what an expression can be, as far as models are concerned."""
    if isinstance(value, ast.Name):
        yield value.id
    elif isinstance(value, ast.Attribute):
        yield value.attr
    elif isinstance(value, ast.Subscript | ast.Await | ast.Starred | ast.NamedExpr):
        yield from _sources(value.value)
    elif isinstance(value, ast.Call):
        name = last_name(value.func)
        yield f"{name}()"
        if name not in CALLS:
            for given in _given(value):
                yield from _sources(given) if not isinstance(given, ast.Call) else ()
            if isinstance(value.func, ast.Attribute):
                yield from _sources(value.func.value)
    elif isinstance(value, ast.IfExp):
        yield from (*_sources(value.body), *_sources(value.orelse))
    elif isinstance(value, ast.BoolOp | ast.Dict):
        for each in value.values:
            yield from _sources(each)
    elif isinstance(value, ast.Tuple | ast.List | ast.Set):
        for each in value.elts:
            yield from _sources(each)


def _given(call: ast.Call) -> Iterator[ast.expr]:
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


def _matched(call: ast.Call, parameters: list[str]) -> Iterator[tuple[ast.expr, str]]:
    """Yield each argument with the parameter that it is for."""
    own = parameters[1:] if parameters[:1] in (["self"], ["cls"]) else parameters
    yield from zip(call.args, own, strict=False)
    yield from ((k.value, k.arg) for k in call.keywords if k.arg in own)


def _first_line(node: ast.AST) -> int:
    """Return the line on which a node begins, with its decorators."""
    decorators = getattr(node, "decorator_list", None)
    return int(decorators[0].lineno if decorators else getattr(node, "lineno", 0))


def _between(lines: list[int], first: int, last: int) -> bool:
    at = bisect.bisect_left(lines, first)
    return at < len(lines) and lines[at] <= last
