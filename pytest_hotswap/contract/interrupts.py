"""A swap that is interrupted, line by line, without knowing whose code it is."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from hotswap.checks.snapshot import Snapshot
from hotswap.errors import RankError
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.placed import misplaced

POINTS = 6
"""Places of a swap at which it is interrupted, spread evenly over the lines that it runs."""

_NOT_THEIRS = (
    sysconfig.get_path("stdlib"),
    os.path.dirname(torch.__file__),
    os.path.join(os.path.dirname(os.path.dirname(__file__)), "ranks"),
)
_RECORDS = ("peft_config[", ".r changed", ".lora_alpha changed", ".use_rslora changed")


class Interrupt(KeyboardInterrupt):
    """What is raised within a swap."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What a swap is before and after it, and places of it: spread over its lines and over its middle."""

    before: Snapshot
    after: Snapshot
    points: list[int]


def lines_of(deployment: Deployment, one: Path, other: Path) -> Lines:
    """Swap from one adapter to another, which is not at hand yet, and look at each line.

    The middle are the lines at which the model is neither as before nor as after.
    """
    deployment.swap(other)
    after = deployment.fingerprint()
    deployment.restore()  # a bank that has the other writes nothing
    deployment.swap(one)
    before = deployment.fingerprint()
    is_between, between = before.between(after), list[int]()

    def look(line: int) -> None:
        if is_between():
            between.append(line)

    lines = traced(lambda: deployment.swap(other), look)
    return Lines(before, after, sorted({*_spread(range(1, lines + 1)), *_spread(between)}))


def interrupted(deployment: Deployment) -> str:
    """Say after which interrupt the model is neither as before nor as after, or swaps no more.

    What configs and layers say of the adapter does not count. The one before is not the one that was
    loaded, which an undo may bring back whatever was there.
    """
    one, other = deployment.negated, deployment.other(deployment.first)
    found = lines_of(deployment, one, other)
    for at in deployment.agreed(found.points):
        deployment.restore()
        deployment.swap(one)
        where = ""
        try:
            traced(lambda: deployment.swap(other), partial(_interrupt, at))
        except Interrupt as error:
            where = _place(error)
        except RankError:  # another rank was interrupted before this one came to the point
            where = "a point of another rank"
        if not deployment.agreed(where):
            continue
        changes = _changes(found.before)
        if changes and _changes(found.after) and not _serves_one(deployment, one, other):
            return f"interrupted at {where}, part of {other.name} is in place: {changes[0]}"
        if _knobs_are_of_another(deployment, one):
            return (
                f"after an interrupt at {where} {one.name} serves, and knobs speak of {other.name}"
            )
        if deployment.refuses(other):
            return f"after an interrupt at {where} no swap works: {deployment.refusal}"
        if not deployment.compare(other).equal:
            return f"after an interrupt at {where} {other.name} is swapped in wrongly"
    return ""


def _knobs_are_of_another(deployment: Deployment, adapter: Path) -> bool:
    """Whether an adapter that serves, as an undo has left it, is scaled from another's scaling."""
    subject = deployment.subject
    if "knobs-follow" in subject.unsupported or not deployment.compare(adapter).equal:
        return False
    subject.set_scale(deployment.compiled, 0.5)
    return not deployment.compare(adapter, scale=0.5).equal


def _spread(lines: range | list[int]) -> Iterator[int]:
    for point in range(1, min(POINTS, len(lines)) + 1):
        yield lines[point * len(lines) // (POINTS + 1)]


def _serves_one(deployment: Deployment, *adapters: Path) -> bool:
    """Whether one adapter is served, whole, and only what no call reads is neither as before nor as after."""
    return any(
        deployment.compare(adapter).equal and not misplaced(deployment, adapter)
        for adapter in adapters
    )


def _changes(snapshot: Snapshot) -> list[str]:
    changes = snapshot.changes(storage=False)
    return [change for change in changes if not any(word in change for word in _RECORDS)]


def _interrupt(at: int, line: int) -> None:
    if line == at:
        raise Interrupt


def traced(swap: Callable[[], None], at_line: Callable[[int], None]) -> int:
    """Run a swap, call something at each line outside of Python and torch, and count these lines.

    Lines of a ``with`` are none: Python is there once more when it leaves, where an interrupt comes before
    ``__exit__`` and no code can do anything about it.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename.startswith(_NOT_THEIRS):
            return None
        if event == "line" and not _is_with(frame):
            count += 1
            at_line(count)
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        swap()
    finally:
        sys.settrace(previous)
    return count


def _is_with(frame: FrameType) -> bool:
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.lstrip().startswith(("with ", "async with "))


def _place(error: BaseException) -> str:
    found, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.name != Path(__file__).name:
            found = f"{file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
