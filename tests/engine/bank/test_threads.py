"""A bank under threads, tasks and processes: each output is exactly that of its adapter."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import torch

import hotswap
from hotswap.engine.layout.registry import entry_of
from hotswap.errors import UnknownAdapterError
from tests.support.models import run
from tests.support.served import (
    NAMES,
    VALUES,
    in_threads,
    serves,
    size_of,
    watched_reading,
)

pytestmark = pytest.mark.filterwarnings("ignore")
WAIT = 30


def churn(bank: Any, fleet: Any, turn: int) -> None:
    """Change something of the bank."""
    name = NAMES[turn % 3]
    if turn % 7 == 0:
        bank.add(name, fleet[name])
    elif turn % 7 < 3:
        bank.prefetch(name)
    elif turn % 7 == 3:
        bank.register(name, fleet[name])
    elif turn % 7 == 4:
        _ = bank.bytes, len(bank), list(bank), name in bank, bank.rows()


def requests_of_threads(model: Any, fleet: Any, expected: Any, requests: int) -> None:
    """Eight threads use, add, prefetch and drop; each output is that of its adapter."""
    bank = hotswap.AdapterBank(model, max_adapters=2, max_device_bytes=size_of(model), max_shared=2)
    for name, folder in fleet.items():
        bank.register(name, folder)

    def work(turn: int) -> None:
        pick = random.Random(turn)  # noqa: S311
        for number in range(requests // 8):
            churn(bank, fleet, number + turn)
            serves(bank, model, name := pick.choice(NAMES), expected[name])

    in_threads(8, work)
    found = hotswap.state(model)
    assert (found["using"], found["waiting"]) == (0, 0)
    assert len(bank) <= 3
    assert sum(row["users"] for row in found["banks"]) == 0


def requests_of_tasks(model: Any, fleet: Any, expected: Any, requests: int) -> None:
    bank = hotswap.AdapterBank(model, max_adapters=2)
    for name, folder in fleet.items():
        bank.register(name, folder)
    wrong: list[str] = []

    async def serve(turn: int) -> None:
        for number in range(requests // 100):
            name = NAMES[(turn + number) % 3]
            if turn % 10 == 0:
                churn(bank, fleet, number + turn)
            async with bank.using(name, timeout=WAIT):
                await anyio.lowlevel.checkpoint()
                if not torch.equal(run(model, VALUES), expected[name]):
                    wrong.append(name)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for turn in range(100):
                group.start_soon(serve, turn)

    anyio.run(main)
    assert wrong == []
    assert hotswap.state(model)["using"] == 0


def test_requests_of_threads_see_their_adapter_while_the_bank_changes(
    model: Any, fleet: Any, expected: Any, many_switches: None
) -> None:
    requests_of_threads(model, fleet, expected, 800)


def test_requests_of_tasks_see_their_adapter_while_the_bank_changes(
    model: Any, fleet: Any, expected: Any
) -> None:
    requests_of_tasks(model, fleet, expected, 600)


def test_a_bank_that_threads_change_at_once_keeps_its_order_and_its_limit(
    model: Any, fleet: Any
) -> None:
    bank = hotswap.AdapterBank(model, max_adapters=2, max_bytes=2 * size_of(model))

    def work(turn: int) -> None:
        for number in range(60):
            name = f"{(turn * 7 + number) % 5}"
            bank.add(name, fleet[NAMES[number % 3]])
            list(bank)
            try:
                with bank.using(name, timeout=WAIT):
                    pass
                if number % 3 == 0:
                    bank.remove(name)
            except UnknownAdapterError:
                pass  # removed by another thread

    in_threads(4, work)
    bank.add("last", fleet["one"])
    assert len(bank) <= 2
    assert list(bank)[-1] == "last"
    assert bank.bytes == len(bank) * size_of(model)


def in_child(action: Any) -> int:
    """Fork, and do it in the child; give the child's exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(status)
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="not run: there is no fork")
def test_a_child_process_has_no_uses_of_threads_that_it_lacks(
    model: Any, fleet: Any, expected: Any
) -> None:
    torch.set_num_threads(1)
    bank = hotswap.AdapterBank(model)
    for name, folder in fleet.items():
        bank.add(name, folder)
    inside, done = threading.Event(), threading.Event()

    def use() -> None:
        with bank.using("one"):
            inside.set()
            done.wait(WAIT)

    thread = threading.Thread(target=use)
    thread.start()
    assert inside.wait(WAIT)

    def child() -> None:
        for name in ("two", "one"):
            serves(bank, model, name, expected[name])
        hotswap.swap(model, fleet["three"], timeout=1)

    try:
        assert in_child(child) == 0
        assert hotswap.state(model)["using"] == 1  # here it goes on
        assert entry_of(model).uses.waiting == 0
    finally:
        done.set()
        thread.join(WAIT)
    serves(bank, model, "two", expected["two"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="not run: there is no fork")
def test_a_child_process_keeps_the_use_that_it_is_in(model: Any, fleet: Any, expected: Any) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("one", fleet["one"])
    bank.add("two", fleet["two"])

    def child() -> None:
        assert torch.equal(run(model, VALUES), expected["one"])
        assert hotswap.state(model)["using"] == 1

    with bank.using("one"):
        assert in_child(child) == 0
        assert hotswap.state(model)["using"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="not run: there is no fork")
def test_a_child_process_reads_what_its_parent_was_prefetching(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model)

    def child() -> None:
        reading.may_go_on.set()
        assert bank.prefetch("two").result(WAIT) == bank.digest("two")
        serves(bank, model, "two", expected["two"])

    with watched_reading() as reading:
        reading.may_go_on.clear()
        future = bank.prefetch("two", fleet["two"])
        assert reading.began.wait(WAIT)
        assert in_child(child) == 0
        assert not future.done()
        reading.may_go_on.set()
        assert future.result(WAIT)
    serves(bank, model, "two", expected["two"])
