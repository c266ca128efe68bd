"""The vote by itself, over a store of torch.distributed: every branch of it, without a model or a process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any

import pytest
import torch.distributed as dist

from hotswap.engine import asking, mesh
from hotswap.errors import RankError


class Voters:
    """Some ranks in one process, and the turn that each is in."""

    def __init__(self, count: int, timeout: float = 20) -> None:
        store: Any = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        self.store, self.ranks, self.timeout = store, [None] * count, timeout
        self.join(*range(count))

    def join(self, *indices: int) -> None:
        """Join some ranks, each as a process of its own would."""
        members = tuple(range(len(self.ranks)))
        for index in indices:
            self.ranks[index] = mesh.Ranks(self.store.clone(), members, index, self.timeout)

    def wait(self, timeout: float) -> None:
        self.timeout = timeout
        for ranks in self.ranks:
            ranks.timeout = timeout

    def turns(self) -> list[Any]:
        return [mesh._Turn(ranks) for ranks in self.ranks]


def agreed(turns: list[Any], *words: str) -> list[str]:
    """Let each rank agree with its word, or the only one, at once; what each raises, or an empty text."""
    given = words if len(words) > 1 else words * len(turns)
    return at_once(*(partial(turn, [w], w) for turn, w in zip(turns, given, strict=True)))


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


def test_all_say_yes_to_both_steps() -> None:
    voters = Voters(3)
    for _ in range(2):
        turns = voters.turns()
        assert agreed(turns, "x") == [""] * 3
        assert at_once(*turns) == [""] * 3


@pytest.mark.parametrize("no", [0, 1])
def test_one_says_no_before_anybody_else_speaks(no: int) -> None:
    voters = Voters(2)
    turns = voters.turns()
    turns[no].refuse(OSError("the disk is gone"))
    (said,) = agreed(turns[1 - no :][:1], "x")
    assert said.startswith(f"{no}: rank {no} cannot (OSError: the disk is gone); every rank keeps")


def test_one_says_no_after_it_has_said_that_it_can() -> None:
    voters = Voters(2)
    turns = voters.turns()
    assert agreed(turns, "x") == ["", ""]
    turns[0].refuse(OSError("the copy failed"))
    (said,) = at_once(turns[1])
    assert said.startswith("0: rank 0 cannot (OSError: the copy failed)")


def test_a_yes_stands_whatever_is_said_later() -> None:
    voters = Voters(2)
    ranks = voters.ranks[0]
    assert ranks.say("1/begin", "yes:x") == "yes:x"
    assert ranks.say("1/begin", "no:x") == "yes:x"
    assert ranks.settle("1/begin", "no:1:late") == "no:1:late"
    assert voters.ranks[1].settle("1/begin", "yes:") == "no:1:late"


def test_words_that_differ_are_a_no_of_the_first_that_has_another() -> None:
    voters = Voters(3)
    turns = voters.turns()
    for said in agreed(turns, "x", "x", "y"):
        assert said.startswith("2: rank 2 was given y, and rank 0 another, x")


def test_names_and_errors_of_any_bytes_are_told_as_a_terminal_can_show_them() -> None:
    voters = Voters(2)
    first, second = voters.turns()
    for said in at_once(partial(first, ["x"], "a\udcff"), partial(second, ["y"], "b\x1b[2J")):
        assert said.startswith("1: rank 1 was given b\ufffd[2J, and rank 0 another, a\ufffd;")
    first, second = voters.turns()
    first.refuse(OSError("gone:\n\udcff"))
    (said,) = agreed([second], "x")
    assert said.startswith("0: rank 0 cannot (OSError: gone: \ufffd);")


def test_one_that_does_not_come_is_a_no_and_learns_it_when_it_does() -> None:
    voters = Voters(2, timeout=0.2)
    turns = voters.turns()
    (said,) = agreed(turns[:1], "x")
    assert said.startswith("1: rank 1 did not answer within 0.2 s")
    (late,) = agreed(turns[1:], "x")
    assert late.startswith("1: rank 1 did not answer within 0.2 s")
    assert agreed(voters.turns(), "y") == ["", ""]


def exchanged(voters: Voters, *words: str) -> list[str]:
    """Let each rank exchange, at the same time, what it was given; what each raises, or an empty text."""

    def exchange(turn: Any, word: str) -> None:
        try:
            turn([word], word)
            turn()
        except RankError as error:
            turn.refuse(error)
            raise

    return at_once(*map(partial, [exchange] * len(words), voters.turns(), words))


def test_one_that_has_left_a_change_out_is_with_the_others_at_the_next_one() -> None:
    voters = Voters(2, timeout=0.3)
    for word in ("a", "b"):
        (said,) = exchanged(voters, word)
        assert said.startswith("1: rank 1 did not answer")
    voters.wait(20)
    for word in ("c", "d", "d"):
        assert exchanged(voters, word, word) == ["", ""]


def test_one_that_has_left_a_change_out_is_with_the_others_when_they_try_it_again() -> None:
    voters = Voters(2, timeout=0.2)
    (said,) = exchanged(voters, "a")
    assert said.startswith("1: rank 1 did not answer")
    voters.wait(20)
    for _ in range(3):
        assert exchanged(voters, "a", "a") == ["", ""]


def test_one_that_is_late_with_several_changes_learns_each_and_then_is_with_the_others() -> None:
    voters = Voters(2, timeout=0.2)
    for word in ("a", "b"):
        exchanged(voters, word)
    for word in ("a", "b"):
        (said,) = at_once(partial(voters.turns()[1], [word], word))
        assert said.startswith("1: rank 1 did not answer within 0.2 s")
    voters.wait(20)
    assert exchanged(voters, "c", "c") == ["", ""]


def test_one_that_was_joined_once_more_is_named_to_all_until_the_others_are_too() -> None:
    voters = Voters(3, timeout=0.3)
    voters.join(1)
    said = exchanged(voters, "a", "a", "a")
    for index, one in enumerate(said):
        odd = 0 if index == 1 else 1
        assert one.startswith(
            f"{odd}: rank {odd} did not answer within 0.3 s, as the ranks are out of step:"
        )
        assert (
            "joined 1 on rank 0, 2 on rank 1, 1 on rank 2 (call swap_together(model) where" in one
        )
    voters.wait(20)
    voters.join(0, 2)
    assert exchanged(voters, "b", "b", "b") == [""] * 3


@pytest.mark.parametrize("store", ["the same store", "a new one"])
def test_one_that_was_started_anew_is_with_the_others_when_all_are_joined_again(store: str) -> None:
    voters = Voters(2)
    voters.join(0, 1)  # a second model, which the new process has not
    assert exchanged(voters, "a", "a") == ["", ""]
    if store == "a new one":
        voters.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    voters.join(1, 0)
    assert exchanged(voters, "b", "b") == ["", ""]


def test_a_store_that_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    voters = Voters(2, timeout=0.1)
    monkeypatch.setattr(asking, "GRACE", 0.1)
    stopped = Event()
    monkeypatch.setattr(voters.ranks[0], "say", lambda *_: stopped.wait(10))
    turn = voters.turns()[0]
    (said,) = agreed([turn], "x")
    assert said == (
        "None: the store through which the ranks agree is lost (it does not answer); start the ranks again"
    )
    turn.refuse(OSError())  # which asks nobody
    stopped.set()


@pytest.mark.parametrize("other", ["has it", "could not"])
def test_a_change_that_is_interrupted_after_the_last_word_stands_if_all_have_it(
    monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    voters = Voters(2)
    first, second = voters.turns()
    assert agreed([first, second], "x") == ["", ""]
    monkeypatch.setattr(voters.ranks[0], "verdict", interrupted(voters.ranks[0].verdict, 2))
    with pytest.raises(KeyboardInterrupt):
        first()
    (later,) = at_once(second) if other == "has it" else [second.refuse(OSError("x"))]
    assert later in ("", None)
    assert first.stands(KeyboardInterrupt()) is (other == "has it")


def interrupted(call: Callable[..., str], times: int) -> Callable[..., str]:
    """What is interrupted as often before it is done."""
    left = [KeyboardInterrupt()] * times

    def interrupt(*args: Any) -> str:
        if left:
            raise left.pop()
        return call(*args)

    return interrupt


def test_a_change_that_is_interrupted_before_the_last_word_does_not_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    voters = Voters(2)
    first, second = voters.turns()
    assert not first.stands(KeyboardInterrupt())
    assert agreed([first, second], "x") == ["", ""]
    assert not first.stands(KeyboardInterrupt())
    monkeypatch.setattr(voters.ranks[0], "say", interrupted(voters.ranks[0].say, 1))
    with pytest.raises(KeyboardInterrupt):
        first()
    assert not first.stands(KeyboardInterrupt())
    (said,) = at_once(second)
    assert said.startswith("0: rank 0 cannot (KeyboardInterrupt: ); every rank keeps")
