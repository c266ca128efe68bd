"""Which lines of a program can matter: most of a file does nothing to a model."""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

from hotswap.lint.apis.classes import kind_made_by
from hotswap.lint.apis.methods import CALLS, METHODS
from hotswap.lint.interpreter.fixtures import fixture_name
from hotswap.lint.interpreter.names import CALLS_ITS_ARGUMENT, FACTORIES, MUTATES
from hotswap.lint.interpreter.names import imported as imported_names
from hotswap.lint.interpreter.objects import last_name
from hotswap.lint.outline import (
    Definition,
    Outline,
    between,
    first_line,
    given,
    matched,
    name_of,
    root,
    sources,
)

Feature = Literal["make", "swap", "compile", "change", "run"]
_MAKES = {*FACTORIES, "get_peft_model"}
_COMPILES = {
    "aot_compile", "aoti_compile_and_package", "compile", "compile_repeated_blocks", "export", "optimize",
}  # fmt: skip
_SCALES = {"scale_layer", "set_scale", "unscale_layer"}
_NAMES: dict[Feature, set[str]] = {
    "make": _MAKES,
    "swap": {
        "AdapterBank", "enable_lora_hotswap", "enable_peft_hotswap", "hotswap_adapter",
        "hotswap_adapter_from_state_dict", "prepare_model_for_compiled_hotswap",
    },
    "compile": _COMPILES,
    "change": (METHODS.keys() | _MAKES | _SCALES | {"inject_adapter_in_model"})
    - (_COMPILES | {"get_base_model", "modules", "named_modules", "save_pretrained"}),
}  # fmt: skip
_FEATURES: dict[str, list[Feature]] = {
    name: [feature for feature in _NAMES if name in _NAMES[feature]]
    for name in set().union(*_NAMES.values())
}
_OWN = frozenset({"load", "prepare", "swap"})
_LEAVES_PROGRAM = ("abort", "error", "exit", "_exit", "fail", "quit", "skip")
MOST_OF_SMALL = 8
"""Lines up to which a function is run for what it returns."""


