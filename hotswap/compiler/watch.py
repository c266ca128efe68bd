"""CompileLog: what torch.compile did in a scope, and the verdict on it. PYTEST_DONT_REWRITE"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from hotswap.compiler import private
from hotswap.compiler.guards import modules_read
from hotswap.compiler.observer import OBSERVER, Heard
from hotswap.compiler.reasons import Cause, Reason, group, some
from hotswap.compiler.regions import Names, Place, Region
from hotswap.errors import RecompileError


@dataclass(frozen=True, slots=True)
class Compile:
    """One compile: the region, why its compiled code did not fit, torch's own words, seconds."""

    region: str
    reasons: tuple[Reason, ...]
    raw: str
    seconds: float

    @property
    def cause(self) -> Cause | Literal[""]:
        """Whose fault it is: the worst cause of all reasons; empty for a first compile."""
        return self.reasons[0].cause if self.reasons else ""

    @property
    def sentence(self) -> str:
        """What changed and what to do, for every reason."""
        return "; also ".join(str(reason) for reason in self.reasons)

    @property
    def swapped(self) -> bool:
        """Whether a swap is to blame, or nobody knows."""
        return self.cause in {"swap", "unknown"}

    def __str__(self) -> str:
        return f"{self.region}: {self.sentence}" if self.sentence else self.region


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


class CompileLog:
    """What happened in a scope; reading it inside the scope gives what happened until then.

    An eager miss is a call that found no compiled code and got none: past ``recompile_limit`` torch
    runs eagerly and says nothing. Regions are the paths of modules, or functions.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._places: dict[Region, Place | None] = {}
        self._compiles: dict[str, list[Compile]] = {}
        self._before = OBSERVER.counts()
        self._counts: tuple[dict[str, int], dict[str, int]] | None = None  # once the scope is over
        self._why: dict[str, str] = {}
        self._graph_breaks: dict[str, None] = {}
        self._resets = 0
        self._cudagraph_records = 0
        self._problems: dict[str, None] = {}

    # ---- what the observer tells --------------------------------------------------------------

    def heard_compile(self, heard: Heard) -> None:
        """Write a compile down."""
        place = self._place(heard.region)
        if place is None:
            return
        reasons = tuple(reason.inside(place.prefix) for reason in heard.reasons)
        found = Compile(place.label, reasons, heard.error or heard.raw, heard.seconds)
        self._compiles.setdefault(heard.kind, []).append(found)
        if heard.broken_at:
            self._graph_breaks[f"{place.label}: the graph breaks in {heard.broken_at}"] = None

    def heard_eager(self, region: Region, why: str) -> None:
        """Note why a call ran eagerly."""
        if why and (place := self._place(region)) is not None:
            self._why[place.label] = why

    def heard_cudagraph(self) -> None:
        """Count a CUDA graph."""
        self._cudagraph_records += 1

    def heard_reset(self) -> None:
        """Count a reset of Dynamo."""
        self._resets += 1

    def heard_ignored_hook(self, region: Region, module: str) -> None:
        """Write down a hook that compiled code does not call."""
        if (place := self._place(region)) is not None:
            self.heard_problem(
                f"{place.prefix}{module}: a forward hook was added after torch.compile, and compiled "
                "code never calls it; add it before torch.compile"
            )

    def heard_problem(self, text: str) -> None:
        """Write down what could not be observed."""
        self._problems[text] = None

    def close(self) -> None:
        """Count for the last time, and let go of the models."""
        self._counts = self._count()
        self._names = Names((), {})

    def _place(self, region: Region) -> Place | None:
        if region not in self._places:
            place, owner = self._names.of(region), region.owner()
            if place is None and owner is not None and self._names.any_of(modules_read(owner)):
                place = region.place
            self._places[region] = place
        return self._places[region]

    def _count(self) -> tuple[dict[str, int], dict[str, int]]:
        """Hits and eager misses since the scope began, per region."""
        if self._counts is not None:
            return self._counts
        hits: Counter[str] = Counter()
        eager: Counter[str] = Counter()
        for region, now in OBSERVER.counts().items():
            before = self._before.get(region, (0, 0))
            if (place := self._place(region)) is not None:
                hits[place.label] += now[0] - before[0]
                eager[place.label] += now[1] - before[1]
        return dict(+hits), dict(+eager)

    # ---- what happened ------------------------------------------------------------------------

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
        return self._count()[0]

    @property
    def total_hits(self) -> int:
        """Calls that ran compiled code."""
        return sum(self.hits.values())

    @property
    def eager_misses(self) -> dict[str, int]:
        """Calls that ran eagerly although they should have been compiled, per region."""
        return self._count()[1]

    @property
    def graph_breaks(self) -> list[str]:
        """Where the graph of a compiled region breaks, as far as it was compiled in the scope."""
        OBSERVER.flush()
        return list(self._graph_breaks)

    @property
    def cudagraph_records(self) -> int:
        """How many CUDA graphs were recorded, whatever model they belong to."""
        return self._cudagraph_records

    @property
    def resets(self) -> int:
        """How often ``torch._dynamo.reset()`` was called."""
        OBSERVER.flush()
        return self._resets

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
            return Verdict("vacuous", (notes or (_nothing_ran(),)))
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


def _summaries(compiles: Iterable[Compile]) -> list[str]:
    """Say once what several regions have in common."""
    same: defaultdict[tuple[tuple[str, str], ...], list[Compile]] = defaultdict(list)
    for found in compiles:
        same[tuple((reason.message, reason.remedy) for reason in found.reasons)].append(found)
    return [
        str(
            replace(
                found[0], region=some(dict.fromkeys(one.region for one in found)), reasons=joined
            )
        )
        for found in same.values()
        for joined in [group(reason for one in found for reason in one.reasons)]
    ]


def _nothing_ran() -> str:
    stance = private.stance()
    if stance != "default":
        return f"no compiled code ran: torch.compiler.set_stance({stance!r}) is in force"
    return "no compiled code ran a second time; call the compiled model inside the scope"


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
