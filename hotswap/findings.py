"""Finding: what is wrong, where, why it matters and what to do; and the registry of codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

RULES: dict[str, str] = {
    "HSW001": "adapter-not-found",
    "HSW002": "config-missing",
    "HSW003": "config-invalid",
    "HSW004": "weights-missing",
    "HSW005": "weights-invalid",
    "HSW006": "pickle-weights",
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
    "HSW301": "scaling-constant",
    "HSW302": "compiled-rank-too-small",
    "HSW303": "no-compiled-layer",
    "HSW304": "no-variant-fits",
    "HSW305": "recompile-limit-near",
    "HSW306": "shared-code",
    "HSW307": "hook-ignored",
    "HSW308": "nothing-compiled",
}
"""Stable code → kebab name. ``HSW0xx`` unreadable, ``HSW1xx`` adapter files, ``HSW3xx`` compiled code."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong. ``where`` is a path, with the module or tensor after ``::``."""

    where: str
    code: str
    message: str
    remedy: str

    def __post_init__(self) -> None:
        if self.code not in RULES:
            raise ValueError(f"unknown finding code {self.code!r}; known: {', '.join(RULES)}")

    @property
    def name(self) -> str:
        """The rule's kebab-case name."""
        return RULES[self.code]

    def as_dict(self) -> dict[str, str]:
        """JSON form."""
        return {**asdict(self), "name": self.name}

    def __str__(self) -> str:
        return f"{self.where}: {self.code} {self.message}; {self.remedy}"


def has_code(findings: Iterable[Finding], code: str) -> bool:
    """Tell whether any of the findings carries the code."""
    return any(f.code == code for f in findings)
