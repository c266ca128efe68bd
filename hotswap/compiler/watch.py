"""CompileLog: what torch.compile did in a scope, and the verdict on it. PYTEST_DONT_REWRITE"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import nn

from hotswap.compiler.listener import Compile, Kind, Listener
from hotswap.compiler.observer import OBSERVER
from hotswap.compiler.reasons import group, some
from hotswap.compiler.regions import Names
from hotswap.errors import RecompileError


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a scope obeyed; ``vacuous``: no compiled code ran, so nothing was shown.

    ``notes`` are recompiles that no swap caused: the warm-up does not match these calls. ``shown`` says
    what a pass rests on.
    """

    outcome: Literal["passed", "failed", "vacuous"]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    shown: str = ""

    def __str__(self) -> str:
        return "\n  ".join([f"{self.outcome}: {self.shown}".rstrip(), *self.reasons, *self.notes])


class Counts(NamedTuple):
    """Calls per region; and why some that ran compiled code show nothing."""

    hits: dict[str, int]
    eager_misses: dict[str, int]
    shown_nothing: dict[str, str]


class CompileLog(Listener):
    """What happened in a scope; reading it inside the scope gives what happened until then.

    An eager miss is a call that found no compiled code and got none: past ``recompile_limit`` torch
    runs eagerly and says nothing. Regions are the paths of modules, or functions.
    """

    def __init__(self, names: Names) -> None:
        super().__init__(names)
        self._before = OBSERVER.counts()
        self._counts: Counts | None = None  # once the scope is over

    def close(self) -> None:
        """Count for the last time, and let go of the models."""
        self._counts = self._count()
        super().close()

    def _count(self) -> Counts:
        """Count since the scope began; a hit of what holds no graph, or no model of these, shows nothing."""
        if self._counts is not None:
            return self._counts
        hits: Counter[str] = Counter()
        eager: Counter[str] = Counter()
        nothing: dict[str, str] = {}
        for region, now in OBSERVER.counts().items():
            if (place := self._place(region)) is None:
                continue
            before = self._before.get(region, (0, 0, 0))
            hit, missed, empty = (new - old for new, old in zip(now, before, strict=True))
            if hit and self.asks(region):
                nothing[place.label] = "calls none of the models"
                hit = 0
            elif empty and not hit:
                nothing[place.label] = "holds no graph, so all of it runs eagerly"
            hits[place.label] += hit
            eager[place.label] += missed
        return Counts(dict(+hits), dict(+eager), nothing)

    def _of(self, kind: Kind) -> list[Compile]:
        OBSERVER.flush()
        return self._compiles[kind]

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
        return self._count().hits

    @property
    def total_hits(self) -> int:
        """Calls that ran compiled code."""
        return sum(self.hits.values())

    @property
    def eager_misses(self) -> dict[str, int]:
        """Calls that ran eagerly although they should have been compiled, per region."""
        return self._count().eager_misses

    @property
    def graph_breaks(self) -> list[str]:
        """Where the graph of a compiled region breaks, as far as it was compiled in the scope."""
        OBSERVER.flush()
        return list(self._graph_breaks)

    @property
    def cudagraph_records(self) -> int:
        """How many CUDA graphs were recorded, whatever model they belong to."""
        return self.cudagraphs_heard

    @property
    def resets(self) -> int:
        """How often ``torch._dynamo.reset()`` was called."""
        OBSERVER.flush()
        return self.resets_heard

    @property
    def problems(self) -> list[str]:
        """What could not be observed, and hooks that compiled code ignores."""
        OBSERVER.flush()
        return list(self._problems)

    @property
    def seconds(self) -> float:
        """Seconds spent compiling."""
        OBSERVER.flush()
        return sum(found.seconds for same in self._compiles.values() for found in same)

    def verdict(
        self,
        *,
        max_recompiles: int = 0,
        allow_first_compiles: bool = False,
        any_cause: bool = False,
    ) -> Verdict:
        """Judge the scope; a pass needs hits, whatever else is allowed.

        A recompile that no swap caused is a note, unless ``any_cause`` is set; but where it was all
        that a region did, nothing is shown, and the verdict is vacuous.
        """
        blamed = [found for found in self.recompiles if any_cause or found.swapped]
        others = [found for found in self.recompiles if not (any_cause or found.swapped)]
        notes = tuple(f"the warm-up does not match this call: {t}" for t in _summaries(others))
        reasons = []
        if len(blamed) > max_recompiles:
            reasons += [f"recompiled {text}" for text in _summaries(blamed)]
        if not allow_first_compiles:
            reasons += [
                f"compiled {found} for the first time inside the scope; warm up before it"
                for found in self.first_compiles
            ]
        reasons += self._ran_eagerly()
        reasons += [f"compilation of {found.region} failed: {found.raw}" for found in self.failed]
        if self.resets:
            reasons.append("torch._dynamo.reset() was called inside the scope")
        reasons += self.problems
        if reasons:
            return Verdict("failed", tuple(reasons), notes)
        hits = self.hits
        if not hits or any(found.region not in hits for found in others):
            which = " of the models" if self._names else ""
            nothing = [
                f"the compiled code of {name} {why}"
                for name, why in self._count().shown_nothing.items()
            ]
            nothing.append(
                f"no compiled code{which} ran a second time; call the compiled model inside the scope"
            )
            return Verdict("vacuous", notes or tuple(nothing))
        shown = f"{self.total_hits} call(s) ran compiled code in {some(hits)}"
        return Verdict("passed", (), notes, shown)

    def _ran_eagerly(self) -> list[str]:
        misses: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for region, count in self.eager_misses.items():
            misses[self._why.get(region, "torch skipped the frame")][region] = count
        return [
            f"{sum(counts.values())} call(s) to {some(counts)} found no compiled code that fits and "
            f"ran eagerly: {why}"
            for why, counts in misses.items()
        ]

    def __str__(self) -> str:
        counts = (f"{key.replace('_', ' ')}: {value}" for key, value in self.as_dict().items())
        return "\n".join(
            [
                ", ".join(counts),
                *(f"hits of {region}: {count}" for region, count in self.hits.items()),
                *(f"first compile: {found}" for found in self.first_compiles),
                *(f"recompile: {found}" for found in self.recompiles),
                *(f"failed: {found.region}: {found.raw}" for found in self.failed),
                *self._ran_eagerly(),
                *self.graph_breaks,
                *self.problems,
            ]
        )

    def as_dict(self) -> dict[str, int | float]:
        """Counts and seconds, as JSON scalars."""
        return {
            "first_compiles": len(self.first_compiles),
            "recompiles": len(self.recompiles),
            "hits": self.total_hits,
            "eager_misses": sum(self.eager_misses.values()),
            "graph_breaks": len(self.graph_breaks),
            "failed": len(self.failed),
            "cudagraph_records": self.cudagraph_records,
            "resets": self.resets,
            "compile_seconds": round(self.seconds, 6),
        }


