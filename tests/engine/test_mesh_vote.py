"""The vote by itself, over a store of torch.distributed: every branch of it, without a model or a process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch.distributed as dist

from hotswap.engine import mesh
from hotswap.errors import RankError


class Voters:
    """Some ranks in one process, and the turn that each is in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, timeout: float = 20) -> None:
        store: Any = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        self.store, self.ranks = store, []
        for index in range(count):
            monkeypatch.setattr(mesh, "_known", {})  # as each rank is a process of its own
            self.ranks.append(mesh.Ranks(store.clone(), tuple(range(count)), index, timeout))

    def turns(self) -> list[Any]:
        return [mesh._Turn(ranks) for ranks in self.ranks]


def agreed(turns: list[Any], *words: str) -> list[str]:
    """Let each rank agree with its word, or the only one, at once; what each raises, or an empty text."""
    given = words if len(words) > 1 else words * len(turns)
    return at_once(*(partial(turn.agree, [w], w) for turn, w in zip(turns, given, strict=True)))


def at_once(*calls: Callable[[], Any]) -> list[str]:
    """Run calls in threads; what each raises, or an empty text."""

    def said(call: Callable[[], Any]) -> str:
        try:
            call()
        except RankError as error:
            return f"{error.rank}: {error}"
        return ""

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(said, calls))


def test_all_say_yes_to_both_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    voters = Voters(monkeypatch, 3)
    for _ in range(2):
        turns = voters.turns()
        assert agreed(turns, "x") == [""] * 3
        assert at_once(*(turn.agree for turn in turns)) == [""] * 3


@pytest.mark.parametrize("no", [0, 1])
def test_one_says_no_before_anybody_else_speaks(monkeypatch: pytest.MonkeyPatch, no: int) -> None:
    voters = Voters(monkeypatch, 2)
    turns = voters.turns()
    turns[no].refuse(OSError("the disk is gone"))
    (said,) = agreed(turns[1 - no :][:1], "x")
    assert said.startswith(f"{no}: rank {no} cannot (OSError: the disk is gone); every rank keeps")


def test_one_says_no_after_it_has_said_that_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    voters = Voters(monkeypatch, 2)
    turns = voters.turns()
    assert agreed(turns, "x") == ["", ""]
    turns[0].refuse(OSError("the copy failed"))
    (said,) = at_once(turns[1].agree)
    assert said.startswith("0: rank 0 cannot (OSError: the copy failed)")


def test_a_yes_stands_whatever_is_said_later(monkeypatch: pytest.MonkeyPatch) -> None:
    voters = Voters(monkeypatch, 2)
    ranks = voters.ranks[0]
    assert ranks.say("1/begin", "yes:x") == "yes:x"
    assert ranks.say("1/begin", "no:x") == "yes:x"
    assert ranks.settle("1/begin", "no:1:late") == "no:1:late"
    assert voters.ranks[1].settle("1/begin", "yes:") == "no:1:late"


def test_words_that_differ_are_a_no_of_the_first_that_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    voters = Voters(monkeypatch, 3)
    turns = voters.turns()
    for said in agreed(turns, "x", "x", "y"):
        assert said.startswith("2: rank 2 was given y, and rank 0 another, x")


def test_one_that_does_not_come_is_a_no_and_learns_it_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    voters = Voters(monkeypatch, 2, timeout=0.2)
    turns = voters.turns()
    (said,) = agreed(turns[:1], "x")
    assert said.startswith("1: rank 1 did not answer within 0.2 s")
    (late,) = agreed(turns[1:], "x")
    assert late.startswith("1: rank 1 did not answer within 0.2 s")
    assert agreed(voters.turns(), "y") == ["", ""]
