"""Finding: what is wrong, where, why it matters and what to do; and the registry of codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

RULES: dict[str, str] = {
    "HSW001": "adapter-not-found",
    "HSW002": "config-missing",
    "HSW003": "config-invalid",
    "HSW004": "weights-missing",
    "HSW005": "weights-invalid",
    "HSW006": "pickle-weights",
    "HSW007": "special-file",
    "HSW008": "link-out-of-folder",
    "HSW009": "changed-while-read",
    "HSW101": "not-lora",
    "HSW102": "unsupported-feature",
    "HSW103": "incomplete-pair",
    "HSW104": "rank-mismatch",
    "HSW105": "rank-above-plan",
    "HSW106": "module-outside-plan",
    "HSW107": "other-base-model",
    "HSW108": "unexpected-tensor",
    "HSW109": "dtype-not-floating",
    "HSW110": "not-finite",
    "HSW111": "pattern-matches-nothing",
    "HSW112": "module-not-in-base",
    "HSW113": "other-base-name",
    "HSW114": "names-collide",
    "HSW115": "mixed-dtypes",
    "HSW116": "identical-adapters",
    "HSW117": "all-zero",
    "HSW118": "targets-differ-from-weights",
    "HSW119": "unknown-config-field",
    "HSW120": "class-without-head",
    "HSW200": "not-analysed",
    "HSW201": "prepare-after-compile",
    "HSW202": "prepare-before-load",
    "HSW203": "enable-after-load",
    "HSW204": "target-rank-too-small",
    "HSW205": "swap-unprepared-on-compiled",
    "HSW206": "load-without-hotswap-on-compiled",
    "HSW207": "hotswap-without-name",
    "HSW208": "hotswap-unknown-name",
    "HSW209": "first-load-is-swap",
    "HSW210": "float-into-scaling",
    "HSW211": "swap-while-merged",
    "HSW212": "adapter-set-changed-on-compiled",
    "HSW213": "enable-on-peft-model",
    "HSW214": "grad-mode-mismatch",
    "HSW215": "compile-in-loop",
    "HSW216": "name-already-loaded",
    "HSW217": "package-of-one-adapter",
    "HSW291": "adapter-toggle-on-compiled",
    "HSW292": "swap-on-compiled-of-unknown-history",
    "HSW293": "unused-noqa",
    "HSW301": "scaling-constant",
    "HSW302": "compiled-rank-too-small",
    "HSW303": "no-compiled-layer",
    "HSW304": "no-variant-fits",
    "HSW305": "recompile-limit-near",
    "HSW306": "shared-code",
    "HSW307": "hook-ignored",
    "HSW308": "nothing-compiled",
    "HSW311": "package-unreadable",
    "HSW312": "package-without-plan",
    "HSW313": "constant-missing",
    "HSW314": "constants-folded",
    "HSW315": "constants-frozen",
    "HSW316": "constant-differs",
}
"""Stable code → kebab name.

``HSW0xx`` unreadable, ``HSW1xx`` adapter files, ``HSW2xx`` source code, ``HSW3xx`` compiled code
and exported models.
"""

WARNINGS = frozenset(
    {
        "HSW008",
        "HSW111",
        "HSW113",
        "HSW114",
        "HSW115",
        "HSW116",
        "HSW117",
        "HSW118",
        "HSW119",
        "HSW120",
        "HSW200",
    }
)
"""Codes of what a swap does not refuse, but what is seldom meant; and of what could not be judged."""
Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Related:
    """A place that explains a finding: where the model was compiled, where it was prepared."""

    where: str
    line: int
    column: int
    message: str


def printable(words: str) -> str:
    """Replace what a terminal would obey and XML has no place for: control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in words)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``where`` is a path, with the module, tensor or notebook cell after ``::``.

    Findings in source code also carry the place in the text, from 1, and the line that stands there.
    They are ordered by path, line, column and code.
    """

    where: str
    code: str
    message: str
    remedy: str
    line: int | None = None
    column: int | None = None
    end_line: int | None = None
    end_column: int | None = None
    snippet: str = ""
    related: tuple[Related, ...] = ()

    def __lt__(self, other: Finding) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, int, int, str, str, str]:
        place = (self.where, self.line or 0, self.column or 0)
        return (*place, self.code, self.message, self.remedy)

    def __post_init__(self) -> None:
        if self.code not in RULES:
            raise ValueError(f"unknown finding code {self.code!r}; known: {', '.join(RULES)}")

    @property
    def name(self) -> str:
        """The rule's kebab-case name."""
        return RULES[self.code]

    @property
    def severity(self) -> Severity:
        """``warning`` for what a swap does not refuse."""
        return "warning" if self.code in WARNINGS else "error"

    def as_dict(self) -> dict[str, Any]:
        """JSON form; without a place in a text, the four texts, the name and the severity."""
        told = asdict(self)
        if self.line is None:
            told = {key: told[key] for key in ("where", "code", "message", "remedy")}
        return {**told, "name": self.name, "severity": self.severity}

    @property
    def place(self) -> str:
        """The path, with line and column where they are known."""
        return self.where if self.line is None else f"{self.where}:{self.line}:{self.column}"

    def __str__(self) -> str:
        return f"{self.place}: {self.code} {self.message}; {self.remedy}"


def has_code(findings: Iterable[Finding], code: str) -> bool:
    """Tell whether any of the findings carries the code."""
    return any(f.code == code for f in findings)


def chosen(select: Sequence[str], ignore: Sequence[str]) -> frozenset[str]:
    """Return the codes that apply; raises ValueError for one that does not exist."""
    wanted = {code for word in select for code in _matching(word)} if select else set(RULES)
    return frozenset(wanted - {code for word in ignore for code in _matching(word)})


def _matching(word: str) -> list[str]:
    found = [code for code, name in RULES.items() if name == word or code.startswith(word.upper())]
    if not found or not word:
        raise ValueError(f"no rule matches {word!r}; `hotswap explain` lists the codes and names")
    return found
