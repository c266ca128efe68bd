"""Every faulty engine is killed by the law that it breaks; the sound engine obeys them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from hotswap.report.laws import LAWS
from pytest_hotswap.contract.judge import violations
from tests.mutants.engines import ENGINES
from tests.mutants.run import Bench
from tests.mutants.subject import FLEETS, Engine


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    torch._dynamo.reset()
    yield Bench(tmp_path_factory.mktemp("mutants"))
    torch._dynamo.reset()


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("law", LAWS)
def test_the_sound_engine_obeys(bench: Bench, law: str, fleet: str) -> None:
    assert list(violations(bench.shared[fleet], law)) == []


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
def test_a_faulty_engine_is_killed_by_the_law_it_breaks(bench: Bench, engine: type[Engine]) -> None:
    found = bench.killed_by(engine, engine.law)
    assert found is not None
    assert found.raised is None, found  # an error of the engine is not the law's finding


def test_every_law_kills_somebody_and_nobody_is_there_twice() -> None:
    laws = Counter(engine.law for engine in ENGINES)
    assert laws.keys() == LAWS.keys()
    assert len(ENGINES) >= 40
    assert len({engine.__name__ for engine in ENGINES}) == len(ENGINES)