def _summaries(compiles: Iterable[Compile]) -> Iterator[str]:
    """Say once what several regions have in common."""
    same: defaultdict[tuple[tuple[str, str], ...], list[Compile]] = defaultdict(list)
    for found in compiles:
        same[tuple((reason.message, reason.remedy) for reason in found.reasons)].append(found)
    for alike in same.values():
        joined = group(reason for one in alike for reason in one.reasons)
        regions = some(dict.fromkeys(one.region for one in alike))
        yield str(replace(alike[0], region=regions, reasons=joined))


@contextmanager
def watch_compiles(*models: nn.Module, **named_models: nn.Module) -> Iterator[CompileLog]:
    """Record what torch.compile does in the process until the scope ends.

    Watches nest and may overlap. With models given, modules that have nothing to do with them are left
    out; ``named_models`` prefix the paths of their modules with a name. Raises CannotObserveError on a
    torch whose signals are missing.
    """
    log = CompileLog(Names(models, named_models))
    OBSERVER.add(log)
    try:
        yield log
    finally:
        OBSERVER.remove(log)


@contextmanager
def forbid_recompiles(
    *models: nn.Module,
    max_recompiles: int = 0,
    allow_first_compiles: bool = False,
    any_cause: bool = False,
    **named_models: nn.Module,
) -> Iterator[CompileLog]:
    """Raise RecompileError at the end of a scope that recompiled, ran eagerly or ran nothing compiled.

    What counts is said at :meth:`CompileLog.verdict`.
    """
    with watch_compiles(*models, **named_models) as log:
        yield log
    verdict = log.verdict(
        max_recompiles=max_recompiles,
        allow_first_compiles=allow_first_compiles,
        any_cause=any_cause,
    )
    if verdict.outcome != "passed":
        raise RecompileError(str(verdict))
