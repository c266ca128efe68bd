"""Swaps beside calls and beside other swaps: judged where a subject promises them, by no clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_hotswap.contract.contract import HotswapContract
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.interrupts import Interrupt, _interrupt, traced
from tests.mutants.plain import Given, Plain
from tests.mutants.subject import Engine, write_fleets


class Guarded(Plain):
    """One lock for swaps and calls."""

    thread_safe = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = threading.RLock()

    def swap(self, model: Any, adapter: Path | None) -> None:
        with self.lock:
            super().swap(model, adapter)

    def run(self, model: Any, inputs: Any) -> Any:
        with self.lock:
            return super().run(model, inputs)


class CallsAreNot(Guarded):
    """The lock is for swaps."""

    def run(self, model: Any, inputs: Any) -> Any:
        return Plain.run(self, model, inputs)


class SwapsAreNot(Guarded):
    """Swaps lock what they write only, not what they note of the adapter while they gather it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.of = threading.local()

    def swap(self, model: Any, adapter: Path | None) -> None:
        Plain.swap(self, model, adapter)

    def found(self, model: Any) -> Iterator[tuple[str, Any]]:
        yield from getattr(self.of, "one", None) or super().found(model)

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        self.given, found = given, list[tuple[Tensor, Tensor]]()
        for one in [*super().found(model)]:
            self.of.one = [one]
            found += super().staged(model, self.given)
        self.of.one = None
        return found

    def commit(self, staged: list[tuple[Tensor, Tensor]]) -> None:
        with self.lock:
            super().commit(staged)


class NeverLetsGo(Guarded):
    """A call takes the lock for ever."""

    def run(self, model: Any, inputs: Any) -> Any:
        self.lock.acquire()
        return Plain.run(self, model, inputs)


class RefusalsKeepTheLock(Guarded):
    """The lock is let go at the end of a swap, to which one that is refused does not come."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        self.lock.acquire()
        Plain.swap(self, model, adapter)
        self.lock.release()


WRONG = {
    Guarded: "",
    CallsAreNot: "a call beside a swap to large computes neither patterns or large",
    RefusalsKeepTheLock: "a swap to large beside a call raises TimeoutError: it has not ended",
    NeverLetsGo: "a swap to large beside a call raises TimeoutError: it has not ended after 0.2 s",
    SwapsAreNot: "a swap to patterns beside one to large leaves or computes neither patterns or large",
}


@pytest.mark.parametrize("engine", WRONG, ids=lambda engine: engine.__name__)
def test_what_is_between_two_adapters_is_never_served(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_hotswap.contract.threads.LONGEST", 0.2)
    torch._dynamo.reset()
    write_fleets(tmp_path)
    deployment = Deployment(engine(tmp_path), tmp_path / "deployment")
    deployment.restore()
    if not WRONG[engine]:
        HotswapContract().test_swap_atomic__threads(deployment)
        return
    with pytest.raises(AssertionError, match=WRONG[engine]):
        HotswapContract().test_swap_atomic__threads(deployment)


def test_no_interrupt_comes_between_the_end_of_a_scope_and_its_exit() -> None:
    lock, places = threading.Lock(), list[int]()

    def work() -> None:
        with lock:
            places.append(1)

    lines = traced(work, lambda _: None)
    assert lines == len(places) == 1
    for at in range(1, lines + 1):
        with pytest.raises(Interrupt):
            traced(work, partial(_interrupt, at))
        assert not lock.locked()


def test_a_subject_that_promises_nothing_says_so(tmp_path: Path) -> None:
    write_fleets(tmp_path)
    deployment = Deployment(Engine(tmp_path), tmp_path / "deployment")
    with pytest.raises(pytest.skip.Exception, match="does not promise"):
        HotswapContract().test_swap_atomic__threads(deployment)
