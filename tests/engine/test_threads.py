"""Threads that share a model: each sees its own adapter and nothing of another's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap.errors import BusyError
from tests.support.models import Around, fresh, run, seeded, write_adapter

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("many_switches")]

VALUES = torch.linspace(-1, 1, 8).reshape(1, 8)
NAMES = ("one", "two")
TURNS = 5_000


@pytest.fixture
def base() -> Any:
    return seeded(lambda: Around(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))))


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    targets = ["layer.0", "layer.1", "layer.2"]
    return {
        name: write_adapter(
            tmp_path / name, base, r=rank, lora_alpha=8, target_modules=targets, seed=rank
        )
        for name, rank in zip(NAMES, (2, 4), strict=True)
    }


@pytest.fixture
def model(base: Any, fleet: Any) -> Any:
    found = fresh(base, fleet["one"])
    hotswap.prepare(found, target_rank=4)
    return found


def torn(
    turn: Callable[[str], torch.Tensor], references: dict[str, torch.Tensor], turns: int
) -> int:
    """Count the outputs that are not those of the thread's own adapter."""
    wrong = dict.fromkeys(NAMES, 0)
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(turns):
                wrong[name] += not torch.equal(turn(name), references[name])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return sum(wrong.values())


@pytest.fixture
def references(model: Any, fleet: Any) -> dict[str, torch.Tensor]:
    found = {}
    for name in NAMES:
        hotswap.swap(model, fleet[name])
        found[name] = run(model, VALUES)
    assert not torch.allclose(*found.values())
    return found


def test_each_output_in_using_is_that_of_one_adapter(
    model: Any, fleet: Any, references: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    for name, folder in fleet.items():
        bank.add(name, folder)

    def turn(name: str) -> torch.Tensor:
        with bank.using(name):
            return run(model, VALUES)

    assert torn(turn, references, TURNS) == 0


def test_without_using_outputs_are_torn(model: Any, fleet: Any, references: Any) -> None:
    """The control: what the other test would find if ``using`` did not keep others out."""

    def turn(name: str) -> torch.Tensor:
        hotswap.swap(model, fleet[name])
        return run(model, VALUES)

    assert torn(turn, references, 300) > 0


def test_two_swaps_at_once_leave_one_of_the_two(model: Any, fleet: Any, references: Any) -> None:
    def turn(name: str) -> torch.Tensor:
        hotswap.swap(model, fleet[name])
        return references[name]

    assert torn(turn, references, 300) == 0
    assert any(torch.equal(run(model, VALUES), expected) for expected in references.values())


def test_a_swap_waits_for_the_end_of_using_or_gives_up(model: Any, fleet: Any) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("one", fleet["one"])
    outcomes: list[str] = []

    def other() -> None:
        try:
            hotswap.swap(model, fleet["two"], timeout=0.01)
        except BusyError as error:
            outcomes.append(str(error))

    with bank.using("one"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with pytest.raises(BusyError, match=r"inside AdapterBank\.using"):
            hotswap.swap(model, fleet["two"])
    assert outcomes == ["the model's adapters were in use for 0.01 s; raise timeout="]
    hotswap.swap(model, fleet["two"], timeout=0.01)
