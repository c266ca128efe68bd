"""A model of two linear layers, prepared, with a fleet of adapters for a bank."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap.engine.bank import bank as banks
from tests.support.models import Around, fresh, run, seeded, write_adapter

NAMES = ("one", "two", "three")
VALUES = torch.linspace(-1, 1, 8).reshape(1, 8)


def base_model() -> Any:
    return seeded(lambda: Around(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))))


def write_named(folder: Path, base: Any, name: str, rank: int, **config: Any) -> Path:
    config = {"lora_alpha": 8, "target_modules": ["layer.0", "layer.1"], "seed": rank, **config}
    return write_adapter(folder / name, base, r=rank, **config)


def prepared(base: Any, folder: Path, rank: int = 4) -> Any:
    model = fresh(base, folder)
    hotswap.prepare(model, target_rank=rank)
    return model


def answers(base: Any, fleet: dict[str, Path], rank: int = 4) -> dict[str, torch.Tensor]:
    """What a model that is prepared alike computes with each adapter, bit for bit."""
    found, twin = {}, prepared(base, next(iter(fleet.values())), rank)
    for name, folder in fleet.items():
        hotswap.swap(twin, folder)
        found[name] = run(twin, VALUES)
        torch.testing.assert_close(found[name], run(fresh(base, folder), VALUES))
    return found


def size_of(model: Any) -> int:
    """The bytes of one adapter in the model."""
    return int(hotswap.state(model)["bytes"]["in_place"])


def serves(bank: Any, model: Any, name: str, answer: torch.Tensor) -> None:
    """Assert that a request for an adapter is answered with exactly that."""
    with bank.using(name, timeout=30):
        assert torch.equal(run(model, VALUES), answer)


class Reading:
    """What adapters are read with: counts, and waits where it is told to."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.threads: set[int] = set()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.began = threading.Event()

    def labels(self) -> list[str]:
        return [Path(label).name for label in self.read]


@contextmanager
def watched_reading() -> Iterator[Reading]:
    """Stand between a bank and the disk."""
    reading, real = Reading(), banks.read_parts

    def read(deployment: Any, parts: Any, adapter: Any, *args: Any, **kwargs: Any) -> Any:
        reading.read.append(str(adapter))
        reading.threads.add(threading.get_ident())
        reading.began.set()
        assert reading.may_go_on.wait(30)
        return real(deployment, parts, adapter, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(banks, "read_parts", read)
        yield reading
        reading.may_go_on.set()


def in_threads(number: int, work: Callable[[int], None]) -> None:
    """Do it in several threads at once, each with its number; raise the first error of any."""
    errors: list[BaseException] = []

    def guarded(turn: int) -> None:
        try:
            work(turn)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(turn,)) for turn in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
