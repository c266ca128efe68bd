"""A swap beside a running call, and beside another swap: each begins in the middle of the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hotswap.checks.equivalence import compare
from hotswap.engine.layout.slots import lora_layers
from pytest_hotswap.adapters.derived import break_adapter
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.interrupts import lines_of, traced

PATIENCE = 0.1
"""Seconds that one waits for another which began in its middle: a lock makes that one wait instead."""

LONGEST = 60.0
"""Seconds after which what another thread does is taken to wait for ever."""


def torn(deployment: Deployment) -> str:
    """Say what of two adapters is mixed where a swap meets a call, or another swap.

    No clock decides: the other thread begins in a layer, or at a line, of the first, and either runs to
    its end there, or waits for the first. Before that an adapter is refused, which must keep no lock.
    """
    one, other = deployment.first, deployment.other(deployment.first)
    points = lines_of(deployment, one, other).points
    outputs = []
    for path in (other, one):
        deployment.swap(path)
        outputs.append(deployment.run())
    names = f"{one.name} or {other.name}"
    deployment.refuses(break_adapter(other, deployment.new_folder(), "not a number"))
    called, error = _call_that_meets(deployment, lambda: deployment.swap(other))
    if error is not None:
        return f"a swap to {other.name} beside a call raises {type(error).__name__}: {error}"
    if not _is_one_of(called, outputs):
        return f"a call beside a swap to {other.name} computes neither {names}"
    found: list[Any] = []
    for at in points:
        for what, beside in {
            f"a call beside a swap to {other.name}": lambda: found.append(deployment.run()),
            f"a swap to {one.name} beside one to {other.name}": lambda: deployment.swap(one),
        }.items():
            deployment.restore()
            deployment.swap(one)
            meeting = _Meeting(beside)
            traced(lambda: deployment.swap(other), partial(_begin, meeting, at))
            meeting.end()
            found.append(deployment.run())
            if meeting.error is not None:
                return f"{what} raises {type(meeting.error).__name__}: {meeting.error}"
            if not all(_is_one_of(output, outputs) for output in found):
                return f"{what} leaves or computes neither {names}"
            found.clear()
    return ""


class _Meeting:
    """What another thread does, begun in the middle of what this one does."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.error: Exception | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # told in the thread that waits
            self.error = error

    def begin(self) -> None:
        self._thread.start()
        self._thread.join(PATIENCE)

    def end(self) -> None:
        if self._thread.ident is None:
            return
        self._thread.join(LONGEST)
        if self._thread.is_alive():
            self.error = TimeoutError(f"it has not ended after {LONGEST} s: who holds its lock?")


def _begin(meeting: _Meeting, at: int, line: int) -> None:
    if line == at:
        meeting.begin()


def _call_that_meets(
    deployment: Deployment, work: Callable[[], Any]
) -> tuple[Any, Exception | None]:
    """The outputs of a call in the middle of which another thread begins something, and what that raises."""
    meeting = _Meeting(work)
    served = deployment.served
    found = lora_layers(served, deployment.subject.adapter_name).values() or served.modules()
    layers: list[torch.nn.Module] = [*found]
    handle = layers[len(layers) // 2].register_forward_pre_hook(lambda *_: meeting.begin())
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code has no such place
            output = deployment.run()
    finally:
        handle.remove()
        meeting.end()
    return output, meeting.error


def _is_one_of(output: Any, outputs: list[Any]) -> bool:
    return any(compare(output, each).equal for each in outputs)
