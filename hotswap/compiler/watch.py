"""CompileLog: what torch.compile did in a scope, and the verdict on it. PYTEST_DONT_REWRITE"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hotswap.compiler.observer import OBSERVER
from hotswap.compiler.reasons import explain
from hotswap.errors import RecompileError


@dataclass(frozen=True, slots=True)
class Compile:
    """One compile: the region compiled, its cause and sentence, torch's own words, seconds."""

    region: str
    cause: str
    sentence: str
    raw: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.region}: {self.sentence}" if self.sentence else self.region


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a scope obeyed; ``vacuous``: no compiled code ran, so nothing was shown."""

    outcome: Literal["passed", "failed", "vacuous"]
    reasons: tuple[str, ...]


class CompileLog:
    """What happened in a scope; reading it inside the scope gives what happened until then.

    An eager miss is a call that found no compiled code and got none: past ``recompile_limit`` torch
    runs eagerly and says nothing.
    """

    def __init__(self) -> None:
        self._compiles: dict[str, list[Compile]] = {}
        self._hits: dict[str, int] = {}
        self._eager_misses: dict[str, int] = {}
        self._resets = 0
        self.problems: list[str] = []

    def _of(self, kind: str) -> list[Compile]:
        OBSERVER.flush()
        return self._compiles.setdefault(kind, [])

    @property
    def first_compiles(self) -> list[Compile]:
        """Code that was compiled for the first time."""
        return self._of("first")

    @property
    def recompiles(self) -> list[Compile]:
        """Code that was compiled again because a guard failed."""
        return self._of("recompile")

    @property
    def backwards(self) -> list[Compile]:
        """Backward graphs that were compiled."""
        return self._of("backward")

    @property
    def failed(self) -> list[Compile]:
        """Compiles that ended in an error."""
        return self._of("failed")

    @property
    def hits(self) -> dict[str, int]:
        """Calls that ran compiled code, per region."""
        return self._hits

    @property
    def eager_misses(self) -> dict[str, int]:
        """Calls that ran eagerly although they should have been compiled, per region."""
        OBSERVER.flush()
        return self._eager_misses

    @property
    def resets(self) -> int:
        """How often ``torch._dynamo.reset()`` was called."""
        OBSERVER.flush()
        return self._resets

    @property
    def total_hits(self) -> int:
        """Calls that ran compiled code."""
        return sum(self._hits.values())

    def verdict(self, *, max_recompiles: int = 0, allow_first_compiles: bool = False) -> Verdict:
        """Judge the scope; a pass needs at least one hit, whatever else is allowed."""
        reasons = []
        if len(self.recompiles) > max_recompiles:
            reasons += [f"recompiled {found}" for found in self.recompiles]
        if not allow_first_compiles:
            reasons += [
                f"compiled {found} for the first time inside the scope; warm up before it"
                for found in self.first_compiles
            ]
        reasons += [
            f"{count} call(s) to {region} found no compiled code and ran eagerly "
            "(recompile limit reached, or torch.compiler.set_stance)"
            for region, count in self.eager_misses.items()
        ]
        reasons += [f"compilation of {found} failed: {found.raw}" for found in self.failed]
        if self.resets:
            reasons.append("torch._dynamo.reset() was called inside the scope")
        reasons += self.problems
        if reasons:
            return Verdict("failed", tuple(reasons))
        if not self.total_hits:
            return Verdict(
                "vacuous",
                ("no compiled code ran a second time; call the compiled model inside the scope",),
            )
        return Verdict("passed", ())

    def as_dict(self) -> dict[str, int]:
        """Counts, as JSON scalars."""
        return {
            "first_compiles": len(self.first_compiles),
            "recompiles": len(self.recompiles),
            "hits": self.total_hits,
            "eager_misses": sum(self.eager_misses.values()),
            "failed": len(self.failed),
            "resets": self.resets,
        }


class _Ear:
    """Writes what the observer tells into a log."""

    def __init__(self, log: CompileLog, names: dict[str, str]) -> None:
        self.log = log
        self.names = names

    def heard_compile(self, kind: str, region: str, record: Any) -> None:
        raw = record.recompile_reason or record.fail_reason or ""
        cause, sentence = explain(record.recompile_reason) if record.recompile_reason else ("", "")
        seconds = (record.duration_us or 0) / 1e6
        found = Compile(self.names.get(region, region), cause, sentence, raw, seconds)
        self.log._compiles.setdefault(kind, []).append(found)

    def heard_hit(self, region: str) -> None:
        name = self.names.get(region, region)
        self.log._hits[name] = self.log._hits.get(name, 0) + 1

    def heard_eager(self, region: str) -> None:
        name = self.names.get(region, region)
        self.log._eager_misses[name] = self.log._eager_misses.get(name, 0) + 1

    def heard_reset(self) -> None:
        self.log._resets += 1

    def heard_problem(self, text: str) -> None:
        self.log.problems.append(text)


@contextmanager
def watch_compiles(*models: nn.Module, **named_models: nn.Module) -> Iterator[CompileLog]:
    """Record what torch.compile does in the process until the scope ends.

    Watches nest. ``named_models`` give the regions of these models names. Raises CannotObserveError on
    a torch whose signals are missing.
    """
    del models  # everything in the process is seen; naming models documents the intent
    names = {
        type(getattr(model, "_orig_mod", model)).__name__: name
        for name, model in named_models.items()
    }
    log = CompileLog()
    ear = _Ear(log, names)
    OBSERVER.add(ear)
    try:
        yield log
    finally:
        OBSERVER.remove(ear)


@contextmanager
def forbid_recompiles(
    *models: nn.Module,
    max_recompiles: int = 0,
    allow_first_compiles: bool = False,
    **named_models: nn.Module,
) -> Iterator[CompileLog]:
    """Raise RecompileError at the end of a scope that recompiled, ran eagerly or ran nothing compiled."""
    with watch_compiles(*models, **named_models) as log:
        yield log
    verdict = log.verdict(max_recompiles=max_recompiles, allow_first_compiles=allow_first_compiles)
    if verdict.outcome != "passed":
        raise RecompileError(f"{verdict.outcome}: {'; '.join(verdict.reasons)}")
