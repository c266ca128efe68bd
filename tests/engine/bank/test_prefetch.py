"""bank.prefetch: read, validated and staged beside the model, so that using it is one copy."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

import hotswap
from hotswap.adapters import hub
from hotswap.engine.layout.registry import placement_of
from hotswap.errors import (
    BusyError,
    HotswapError,
    RankTooLargeError,
    UnknownAdapterError,
    UnreadableAdapterError,
)
from tests.support.models import run
from tests.support.served import (
    VALUES,
    prepared,
    size_of,
    watched_reading,
    write_named,
)

pytestmark = pytest.mark.filterwarnings("ignore")
WAIT = 30


def test_the_model_serves_while_an_adapter_is_read_and_using_it_then_is_one_copy(
    model: Any, fleet: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("one", fleet["one"])
    with watched_reading() as reading:
        reading.may_go_on.clear()
        digest = bank.prefetch("two", fleet["two"])
        assert reading.began.wait(WAIT)
        with bank.using("one", timeout=1):  # nobody holds the model meanwhile
            assert torch.equal(run(model, VALUES), expected["one"])
        assert not digest.done()
        assert "two" not in bank
        reading.may_go_on.set()
        assert digest.result(WAIT) == bank.digest("two")
        assert reading.threads.isdisjoint({threading.get_ident()})
        arena = placement_of(model, "default").arena
        assert arena is not None
        copies: list[Any] = []
        copy = arena.copy
        monkeypatch.setattr(arena, "copy", lambda image: (copies.append(image), copy(image)))
        with bank.using("two"):
            assert torch.equal(run(model, VALUES), expected["two"])
        assert len(copies) == 1
        assert reading.labels() == ["two"]


def test_a_name_is_registered_and_read_when_it_is_first_wanted(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    with watched_reading() as reading:
        for name, folder in fleet.items():
            bank.register(name, folder)
        assert reading.read == []
        assert list(bank) == []
        bank.prefetch("two").result(WAIT)
        for name in ("three", "two", "three"):
            with bank.using(name):
                assert torch.equal(run(model, VALUES), expected[name])
        assert reading.labels() == ["two", "three"]
    assert list(bank) == ["two", "three"]
    assert bank.digest("one")  # reads it


@pytest.mark.parametrize("where", ["disk", "hub"])
def test_what_is_not_read_yet_is_read_while_nobody_holds_the_model(
    where: str, model: Any, fleet: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "fetched", lambda *_, **__: fleet["two"])
    bank = hotswap.AdapterBank(model)
    bank.add("one", fleet["one"])
    bank.register("two", fleet["two"] if where == "disk" else "somebody/two")
    outputs: list[torch.Tensor] = []

    def use() -> None:
        with bank.using("two", timeout=WAIT):
            outputs.append(run(model, VALUES))

    with watched_reading() as reading:
        reading.may_go_on.clear()
        thread = threading.Thread(target=use)
        thread.start()
        assert reading.began.wait(WAIT)
        with bank.using("one", timeout=1):
            assert torch.equal(run(model, VALUES), expected["one"])
        hotswap.swap(model, fleet["three"], timeout=1)
        reading.may_go_on.set()
        thread.join(WAIT)
    assert torch.equal(outputs[0], expected["two"])


def test_who_wants_what_is_being_read_waits_for_that(model: Any, fleet: Any, expected: Any) -> None:
    bank = hotswap.AdapterBank(model)
    outputs: list[torch.Tensor] = []

    def use() -> None:
        with bank.using("two", timeout=WAIT):
            outputs.append(run(model, VALUES))

    with watched_reading() as reading:
        reading.may_go_on.clear()
        bank.prefetch("two", fleet["two"])
        assert reading.began.wait(WAIT)
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        reading.may_go_on.set()
        for thread in threads:
            thread.join(WAIT)
        assert reading.labels() == ["two"]
    assert all(torch.equal(output, expected["two"]) for output in outputs)
    assert len(outputs) == 3


def test_what_is_wanted_now_does_not_wait_for_prefetches_before_it(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    with watched_reading() as reading:
        reading.may_go_on.clear()
        bank.prefetch("one", fleet["one"])
        assert reading.began.wait(WAIT)
        later = bank.prefetch("three", fleet["three"])  # waits behind it
        bank.register("two", fleet["two"])
        reading.may_go_on.set()
        with bank.using("two", timeout=1):
            assert torch.equal(run(model, VALUES), expected["two"])
        with bank.using("three", timeout=1):
            assert torch.equal(run(model, VALUES), expected["three"])
        assert later.result(WAIT) == bank.digest("three")
        assert sorted(reading.labels()) == ["one", "three", "two"]  # each once


def test_a_name_is_prefetched_once_however_often_it_is_asked_for(model: Any, fleet: Any) -> None:
    bank = hotswap.AdapterBank(model)
    with watched_reading() as reading:
        reading.may_go_on.clear()
        first = bank.prefetch("two", fleet["two"])
        assert bank.prefetch("two") is first
        reading.may_go_on.set()
        digest = first.result(WAIT)
        assert bank.prefetch("two").result(WAIT) == digest
        assert reading.labels() == ["two"]


@pytest.mark.parametrize("bad", ["missing", "wide"])
def test_a_prefetch_that_fails_leaves_what_serves(
    bad: str,
    base: Any,
    model: Any,
    fleet: Any,
    expected: Any,
    tmp_path: Path,
) -> None:
    wide = write_named(tmp_path, base, "wide", 6)
    source = wide if bad == "wide" else tmp_path / "missing"
    error = RankTooLargeError if bad == "wide" else UnreadableAdapterError
    bank = hotswap.AdapterBank(model)
    bank.add("x", fleet["two"])
    digest = bank.digest("x")
    assert isinstance(bank.prefetch("x", source).exception(WAIT), error)
    assert isinstance(bank.prefetch("new", source).exception(WAIT), error)
    with bank.using("x"):
        assert torch.equal(run(model, VALUES), expected["two"])
    assert bank.digest("x") == digest
    assert list(bank) == ["x"]
    with pytest.raises(error), bank.using("new"):
        pytest.fail("the body must not run")
    assert hotswap.active(model) == "x"
    assert hotswap.state(model)["using"] == 0
    assert bank.prefetch("new", fleet["three"]).result(WAIT)  # and the worker goes on
    with bank.using("new", timeout=1):
        assert torch.equal(run(model, VALUES), expected["three"])


def test_a_name_that_nobody_knows_is_not_prefetched(model: Any) -> None:
    with pytest.raises(UnknownAdapterError, match=r"no adapter 'x' \(found: \[\]\)"):
        hotswap.AdapterBank(model).prefetch("x")


def test_what_is_removed_while_it_is_prefetched_does_not_come_back(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    with watched_reading() as reading:
        reading.may_go_on.clear()
        reading_now = bank.prefetch("one", fleet["one"])
        assert reading.began.wait(WAIT)
        queued = bank.prefetch("two", fleet["two"])
        bank.remove("two")
        bank.remove("one")
        with pytest.raises(CancelledError):
            queued.result(WAIT)
        reading.may_go_on.set()
        reading_now.result(WAIT)  # it was on its way, and nobody gets it
        assert reading.labels() == ["one"]
    assert list(bank) == []
    for name in ("one", "two"):
        with pytest.raises(UnknownAdapterError), bank.using(name):
            pytest.fail("the body must not run")
    bank.add("two", fleet["two"])
    with bank.using("two"):
        assert torch.equal(run(model, VALUES), expected["two"])


def test_what_is_added_while_the_name_is_prefetched_stays(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    with watched_reading() as reading:
        reading.may_go_on.clear()
        old = bank.prefetch("x", fleet["one"])
        assert reading.began.wait(WAIT)
        thread = threading.Thread(target=lambda: bank.add("x", fleet["two"]))
        thread.start()
        while len(reading.read) < 2:
            time.sleep(0.001)
        reading.may_go_on.set()
        thread.join(WAIT)
        old.exception(WAIT)
    bank.add("x", fleet["three"])
    assert bank.prefetch("x").result(WAIT) == bank.digest("x")
    with bank.using("x"):
        assert torch.equal(run(model, VALUES), expected["three"])


def test_a_prefetched_state_dict_is_what_it_was_when_it_was_given(
    model: Any, base: Any, fleet: Any, expected: Any
) -> None:
    from peft import get_peft_model_state_dict

    from tests.support.models import fresh

    trainer = fresh(base, fleet["two"])
    state = {k: v.detach() for k, v in get_peft_model_state_dict(trainer).items()}
    bank = hotswap.AdapterBank(model)
    with watched_reading() as reading:
        reading.may_go_on.clear()
        future = bank.prefetch("x", state, config=trainer.peft_config["default"])
        for value in state.values():
            value.mul_(2)  # the next training step
        reading.may_go_on.set()
        future.result(WAIT)
    with bank.using("x"):
        assert torch.equal(run(model, VALUES), expected["two"])


def test_a_limit_below_one_adapter_is_said_by_the_future(model: Any, fleet: Any) -> None:
    size = size_of(model)
    bank = hotswap.AdapterBank(model, max_bytes=size - 1)
    before = run(model, VALUES)
    error = bank.prefetch("two", fleet["two"]).exception(WAIT)
    assert isinstance(error, HotswapError)
    with pytest.raises(HotswapError, match=rf"takes {size} bytes, above max_bytes={size - 1}"):
        bank.add("two", fleet["two"])
    with pytest.raises(HotswapError, match="above max_bytes"), bank.using("two"):
        pytest.fail("the body must not run")
    assert bank.bytes == 0
    assert torch.equal(run(model, VALUES), before)
    hotswap.swap(model, fleet["one"], timeout=1)


def test_a_prefetch_does_not_push_out_what_is_used_or_waited_for(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model, max_adapters=2)
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
        error = bank.prefetch("three", fleet["three"]).exception(WAIT)
        assert isinstance(error, HotswapError)
        assert "no room to prefetch: 2 adapters" in str(error)
        assert sorted(bank) == ["one", "two"]
    thread.join(WAIT)
    assert torch.equal(outputs[0], expected["two"])
    bank.prefetch("three").result(WAIT)
    assert sorted(bank) == ["three", "two"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_tasks_go_on_while_one_of_them_waits_for_the_disk(
    backend: str, model: Any, fleet: Any, expected: Any
) -> None:
    if backend == "trio":
        pytest.importorskip("trio", reason="not run: there is no trio")
    bank = hotswap.AdapterBank(model)
    bank.add("one", fleet["one"])
    bank.register("two", fleet["two"])
    served: list[str] = []

    async def cold() -> None:
        async with bank.using("two", timeout=WAIT):
            assert torch.equal(run(model, VALUES), expected["two"])
            served.append("two")

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(cold)
            while not reading.began.is_set():
                await anyio.sleep(0.001)
            for _ in range(3):
                async with bank.using("one", timeout=1):
                    assert torch.equal(run(model, VALUES), expected["one"])
                served.append("one")
            reading.may_go_on.set()

    with watched_reading() as reading:
        reading.may_go_on.clear()
        anyio.run(main, backend=backend)
    assert served == ["one"] * 3 + ["two"]


def test_a_task_that_is_cancelled_while_it_is_read_waits_for_nothing(
    model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    bank.register("two", fleet["two"])

    async def main() -> None:
        with anyio.move_on_after(0.05) as scope:
            await bank.swap("two")
        assert scope.cancelled_caught
        reading.may_go_on.set()
        await bank.swap("two", timeout=WAIT)

    with watched_reading() as reading:
        reading.may_go_on.clear()
        anyio.run(main)
    assert torch.equal(run(model, VALUES), expected["two"])
    assert hotswap.state(model)["banks"][0]["users"] == 0


def test_the_future_is_awaited_by_asyncio(model: Any, fleet: Any) -> None:
    bank = hotswap.AdapterBank(model)

    async def main() -> str:
        return await asyncio.wrap_future(bank.prefetch("two", fleet["two"]))

    assert asyncio.run(main()) == bank.digest("two")


def test_a_copy_of_the_model_is_served_by_a_bank_of_its_own(
    model: Any, fleet: Any, expected: Any
) -> None:
    import copy

    bank = hotswap.AdapterBank(model)
    bank.prefetch("two", fleet["two"]).result(WAIT)
    twin = copy.deepcopy(model)
    with bank.using("two"):
        assert torch.equal(run(model, VALUES), expected["two"])
        assert torch.equal(run(twin, VALUES), expected["one"])
        other = hotswap.AdapterBank(twin)
        other.prefetch("three", fleet["three"]).result(WAIT)
        with other.using("three", timeout=1):
            assert torch.equal(run(twin, VALUES), expected["three"])
        assert torch.equal(run(model, VALUES), expected["two"])
    assert [row["name"] for row in hotswap.state(model)["banks"]] == ["two"]
    assert [row["name"] for row in hotswap.state(twin)["banks"]] == ["three"]


def test_a_bank_that_nobody_holds_goes_with_its_thread(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet["one"])
    bank = hotswap.AdapterBank(model)
    bank.prefetch("two", fleet["two"]).result(WAIT)
    known, before = weakref.ref(bank), threading.active_count()
    del bank
    gc.collect()
    assert known() is None
    deadline = time.monotonic() + WAIT
    while threading.active_count() >= before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert hotswap.state(model)["banks"] == []


def test_a_use_within_ones_own_is_an_error_even_if_it_is_not_read_yet(
    model: Any, fleet: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("one", fleet["one"])
    bank.register("two", fleet["two"])
    with bank.using("one"):
        with pytest.raises(BusyError, match=r"inside AdapterBank\.using"), bank.using("two"):
            pytest.fail("the body must not run")
        bank.prefetch("three", fleet["three"]).result(WAIT)  # this is none
    with bank.using("three", timeout=1):
        pass
