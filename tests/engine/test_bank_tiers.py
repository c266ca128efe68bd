"""Where a bank keeps adapters, what goes for another, and the versions of a name."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import torch

import hotswap
from hotswap.engine.layout.registry import entry_of
from hotswap.errors import HotswapError, UnknownAdapterError
from tests.support.models import run
from tests.support.served import (
    NAMES,
    VALUES,
    answers,
    base_model,
    in_threads,
    prepared,
    size_of,
    watched_reading,
    write_named,
)

pytestmark = pytest.mark.filterwarnings("ignore")
WAIT = 30


@pytest.fixture(scope="module")
def base() -> Any:
    return base_model()


@pytest.fixture(scope="module")
def fleet(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fleet")
    return {
        name: write_named(folder, base, name, rank)
        for name, rank in zip(NAMES, (2, 3, 4), strict=True)
    }


@pytest.fixture(scope="module")
def expected(base: Any, fleet: dict[str, Path]) -> dict[str, torch.Tensor]:
    return answers(base, fleet)


@pytest.fixture
def model(base: Any, fleet: dict[str, Path]) -> Any:
    return prepared(base, fleet["one"])


def serves(bank: Any, model: Any, name: str, answer: torch.Tensor) -> None:
    with bank.using(name, timeout=WAIT):
        assert torch.equal(run(model, VALUES), answer)


def tiers(model: Any) -> dict[str, str]:
    return {row["name"]: row["tier"] for row in hotswap.state(model)["banks"]}


# where adapters are kept


def test_what_was_dropped_is_read_again_from_where_it_came(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model, max_adapters=2)
    for name, folder in fleet.items():
        bank.add(name, folder)
    digest = bank.digest("one")
    assert tiers(model) == {"one": "disk", "two": "host", "three": "host"}
    with watched_reading() as reading:
        serves(bank, model, "one", expected["one"])
        serves(bank, model, "one", expected["one"])
        assert reading.labels() == ["one"]
    assert bank.digest("one") == digest
    assert len(bank) == 2
    assert bank.bytes == 2 * size_of(model)


def test_what_was_dropped_and_is_another_on_the_disk_by_now_is_refused(
    model: Any, fleet: Any, expected: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(fleet["one"], tmp_path / "changing"))
    bank = hotswap.AdapterBank(model, max_adapters=1)
    bank.add("x", folder)
    bank.add("two", fleet["two"])
    shutil.rmtree(folder)
    shutil.copytree(fleet["three"], folder)
    with pytest.raises(HotswapError, match="'x' are others than when it was added; add"):
        bank.prefetch("x").result(WAIT)
    with pytest.raises(HotswapError, match="add\\(\\) it again"), bank.using("x"):
        pytest.fail("the body must not run")
    bank.add("x", folder)
    serves(bank, model, "x", expected["three"])


def test_a_wider_model_reads_what_was_dropped_anew(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet["one"])
    bank = hotswap.AdapterBank(model, max_adapters=1)
    bank.add("one", fleet["one"])
    bank.add("two", fleet["two"])
    hotswap.prepare(model, target_rank=6)
    serves(bank, model, "one", answers(base, fleet, 6)["one"])


def test_a_state_dict_that_was_dropped_is_gone(model: Any, base: Any, fleet: Any) -> None:
    from peft import get_peft_model_state_dict

    from tests.support.models import fresh

    given = fresh(base, fleet["two"])
    bank = hotswap.AdapterBank(model, max_adapters=1)
    config = given.peft_config["default"]
    bank.add("x", get_peft_model_state_dict(given), config=config)
    bank.add("one", fleet["one"])
    with pytest.raises(UnknownAdapterError, match=r"no adapter 'x' \(found: \['one'\]\)"):
        bank.prefetch("x")


def test_prefetched_ones_have_a_copy_on_the_device_up_to_its_limit(
    model: Any, fleet: Any, expected: Any
) -> None:
    size = size_of(model)
    bank = hotswap.AdapterBank(model, max_device_bytes=2 * size)
    for name, folder in fleet.items():
        bank.add(name, folder)
        assert tiers(model)[name] == "host"
        bank.prefetch(name).result(WAIT)
    assert tiers(model) == {"one": "host", "two": "device", "three": "device"}
    assert bank.bytes == 5 * size
    for name in ("two", "one", "three", "two"):
        serves(bank, model, name, expected[name])
    bank.prefetch("one").result(WAIT)  # three was used less lately than two
    assert tiers(model) == {"one": "device", "two": "device", "three": "host"}
    bank.remove("one")
    assert hotswap.state(model)["bytes"] == {"in_place": size, "device": size, "host": 2 * size}
    for name in ("three", "two"):
        serves(bank, model, name, expected[name])


def test_what_is_used_keeps_its_place_on_the_device(model: Any, fleet: Any, expected: Any) -> None:
    bank = hotswap.AdapterBank(model, max_device_bytes=size_of(model))
    bank.prefetch("one", fleet["one"]).result(WAIT)
    with bank.using("one"):
        bank.prefetch("two", fleet["two"]).result(WAIT)
        assert tiers(model) == {"one": "device", "two": "host"}
    serves(bank, model, "two", expected["two"])
    bank.prefetch("two").result(WAIT)
    assert tiers(model) == {"one": "host", "two": "device"}


def test_a_limit_of_the_device_is_refused_where_all_is_there_already(model: Any) -> None:
    with pytest.raises(ValueError, match="max_device_bytes is given with device='model'"):
        hotswap.AdapterBank(model, device="model", max_device_bytes=10)
    with pytest.raises(ValueError, match="max_device_bytes is 0"):
        hotswap.AdapterBank(model, max_device_bytes=0)


def test_an_empty_bank_is_a_bank(model: Any) -> None:
    bank = hotswap.AdapterBank(model)
    assert bank
    assert len(bank) == 0


# what somebody uses or waits for stays


def test_what_somebody_waits_for_is_not_dropped(model: Any, fleet: Any, expected: Any) -> None:
    bank = hotswap.AdapterBank(model, max_adapters=2)
    bank.add("one", fleet["one"])
    bank.add("two", fleet["two"])
    outputs: list[torch.Tensor] = []

    def use() -> None:
        with bank.using("two", timeout=WAIT):
            outputs.append(run(model, VALUES))

    with watched_reading() as reading:
        with bank.using("one"):
            reading.read.clear()
            thread = threading.Thread(target=use)
            thread.start()
            while not hotswap.state(model)["waiting"]:
                time.sleep(0.001)
            bank.add("three", fleet["three"])
            # above the limit for as long as that lasts
            assert sorted(bank) == ["one", "three", "two"]
        thread.join(WAIT)
        assert reading.labels() == ["three"]
    assert torch.equal(outputs[0], expected["two"])
    assert list(bank) == ["three", "two"]


def test_who_waits_for_a_name_that_is_removed_gets_what_it_was(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("one", fleet["one"])
    bank.add("two", fleet["two"])
    outputs: list[torch.Tensor] = []

    def use() -> None:
        with bank.using("two", timeout=WAIT):
            outputs.append(run(model, VALUES))

    with bank.using("one"):
        thread = threading.Thread(target=use)
        thread.start()
        while not hotswap.state(model)["waiting"]:
            time.sleep(0.001)
        bank.remove("two")
        bank.remove("one")
        assert torch.equal(run(model, VALUES), expected["one"])
    thread.join(WAIT)
    assert torch.equal(outputs[0], expected["two"])
    with pytest.raises(UnknownAdapterError), bank.using("two"):
        pytest.fail("the body must not run")


def test_a_name_that_is_added_anew_serves_the_next_and_the_old_one_goes(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("x", fleet["one"])
    outputs: list[torch.Tensor] = []

    def use() -> None:
        with bank.using("x", timeout=WAIT):
            outputs.append(run(model, VALUES))

    with bank.using("x"):
        old = weakref.ref(bank._shelf.staged["x"])
        image = weakref.ref(bank._shelf.staged["x"].staged[0].image)  # type: ignore[index]
        thread = threading.Thread(target=use)
        thread.start()
        while not hotswap.state(model)["waiting"]:
            time.sleep(0.001)
        bank.add("x", fleet["two"])
        assert torch.equal(run(model, VALUES), expected["one"])
    thread.join(WAIT)
    assert torch.equal(outputs[0], expected["two"])
    serves(bank, model, "x", expected["two"])
    gc.collect()
    assert old() is None
    assert image() is None
    assert bank.bytes == size_of(model)


def test_users_that_share_finish_on_their_version(model: Any, fleet: Any, expected: Any) -> None:
    bank = hotswap.AdapterBank(model, max_shared=3)
    bank.add("x", fleet["one"])
    entered, done = threading.Barrier(4), threading.Event()
    right: list[bool] = []

    def use() -> None:
        with bank.using("x", timeout=WAIT):
            entered.wait(WAIT)
            assert done.wait(WAIT)
            right.append(torch.equal(run(model, VALUES), expected["one"]))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    entered.wait(WAIT)
    bank.prefetch("x", fleet["two"]).result(WAIT)
    outputs: list[torch.Tensor] = []

    def use_next() -> None:
        with bank.using("x", timeout=WAIT):
            outputs.append(run(model, VALUES))

    threads.append(threading.Thread(target=use_next))
    threads[-1].start()
    while not hotswap.state(model)["waiting"]:
        time.sleep(0.001)
    done.set()
    for thread in threads:
        thread.join(WAIT)
    assert right == [True] * 3
    assert torch.equal(outputs[0], expected["two"])


# threads, tasks and processes


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
    model: Any, fleet: Any, expected: Any
) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        requests_of_threads(model, fleet, expected, 800)
    finally:
        sys.setswitchinterval(before)


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
