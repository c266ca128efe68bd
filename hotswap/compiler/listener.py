"""Listener: what is heard of compiles and calls, under the names of one watch. PYTEST_DONT_REWRITE"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Literal

from torch import nn

from hotswap.compiler.guards import modules_read_by
from hotswap.compiler.reasons import Cause, Reason
from hotswap.compiler.regions import Names, Place, Region
from hotswap.compiler.stack import callers

Kind = Literal["first", "recompile", "backward", "failed"]


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


class Listener:
    """What was heard; regions that have nothing to do with the models are left out."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._places: dict[Region, Place] = {}
        self._compiles: defaultdict[Kind, list[Compile]] = defaultdict(list)
        self._why: dict[str, str] = {}
        self._graph_breaks: dict[str, None] = {}
        self._problems: dict[str, None] = {}
        self._touching: set[Region] = set()  # functions whose compiled code reads one of the models
        self.cudagraphs_heard = 0
        self.resets_heard = 0

    def heard_compile(self, kind: Kind, region: Region, found: Compile, broken_at: str) -> None:
        """Write down a compile that ended, its region and modules as the watch names them."""
        if (place := self._place(region)) is None:
            return
        reasons = tuple(reason.inside(place.prefix) for reason in found.reasons)
        self._compiles[kind].append(replace(found, region=place.label, reasons=reasons))
        if broken_at:
            self._graph_breaks[f"{place.label}: the graph breaks in {broken_at}"] = None

    def heard_eager(self, region: Region, why: str) -> None:
        """Note why a call missed every variant and ran eagerly."""
        if why and (place := self._place(region)) is not None:
            self._why.setdefault(place.label, why)

    def heard_ignored_hook(self, region: Region, module: str) -> None:
        """Write down a module inside the region whose forward hook compiled code does not call."""
        if (place := self._place(region)) is not None:
            self.heard_problem(
                f"{place.prefix}{module}: a forward hook was added after torch.compile, and compiled "
                "code never calls it; add it before torch.compile"
            )

    def heard_on_stack(self, region: Region, frame: FrameType | None) -> None:
        """Take in what is called from one of the models, such as what a custom operator compiled."""
        if self._place(region) is None and self._names.any_of(callers(frame)):
            self._places[region] = region.place

    def asks(self, region: Region) -> bool:
        """Whether it is not known yet that a function's compiled code reads one of the models."""
        return bool(self._names) and region.is_function and region not in self._touching

    def heard_reads(self, region: Region, modules: Iterable[nn.Module]) -> None:
        """Note that a function ran compiled code that reads these modules."""
        if self._names.any_of(modules):
            self._touching.add(region)

    def heard_of_compile(self, region: Region, text: str) -> None:
        """Write down what is not known of a compile."""
        if (place := self._place(region)) is not None:
            self.heard_problem(f"{place.label}: {text}")

    def heard_problem(self, text: str) -> None:
        """Write down what cannot be observed."""
        self._problems[text] = None

    def close(self) -> None:
        """Let go of the models: nothing more will be heard, and what was counted will be forgotten."""
        self._names = Names((), {})

    def _place(self, region: Region) -> Place | None:
        if region not in self._places:
            place, owner = self._names.of(region), region.owner()
            if place is None and owner is not None and self._names.any_of(modules_read_by(owner)):
                place = region.place
            if place is None:  # what is compiled later may read one of the models
                return None
            self._places[region] = place
        return self._places[region]
