"""Which lines of a program can matter: most of a file does nothing to a model."""

from __future__ import annotations

import ast
import bisect
import re
from typing import Any, Literal

from hotswap.lint.apis.methods import METHODS
from hotswap.lint.interpreter.objects import last_name

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Feature = Literal["make", "swap", "compile", "change", "run"]
_MAKES = {"from_pretrained", "from_single_file", "from_pipe", "get_peft_model"}
_COMPILES = {"compile", "compile_repeated_blocks", "optimize"}
_SCALES = {"scale_layer", "scaling", "set_scale", "unscale_layer"}
_NAMES: dict[Feature, set[str]] = {
    "make": _MAKES,
    "swap": {
        "enable_lora_hotswap", "enable_peft_hotswap", "hotswap_adapter",
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
_RUNS = re.compile(
    r"(?:pipe\w*|model\w*|unet|transformer|compiled\w*|generate|forward)\(|_orig_mod"
)
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
_NEWLINE = re.compile("\n")


class Relevance:
    """The lines that matter, by what they do to models; the callers of a function do what it does."""

    def __init__(self, tree: ast.Module, text: str) -> None:
        self._lines: dict[Feature, list[int]] = {feature: [] for feature in (*_NAMES, "run")}
        self._named: dict[str, list[int]] = {}
        """Name → the lines of code on which it stands; not those of comments and docstrings."""
        definitions = self._read(tree)
        lines = self._lines
        self.applies = bool(lines["swap"] or (lines["compile"] and lines["change"]))
        """Whether any rule can apply to what the program calls."""
        if self.applies:
            self._spread(definitions, text)

    def touches(self, node: ast.AST, *features: Feature) -> bool:
        """Tell whether the node's lines do any of these things; with no feature, anything at all."""
        if isinstance(node, ast.Module):
            return any(self._lines[f] for f in features)
        first = getattr(node, "lineno", 0)
        last = getattr(node, "end_lineno", 0) or first
        return any(_between(self._lines[f], first, last) for f in features or self._lines)

    def _read(self, tree: ast.Module) -> list[Definition]:
        definitions: list[Definition] = []
        own: list[int] = []
        imported = False
        named = self._named
        waiting: list[Any] = [tree]
        while waiting:  # what ast.walk does, in a third of the time
            node = waiting.pop()
            if node.__class__ is ast.Name:
                named.setdefault(node.id, []).append(node.lineno)
                continue
            if node.__class__ in _LEAVES:
                continue
            for inside in node.__dict__.values():
                if inside.__class__ is list:
                    waiting += inside
                elif inside.__class__ not in _LEAVES:
                    waiting.append(inside)
            if isinstance(node, ast.Call):
                name = last_name(node.func)
                self._note(name, node.lineno)
                own += [node.lineno] if name in _OWN else []
                if "change" in _FEATURES.get(name, ()) and any(
                    keyword.arg == "hotswap" for keyword in node.keywords
                ):
                    self._lines["swap"].append(node.lineno)
            elif isinstance(node, ast.Attribute):
                named.setdefault(node.attr, []).append(node.end_lineno or node.lineno)
                self._note(node.attr, node.lineno)
            elif isinstance(node, ast.alias):
                imported = imported or node.name == "hotswap"
            elif isinstance(node, ast.ImportFrom):
                imported = imported or node.module == "hotswap"
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                definitions.append(node)
        self._lines["swap"] += own if imported else ()
        return definitions

    def _note(self, name: str, line: int) -> None:
        for feature in _FEATURES.get(name, ()):
            self._lines[feature].append(line)

    def _spread(self, definitions: list[Definition], text: str) -> None:
        starts = [0, *(m.end() for m in _NEWLINE.finditer(text))]
        self._lines["run"] = [bisect.bisect_right(starts, m.start()) for m in _RUNS.finditer(text)]
        for feature, lines in self._lines.items():
            self._lines[feature] = _reaching(sorted(lines), definitions, self._named)


def _reaching(
    lines: list[int], definitions: list[Definition], places: dict[str, list[int]]
) -> list[int]:
    """Add the lines on which a function is named that does it, and so on."""
    waiting = definitions
    while True:
        found = [d for d in waiting if _between(lines, d.lineno, d.end_lineno or d.lineno)]
        if not found:
            return lines
        waiting = [d for d in waiting if d not in found]
        more = {n for d in found for n in places.get(d.name, ())} - {d.lineno for d in found}
        lines = sorted({*lines, *more})


def _between(lines: list[int], first: int, last: int) -> bool:
    at = bisect.bisect_left(lines, first)
    return at < len(lines) and lines[at] <= last
