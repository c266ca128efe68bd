"""OverRanks: what stands in the pytest process for a deployment whose ranks are other processes."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_hotswap.contract.contract import CASES
from pytest_hotswap.contract.deployment import Broken
from pytest_hotswap.ranks.pool import RankLostError, RankPool
from pytest_hotswap.ranks.worker import Order, Outcome, bring_up, inputs_told, judge

_KNOWN = {"deployment", "swapping", "record_property", "adapter", *CASES}
_kept: list[RankPool] = []
"""The ranks that the next deployment may use too, if there are any."""
_up: list[OverRanks] = []
"""The deployment whose part they have."""


class OverRanks:
    """A deployment over ranks; pytest asks it to judge the tests of a contract class."""

    paths: Sequence[Path] = ()  # no law is judged in this process

    def __init__(self, subject: Any, folder: Path, settings: str | None = None) -> None:
        self.subject = subject
        self._folder = folder
        self._settings = settings
        self._counts = itertools.count()

    @classmethod
    def brought_up(
        cls, subject: Any, folder: Path, config: pytest.Config
    ) -> Iterator[OverRanks | Broken]:
        """Bring a deployment up on its ranks, or say why it cannot be."""
        settings = config.getoption("--hotswap-settings", None)
        deployment = cls(subject, folder, settings)
        try:
            problem = deployment.bring_up()
        except (RankLostError, pytest.UsageError) as error:
            problem = f"{type(subject).__name__} cannot be brought up: {error}"
        yield Broken(problem) if problem else deployment

    @property
    def base(self) -> Any:
        """The whole base model."""
        return self.subject.base_model()

    @property
    def told(self) -> dict[str, Any]:
        """What a report says of the ranks."""
        told = {"ranks": self.subject.ranks, "distributed": self._pool.backend}
        made = self._asked(inputs_told)[0] if self in _up else None
        return told | ({"inputs": made} if made else {})

    @property
    def _pool(self) -> RankPool:
        wanted = (self.subject.ranks, self.subject.patience)
        if not _kept or (_kept[0].count, _kept[0].patience) != wanted:
            end_ranks()
            _kept.append(RankPool(wanted[0], patience=wanted[1]))
        return _kept[0]

    def restore(self) -> None:
        """Each rank restores its part when it judges a law."""

    def bring_up(self) -> str:
        """Let every rank build its part; why that cannot be, or nothing."""
        import hypothesis

        subject = self.subject
        attributes = {
            name: getattr(subject, name) for name in ("ranks", "patience", "plan", "refused")
        }
        order = Order(
            place_of(type(subject)),
            subject.made_with,
            subject.adapter_paths(),
            attributes,
            self._settings,
            os.getcwd(),
            str(self._folder / f"group-{next(self._counts)}"),
            hypothesis.settings.default.max_examples if hypothesis.settings.default else 100,
        )
        _up.clear()
        problem = _of_some_rank(self._asked(bring_up, order))
        if not problem:
            _up.append(self)
        return problem

    def _asked(self, function: Any, *args: Any) -> list[Any]:
        try:
            return self._pool(function, *args)
        except RankLostError:
            end_ranks()  # whatever comes next starts new ones
            raise

    def judge(self, item: Any) -> None:
        """Let every rank judge a test; fail, or skip, as they say."""
        __tracebackhide__ = True
        wanted = set(inspect.signature(item.obj).parameters)
        if foreign := sorted(wanted - _KNOWN):
            pytest.fail(f"{item.name} takes {', '.join(foreign)}, which no rank has", pytrace=False)
        params = getattr(getattr(item, "callspec", None), "params", {})
        try:
            found = self._outcomes(place_of(item.cls), item.originalname, params)
        except RankLostError as error:
            pytest.fail(f"{error}; the ranks are started again", pytrace=False)
        item.user_properties += worst_of([outcome.properties for outcome in found])
        failed = [(rank, each) for rank, each in enumerate(found) if each.outcome == "failed"]
        if failed:
            rank, outcome = min(failed, key=lambda each: each[1].consequence)
            alike = all(each.text == outcome.text for each in found)
            pytest.fail(outcome.text if alike else f"rank {rank}: {outcome.text}", pytrace=False)
        if skipped := [each.text for each in found if each.outcome == "skipped"]:
            pytest.skip(skipped[0])

    def _outcomes(self, place: str, name: str, params: Mapping[str, Any]) -> list[Outcome]:
        if self not in _up and (problem := self.bring_up()):
            raise RankLostError(problem)
        return self._asked(judge, place, name, dict(params))


def end_ranks() -> None:
    """End the processes that are kept for the next deployment."""
    _up.clear()
    while _kept:
        _kept.pop().close()


def place_of(cls: type) -> str:
    """Where a rank finds a class; raises pytest.UsageError for one that is within a function."""
    if "<locals>" in cls.__qualname__:
        raise pytest.UsageError(
            f"{cls.__qualname__} is within a function, where no rank finds it; define it in a module"
        )
    return f"{inspect.getfile(cls)}:{cls.__qualname__}"


def _of_some_rank(problems: Sequence[str]) -> str:
    rank = next((rank for rank, problem in enumerate(problems) if problem), None)
    if rank is None:
        return ""
    alike = len(set(problems)) == 1
    return problems[rank] if alike else f"rank {rank}: {problems[rank]}"


def worst_of(each: Sequence[Sequence[tuple[str, Any]]]) -> list[tuple[str, Any]]:
    """The properties of the first rank; of a number the largest that any rank has, of hits the smallest."""
    found = dict(each[0])
    for properties in map(dict, each[1:]):
        for key, value in properties.items():
            numbers = (found.get(key), value)
            if all(type(number) in (int, float) for number in numbers):
                found[key] = (min if key == "hotswap.hits" else max)(numbers)
            else:
                found.setdefault(key, value)
    return [*found.items()]
