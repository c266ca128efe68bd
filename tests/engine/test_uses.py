"""Uses of a model's adapters: a fair queue of threads and tasks, shared where all want the same."""

from __future__ import annotations

import gc
import importlib.util
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import torch
from torch import nn

import hotswap
from hotswap.engine.layout.registry import entry_of, placement_of
from hotswap.engine.layout.uses import Use, Uses
from hotswap.errors import BusyError, HotswapError, UnknownAdapterError
from tests.support.models import Around, fresh, run, seeded, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ("one", "two", "three")
VALUES = torch.linspace(-1, 1, 8).reshape(1, 8)
HAS_TRIO = importlib.util.find_spec("trio") is not None
NO_TRIO = pytest.mark.skipif(not HAS_TRIO, reason="not run: there is no trio")
BACKENDS = ["asyncio", pytest.param("trio", marks=NO_TRIO)]


@pytest.fixture(scope="module")
def base() -> Any:
    return seeded(lambda: Around(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))))


@pytest.fixture(scope="module")
def fleet(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fleet")
    return {
        name: write_adapter(
            folder / name, base, r=r, lora_alpha=8, target_modules=["layer.0", "layer.1"], seed=r
        )
        for name, r in zip(NAMES, (2, 3, 4), strict=True)
    }


@pytest.fixture
def model(base: Any, fleet: dict[str, Path]) -> Any:
    found = fresh(base, fleet["one"])
    hotswap.prepare(found, target_rank=4)
    return found


def banked(model: Any, fleet: dict[str, Path], **options: Any) -> hotswap.AdapterBank:
    bank = hotswap.AdapterBank(model, **options)
    for name, folder in fleet.items():
        bank.add(name, folder)
    return bank


@pytest.fixture
def expected(base: Any, fleet: dict[str, Path]) -> dict[str, torch.Tensor]:
    twin, found = fresh(base, fleet["one"]), {}
    hotswap.prepare(twin, target_rank=4)
    for name, folder in fleet.items():
        hotswap.swap(twin, folder)
        found[name] = run(twin, VALUES)
        torch.testing.assert_close(found[name], run(fresh(base, folder), VALUES))
    return found


def elsewhere(action: Callable[[], Any]) -> Any:
    """Do it in a thread of its own, to its end."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result()


def test_a_use_ends_in_another_thread_than_it_began_in(model: Any, fleet: Any) -> None:
    bank = banked(model, fleet)
    scope = bank.using("one")
    elsewhere(scope.__enter__)
    with pytest.raises(BusyError, match=r"in use for 0.01 s"):
        hotswap.swap(model, fleet["two"], timeout=0.01)
    elsewhere(lambda: scope.__exit__(None, None, None))
    hotswap.swap(model, fleet["two"], timeout=5)
    with bank.using("three", timeout=5):
        assert hotswap.active(model) == "three"


def test_a_use_that_nobody_holds_any_more_has_ended(model: Any, fleet: Any) -> None:
    uses = entry_of(model).uses
    kept = [Use("default")]
    elsewhere(lambda: uses.take(kept[0]))
    with pytest.raises(BusyError):
        hotswap.swap(model, fleet["two"], timeout=0.01)
    kept.clear()
    gc.collect()
    hotswap.swap(model, fleet["two"], timeout=0.01)


def test_those_who_wait_have_their_turn_in_the_order_in_which_they_came() -> None:
    uses, order = Uses(), []
    first = Use("default")
    uses.take(first)

    def wait(number: int) -> None:
        use = Use("default")
        uses.take(use)
        order.append(number)
        uses.end(use)

    threads = []
    for number in range(20):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while uses.waiting <= number:
            time.sleep(0.001)
    uses.end(first)
    for thread in threads:
        thread.join()
    assert order == list(range(20))
    assert uses.waiting == 0


def test_who_gives_up_waiting_keeps_nobody_from_going_on() -> None:
    uses = Uses()
    first, second = Use("default"), Use("default")
    uses.take(first)

    def give_up() -> None:
        with pytest.raises(BusyError):
            uses.take(Use("default"), 0.01)

    elsewhere(give_up)
    assert uses.waiting == 0
    uses.end(first)
    uses.take(second, 0.01)
    uses.end(second)
    uses.end(second)  # twice is harmless


def test_requests_for_the_adapter_in_place_share_it_up_to_a_number(
    model: Any, fleet: Any, expected: dict[str, torch.Tensor]
) -> None:
    bank = banked(model, fleet, max_shared=2)
    one, two, three = (bank.using(name, timeout=0.05) for name in ("one", "one", "one"))
    elsewhere(one.__enter__)
    elsewhere(two.__enter__)
    with pytest.raises(BusyError):
        elsewhere(three.__enter__)
    with pytest.raises(BusyError):  # an exchange waits for both
        elsewhere(bank.using("two", timeout=0.05).__enter__)
    one.__exit__()
    with pytest.raises(BusyError):
        elsewhere(bank.using("two", timeout=0.05).__enter__)
    two.__exit__()
    with bank.using("two", timeout=0.05):
        assert torch.equal(run(model, VALUES), expected["two"])
    alone = banked(model, fleet)
    scope = alone.using("one")
    elsewhere(scope.__enter__)
    with pytest.raises(BusyError):
        elsewhere(alone.using("one", timeout=0.05).__enter__)
    scope.__exit__()


def test_two_adapter_names_of_a_model_are_used_in_one_request(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["one"])
    model.load_adapter(fleet["two"], "other")
    hotswap.prepare(model, target_rank=4)
    first, second = banked(model, fleet), banked(model, fleet, adapter_name="other")
    with first.using("two"), second.using("three"):
        assert hotswap.active(model) == "two"
        assert hotswap.active(model, adapter_name="other") == "three"
        with pytest.raises(BusyError, match=r"inside AdapterBank\.using"), first.using("one"):
            pytest.fail("the body must not run")
        with first.using("two"):  # the same again
            pass
    with first.using("two"):
        hotswap.swap(model, fleet["one"], adapter_name="other")
    assert hotswap.active(model, adapter_name="other") == str(fleet["one"])
    assert entry_of(model).uses.mine() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_wait_for_each_other(
    backend: str, model: Any, fleet: Any, expected: dict[str, torch.Tensor]
) -> None:
    bank = banked(model, fleet)
    right: list[bool] = []

    async def request(name: str) -> None:
        async with bank.using(name, timeout=5):
            await anyio.sleep(0.001)
            right.append(torch.equal(run(model, VALUES), expected[name]))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for name in NAMES * 4:
                group.start_soon(request, name)
        await bank.swap("two")
        with bank.using("two"):  # nobody else has it
            pass

    anyio.run(main, backend=backend)
    assert right == [True] * 12
    assert hotswap.active(model) == "two"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_that_is_cancelled_or_waits_too_long_lets_the_others_go_on(
    backend: str, model: Any, fleet: Any
) -> None:
    bank = banked(model, fleet)

    async def hold(asked: anyio.Event, done: anyio.Event) -> None:
        async with bank.using("one"):
            asked.set()
            await done.wait()

    async def main() -> None:
        asked, done = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(hold, asked, done)
            await asked.wait()
            with anyio.move_on_after(0.01) as cancelled:
                await bank.swap("two")
            assert cancelled.cancelled_caught
            with pytest.raises(BusyError, match=r"in use for 0.01 s"):
                await bank.swap("two", timeout=0.01)
            assert entry_of(model).uses.waiting == 0
            done.set()
        async with bank.using("three", timeout=0.05):
            pass

    anyio.run(main, backend=backend)
    assert entry_of(model).uses.waiting == 0


def test_a_plain_with_in_another_task_is_told_to_be_async(model: Any, fleet: Any) -> None:
    bank = banked(model, fleet)

    async def other() -> None:
        with (
            pytest.raises(BusyError, match=r"async with bank\.using"),
            bank.using("two", timeout=5),
        ):
            pytest.fail("the body must not run")

    async def hold(asked: anyio.Event, done: anyio.Event) -> None:
        async with bank.using("one"):
            asked.set()
            await done.wait()

    async def main() -> None:
        asked, done = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(hold, asked, done)
            await asked.wait()
            await other()
            done.set()

    anyio.run(main)


def test_10000_requests_of_threads_see_their_own_adapter(
    model: Any, fleet: Any, expected: dict[str, torch.Tensor]
) -> None:
    bank = banked(model, fleet, max_shared=3)
    wrong: list[str] = []

    def serve(turn: int) -> None:
        for number in range(1250):
            name = NAMES[(turn + number // 3) % 3]
            with bank.using(name, timeout=60):
                if not torch.equal(run(model, VALUES), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=serve, args=(turn,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert entry_of(model).uses.waiting == 0


def test_10000_requests_of_tasks_see_their_own_adapter(
    model: Any, fleet: Any, expected: dict[str, torch.Tensor]
) -> None:
    bank = banked(model, fleet)
    wrong: list[str] = []

    async def serve(turn: int) -> None:
        for number in range(100):
            name = NAMES[(turn + number) % 3]
            async with bank.using(name, timeout=60):
                await anyio.lowlevel.checkpoint()
                if not torch.equal(run(model, VALUES), expected[name]):
                    wrong.append(name)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for turn in range(100):
                group.start_soon(serve, turn)

    anyio.run(main)
    assert wrong == []


def test_names_added_and_removed_meanwhile_are_no_error(model: Any, fleet: Any) -> None:
    bank = hotswap.AdapterBank(model, max_adapters=2)
    errors: list[BaseException] = []
    unknown = [0]

    def work(turn: int) -> None:
        try:
            for number in range(150):
                name = NAMES[(turn + number) % 3]
                bank.add(name, fleet[name])
                _ = bank.bytes, len(bank), list(bank)
                try:
                    with bank.using(name):
                        pass
                    bank.remove(name)
                except UnknownAdapterError:
                    unknown[0] += 1  # evicted by another thread
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(bank) <= 2


def test_weights_written_in_place_meanwhile_are_put_back_by_the_next_use(
    model: Any, fleet: Any, expected: dict[str, torch.Tensor]
) -> None:
    bank = banked(model, fleet)
    with bank.using("two"), torch.no_grad():
        placement_of(model, "default").slots[0].tensor.mul_(2)
    with bank.using("two"):
        assert torch.equal(run(model, VALUES), expected["two"])
    hotswap.set_scale(model, 0.5)
    with bank.using("two"):  # a scale of the user's stays
        assert not torch.equal(run(model, VALUES), expected["two"])


def test_a_bank_from_before_the_model_was_widened_is_refused(
    base: Any, fleet: Any, tmp_path: Path
) -> None:
    model = fresh(base, fleet["one"])
    hotswap.prepare(model, target_rank=4)
    bank = banked(model, fleet)
    before = [p.detach().clone() for p in model.parameters()]
    hotswap.prepare(model, target_rank=6)
    with (
        pytest.raises(HotswapError, match="prepared anew after 'two' was staged"),
        bank.using("two"),
    ):
        pytest.fail("the body must not run")
    hotswap.swap(model, fleet["one"])
    bank.add("two", fleet["two"])
    with bank.using("two"):
        torch.testing.assert_close(run(model, VALUES), run(fresh(base, fleet["two"]), VALUES))
    assert len(before) == len([*model.parameters()])


def test_an_adapter_that_was_unloaded_or_replaced_is_not_written_any_more(
    base: Any, fleet: Any
) -> None:
    model = fresh(base, fleet["one"])
    hotswap.prepare(model, target_rank=4)
    hotswap.swap(model, fleet["two"])
    placement = weakref.ref(placement_of(model, "default"))
    bare = model.unload()
    with pytest.raises(HotswapError):
        hotswap.swap(model, fleet["three"])
    del model
    gc.collect()
    assert placement() is None
    torch.testing.assert_close(run(bare, VALUES), run(base, VALUES))


def test_a_deleted_adapter_takes_its_placement_along(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["one"])
    model.load_adapter(fleet["two"], "other")
    hotswap.prepare(model, target_rank=4)
    placement = weakref.ref(placement_of(model, "default"))
    model.set_adapter("other")
    model.delete_adapter("default")
    gc.collect()
    assert placement() is None
    hotswap.swap(model, fleet["three"])  # the only adapter, whatever its name
    torch.testing.assert_close(run(model, VALUES), run(fresh(base, fleet["three"]), VALUES))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("who", ["another thread", "this thread"])
def test_after_a_fork_the_child_does_not_wait_for_threads_that_it_lacks(
    who: str, base: Any, fleet: dict[str, Path]
) -> None:
    model = fresh(base, fleet["three"])
    hotswap.prepare(model, target_rank=4)
    uses, own = entry_of(model).uses, Use("a")
    taken, end = threading.Event(), threading.Event()

    def hold() -> None:
        uses.take(other := Use("a"))
        taken.set()
        end.wait(60)
        uses.end(other)

    thread = threading.Thread(target=hold)
    if who == "another thread":
        thread.start()
        taken.wait(60)
    else:
        uses.take(own)
    child = os.fork()
    if child == 0:  # no test may go on here
        free = True
        try:
            uses.take(Use("a"), 0.2)
        except BusyError:
            free = False
        os._exit(int(free))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (who == "another thread")
    if who == "another thread":
        with pytest.raises(BusyError):  # the parent's thread has it still
            uses.take(Use("a"), 0.05)
        end.set()
        thread.join()
    uses.end(own)
    uses.take(Use("a"), 5)
