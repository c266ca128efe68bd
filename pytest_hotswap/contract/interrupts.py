"""A swap that is interrupted, line by line, without knowing whose code it is."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pytest_hotswap.contract.deployment import Deployment

POINTS = 6
"""Places of a swap at which it is interrupted, spread evenly over the lines that it runs."""

_NOT_THEIRS = (sysconfig.get_path("stdlib"), os.path.dirname(torch.__file__))


class Interrupt(KeyboardInterrupt):
    """What is raised within a swap."""


def interrupted(deployment: Deployment) -> str:
    """Say after which interrupt the model is neither as before nor as after, or swaps no more."""
    one, other = deployment.first, deployment.other(deployment.first)
    deployment.swap(other)
    after = deployment.fingerprint()
    deployment.swap(one)
    before = deployment.fingerprint()
    lines = _traced(lambda: deployment.swap(other), None)
    for point in range(1, POINTS + 1):
        deployment.restore()
        deployment.swap(one)
        at = max(1, point * lines // (POINTS + 1))
        try:
            _traced(lambda: deployment.swap(other), at)
        except Interrupt as error:
            where = _place(error)
        else:
            continue
        changes = before.changes(storage=False)
        if changes and after.changes(storage=False):
            return f"interrupted at {where}, part of {other.name} is in place: {changes[0]}"
        if deployment.refuses(other):
            return f"after an interrupt at {where} no swap works: {deployment.refusal}"
        if not deployment.compare(other).equal:
            return f"after an interrupt at {where} {other.name} is swapped in wrongly"
    return ""


def _traced(swap: Callable[[], None], at: int | None) -> int:
    """Run a swap and count its lines outside of Python and torch; raise at one of them."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename.startswith(_NOT_THEIRS):
            return None
        if event == "line":
            count += 1
            if count == at:
                raise Interrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        swap()
    finally:
        sys.settrace(previous)
    return count


def _place(error: BaseException) -> str:
    found, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.name != Path(__file__).name:
            found = f"{file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
