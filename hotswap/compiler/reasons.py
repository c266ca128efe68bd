"""Reason: why compiled code did not fit a call: whose fault, one sentence, a remedy as code."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

Cause = Literal["swap", "input", "environment", "other model", "unknown"]
SEVERITY: tuple[Cause, ...] = ("swap", "unknown", "other model", "environment", "input")
"""The worst first: the first cause that occurs is the cause of a recompile."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One change that compiled code did not fit; ``raw`` is torch's text of each failed guard."""

    cause: Cause
    message: str
    remedy: str
    modules: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()

    def inside(self, prefix: str) -> Reason:
        """The same with the modules' paths as seen from further outside."""
        return replace(self, modules=tuple(prefix + module for module in self.modules))

    def __str__(self) -> str:
        text = f"{some(self.modules)}: {self.message}" if self.modules else self.message
        return f"{text}; {self.remedy}" if self.remedy else text


def some(names: Collection[str]) -> str:
    """Name two, and count the others."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(list(names)[:2]) + more


def group(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Join the reasons that say the same of different modules; the worst cause comes first."""
    found: dict[tuple[Cause, str, str], list[Reason]] = {}
    for reason in reasons:
        found.setdefault((reason.cause, reason.message, reason.remedy), []).append(reason)
    joined = [
        Reason(
            *key,
            modules=tuple(sorted({module for one in same for module in one.modules}, key=_natural)),
            raw=tuple(text for one in same for text in one.raw),
        )
        for key, same in found.items()
    ]
    return tuple(sorted(joined, key=lambda reason: SEVERITY.index(reason.cause)))


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort ``layers.10`` behind ``layers.2``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]