class Relevance:
    """The lines that matter, by what they do to models; the callers of a function do what it does."""

    def __init__(self, tree: ast.Module) -> None:
        outline = self.outline = Outline(tree)
        self.models: set[str] = set()
        """The names that a model may have."""
        self.does: set[Feature] = set()
        """What is done in the module, and in those that it imports."""
        self._imported = False
        """Whether other modules may need the names of this one."""
        self.outside: dict[str, set[Feature]] = {}
        """What is defined in other modules of the program → what it does."""
        steps = [
            (attribute.attr, attribute.lineno)
            for attribute in outline.attributes
            if attribute.attr in _FEATURES and getattr(attribute.value, "id", "") != "re"
        ]
        for name in _FEATURES.keys() & outline.calls.keys():
            direct = (call for call in outline.calls[name] if isinstance(call.func, ast.Name))
            steps += [(name, call.lineno) for call in direct]
        self._lines: dict[Feature, list[int]] = {feature: [] for feature in (*_NAMES, "run")}
        for name, line in steps:
            for feature in _FEATURES[name]:
                self._lines[feature].append(line)
        self._lines["swap"] += self._swaps()

    def _swaps(self) -> list[int]:
        """Return the lines of loads that are told to hot-swap, and of hotswap's own functions."""
        calls = self.outline.calls
        loads = [call for name in _NAMES["change"] & calls.keys() for call in calls[name]]
        swaps = [
            call
            for call in loads
            if len(call.args) > 2 or any(k.arg == "hotswap" for k in call.keywords)
        ]
        for node in self.outline.imports:
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            if "hotswap" in names:
                return [c.lineno for c in (*swaps, *(c for name in _OWN for c in calls[name]))]
        return [call.lineno for call in swaps]

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
                self._lines[feature] += self.outline.named.get(name, ())
        self._imported = imported
        if imported or self.applies:
            self._spread(imported=imported)

    @property
    def applies(self) -> bool:
        """Whether any rule can apply to what the program calls, here or in what it imports."""
        own = any(self._lines[feature] for feature in ("swap", "compile", "change"))
        return own and ("swap" in self.does or self.does >= {"compile", "change"})

    @property
    def exports(self) -> dict[str, set[Feature]]:
        """What the definitions of the module do, by their names."""
        found = dict(self.outside)
        for definition in self.outline.definitions:
            features = {f for f in self._lines if self.touches(definition, f)}
            if features:
                found[definition.name] = found.get(definition.name, set()) | features
        return found

    def touches(self, node: ast.AST, *features: Feature) -> bool:
        """Tell whether the node's lines do any of these things; with no feature, anything at all."""
        if isinstance(node, ast.Module):
            return any(self._lines[f] for f in features)
        first = first_line(node)
        last = getattr(node, "end_lineno", 0) or first
        if not features:
            return between(self._steps, first, last)
        return any(between(self._lines[f], first, last) for f in features)

    def idle(self, node: ast.stmt) -> bool:
        """Tell whether a simple statement does nothing to a model, nor to what a step or condition needs."""
        if between(self._busy, node.lineno, node.end_lineno or node.lineno):
            return False
        if self._imported and not node.col_offset and isinstance(node, ast.Assign | ast.AnnAssign):
            return False
        if isinstance(node, ast.Expr | ast.Assert):
            call = isinstance(node, ast.Assert) or isinstance(node.value, ast.Call)
            return call and not self.touches(node)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        names = {last_name(t) for t in targets if isinstance(t, ast.Name | ast.Attribute)}
        idle = len(names) == len(targets) and names.isdisjoint(self._needed)
        return idle and not self.touches(node)

    def fills(self, name: str) -> bool:
        """Tell whether something is kept in what has that name, as an attribute or an element."""
        return name in self.outline.filled

    def keeps(self, node: ast.stmt) -> bool:
        """Tell whether a function sets an attribute or a global name."""
        lines = range(first_line(node), (node.end_lineno or node.lineno) + 1)
        return any(line in self.outline.kept for line in lines)

    def inert(self, node: ast.AST) -> bool:
        """Tell whether a statement does nothing to models, nor to what steps and conditions need."""
        first, last = first_line(node), getattr(node, "end_lineno", None) or 0
        return not between(self._busy, first, last) and not self.touches(node)

    def negligible(self, node: ast.AST) -> bool:
        """Tell whether a function is inert, and too long to be run for what it returns."""
        first, last = first_line(node), getattr(node, "end_lineno", None) or 0
        return last - first >= MOST_OF_SMALL and self.inert(node)

    def _spread(self, *, imported: bool) -> None:
        """Let the callers of a function do what it does; find the lines of models and of what is needed.

        What classes of other modules do in the place of an imported method that does nothing can matter.
        """
        self.outline.complete()
        lines = self._lines
        for element in self.outline.elements:
            lines["change"] += [element.lineno] if last_name(element.value) == "scaling" else []
        for name in _FEATURES.keys() & self.outline.given.keys():  # a method under another name
            for alias in self._names_of(name) - {name}:
                for feature in _FEATURES[name]:
                    lines[feature] += self.outline.named[alias]
        for feature in _NAMES:
            lines[feature] = self._reaching(lines[feature])
        handed = self._handed_over()
        for feature in _NAMES if handed else ():
            if any(self.touches(d, feature) for d in handed):
                lines[feature] = self._reaching([*lines[feature], *self._calls_of_values()])
        models = self.models = self._models()
        names = models | CALLS | CALLS_ITS_ARGUMENT.keys()
        runs = [call.lineno for name in names for call in self.outline.calls.get(name, ())]
        lines["run"] = self._reaching([*runs, *self.outline.named["_orig_mod"]])
        hooks = {
            line
            for d in self.outline.definitions
            if imported and _is_hook(d)
            for line in self.outline.named[d.name]
        }
        if imported:  # methods that only derived classes have
            own_names = {d.name for d in self.outline.definitions}
            hooks |= {
                call.lineno
                for name, calls in self.outline.calls.items()
                if name not in own_names
                for call in calls
                if root(call.func) == "self" and isinstance(call.func, ast.Attribute)
            }
        made = self.outline.named["__new__"]
        self._steps = sorted(hooks.union(made, *lines.values()))
        self._needed = self._needed_names()
        own = {line for name in models for line in self.outline.named[name]}
        own |= {call.lineno for name in MUTATES for call in self.outline.calls.get(name, ())}
        own.update(hooks, made)
        own |= {n for n, names in self.outline.kept.items() if not names.isdisjoint(self._needed)}
        leaving = [
            call.lineno for name in _LEAVES_PROGRAM for call in self.outline.calls.get(name, ())
        ]
        self._busy = sorted(own.union(self._reaching(leaving)))
        """The lines on which models are named, containers are changed, or the program is left."""

    def _models(self) -> set[str]:
        """Return the names that a model may have: of what steps are done to, and what is assigned from it."""
        makes = _MAKES | _COMPILES
        makers = {f"{name}()" for name in self.outline.calls if name in makes or kind_made_by(name)}
        makers |= {f"{d.name}()" for d in self.outline.definitions if self.touches(d, "make")}
        makers |= {f"{name}()" for name, features in self.outside.items() if "make" in features}
        new = {
            target for maker in makers for target in self.outline.given.get(maker, ())
        } | self.models
        new |= {  # what tests are given is called as the fixture that makes it
            fixture
            for d in self.outline.definitions
            if f"{d.name}()" in makers and (fixture := fixture_name(d))
        }
        for name in (name for name in _FEATURES if name not in _MAKES):
            for call in self.outline.calls.get(name, ()):
                new.update(*(sources(each) for each in given(call)))
        parameters = {
            d.name: [a.arg for a in d.args.args]
            for d in self.outline.definitions
            if not isinstance(d, ast.ClassDef)
        }
        passed: dict[str, set[str]] = defaultdict(set)
        for name, own in parameters.items():
            for call in self.outline.calls.get(name, ()):
                for argument, parameter in matched(call, own):
                    for source in sources(argument):
                        passed[source].add(parameter)
        models: set[str] = set()
        while new:
            models |= new
            reached = (
                *(self.outline.given.get(n, ()) for n in new),
                *(passed.get(n, ()) for n in new),
            )
            new = set().union(*reached) - models
        return (models | {"scaling"}) - {"self", "cls"}

    def _needed_names(self) -> set[str]:
        """Return the names that steps and conditions depend on, directly or through other names."""
        names_on: dict[int, list[str]] = defaultdict(list)
        for name, lines in self.outline.named.items():
            for line in lines:
                names_on[line].append(name)
        bound: dict[str, list[int]] = defaultdict(list)
        for line, names in self.outline.bound.items():
            for name in names:
                bound[name].append(line)
        reached = self.outline.asked.union(self._steps)
        needed: set[str] = set()
        while reached:
            new = {name for line in reached for name in names_on.get(line, ())} - needed
            needed |= new
            reached = {line for name in new for line in bound.get(name, ())}
        return needed

    def _handed_over(self) -> list[Definition]:
        """Return the functions that are arguments of others, and what makes instances of a class callable."""
        calls = (call for calls in self.outline.calls.values() for call in calls)
        handed = {a.id for call in calls for a in call.args if isinstance(a, ast.Name)}
        functions = (d for d in self.outline.definitions if not isinstance(d, ast.ClassDef))
        return [d for d in functions if d.name == "__call__" or d.name in handed]

    def _calls_of_values(self) -> list[int]:
        """Return the lines on which something is called that is no function of a module or library."""
        outline = self.outline
        known = {"cls", *(d.name for d in outline.definitions)}
        known |= {name for node in outline.imports for name, _ in imported_names(node)}
        return [
            call.lineno
            for name, calls in outline.calls.items()
            if name not in known and not hasattr(builtins, name)
            for call in calls
            if isinstance(call.func, ast.Name)
        ]

    def _names_of(self, name: str) -> set[str]:
        """Return the names that something of that name is given, directly or in a container."""
        names, new = {name}, {name}
        while new:
            new = set().union(*(self.outline.given.get(n, ()) for n in new)) - names
            names |= new
        return names

    def _reaching(self, lines: Iterable[int]) -> list[int]:
        """Add the lines on which a function is named that does it, and so on."""
        bound = [each for each in self.outline.lambdas if name_of(each) in self.outline.given]
        waiting, lines = [*self.outline.definitions, *bound], sorted(lines)
        while True:
            found = [d for d in waiting if between(lines, first_line(d), d.end_lineno or d.lineno)]
            if not found:
                return lines
            waiting = [d for d in waiting if d not in found]
            names = {name for d in found for name in self._names_of(name_of(d))}
            more = {n for name in names for n in self.outline.named[name]}
            more -= {d.lineno for d in found}
            lines = sorted({*lines, *more})


def _is_hook(node: Definition) -> bool:
    """Tell whether a method does nothing: what derived classes do in its place is not known here."""
    last = node.body[-1]
    nothing = isinstance(last, ast.Pass | ast.Raise) or (
        isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant)
    )
    return nothing and len(node.body) <= 2 and not isinstance(node, ast.ClassDef)
