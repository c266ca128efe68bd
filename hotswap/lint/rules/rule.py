"""What a rule is, and the registry of all of them."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from hotswap.findings import RULES as NAMES
from hotswap.lint.typestate import Event, Facts, Problem, Step

FINE: Final = "fine"
"""On one path the model is fine, so nothing is said about this place."""
Outcome: TypeAlias = Problem | Literal["fine"] | None
Check: TypeAlias = Callable[[Event], Outcome]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its code, what it looks at, and whether it is on unless it is asked for."""

    code: str
    kinds: tuple[Step, ...]
    check: Check
    default: bool

    @property
    def name(self) -> str:
        """The kebab-case name."""
        return NAMES[self.code]

    @property
    def documentation(self) -> str:
        """What the rule reports, why it matters, and an example of bad and good code."""
        return inspect.getdoc(self.check) or ""


RULES: dict[str, Rule] = {}
"""Every rule by its code, in the order in which they look at an event."""


def rule(code: str, *kinds: Step, default: bool = True) -> Callable[[Check], Check]:
    """Register a rule for events of these kinds."""

    def register(check: Check) -> Check:
        RULES[code] = Rule(code, kinds, check, default)
        return check

    return register


def table() -> str:
    """Return the rules as a Markdown table, for the documentation."""
    rows = ["| code | name | what it reports | on |", "|---|---|---|---|"]
    for code in sorted(RULES):
        told = RULES[code].documentation.split("\n\n", 1)[0].replace("\n", " ")
        on = "yes" if RULES[code].default else "with `--select`"
        rows.append(f"| {code} | {RULES[code].name} | {told} | {on} |")
    return "\n".join(rows)


@functools.cache
def rules_on(kind: str) -> list[Rule]:
    """Return the rules that look at events of this kind."""
    return [rule for rule in RULES.values() if kind in rule.kinds]


def seen(facts: Facts) -> tuple[tuple[ast.AST, str], ...]:
    """Return where the model was compiled and prepared, for a finding to name."""
    steps = ((facts.compiled, "compiled here"), (facts.prepared, "prepared here"))
    return tuple((step.where, told) for step, told in steps if step)
