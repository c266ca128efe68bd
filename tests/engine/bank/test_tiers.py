"""Where a bank keeps adapters, what goes for another, and the versions of a name."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from hotswap.errors import HotswapError, UnknownAdapterError
from tests.support.models import run
from tests.support.served import (
    VALUES,
    answers,
    prepared,
    serves,
    size_of,
    watched_reading,
)

pytestmark = pytest.mark.filterwarnings("ignore")
WAIT = 30


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


def test_adapters_of_single_components_are_prefetched_dropped_and_read_again(
    tmp_path: Path,
) -> None:
    pytest.importorskip("diffusers", reason="not run: diffusers is not installed")
    from tests.support.pipelines import outputs, stable_diffusion, write_pipeline_adapter

    files = [
        write_pipeline_adapter(
            tmp_path / str(seed),
            stable_diffusion(tmp_path),
            seed=seed,
            parts=("unet", "text_encoder"),
            r=2,
        )
        for seed in range(2)
    ]
    pipeline = stable_diffusion(tmp_path)
    pipeline.load_lora_weights(files[0], adapter_name="default")
    hotswap.prepare(pipeline, target_rank=4)
    asked: dict[str, dict[str, Any]] = {
        "unet only": {"unet": files[1]},
        "both": {"unet": files[0], "text_encoder": files[1]},
        "empty": {"unet": None, "text_encoder": None},
    }
    expected = {}
    for name, each in asked.items():
        hotswap.swap(pipeline, files[0])
        hotswap.swap(pipeline, each)
        expected[name] = outputs(pipeline)
    bank = hotswap.AdapterBank(pipeline, max_adapters=1, max_device_bytes=1 << 30)
    for name, each in asked.items():
        bank.register(name, each)
    for name in ("both", "unet only", "empty", "both"):
        hotswap.swap(pipeline, files[0])
        bank.prefetch(name).result(WAIT)
        assert list(bank) == [name]
        with bank.using(name):
            for mine, theirs in zip(outputs(pipeline), expected[name], strict=True):
                assert torch.equal(mine, theirs)
        found = hotswap.state(pipeline)
        size = found["bytes"]["in_place"]
        assert (
            found["bytes"]["host"] < size if name == "unet only" else found["bytes"]["host"] == size
        )
        assert found["bytes"]["device"] == found["bytes"]["host"]
        hotswap.swap(pipeline, files[0])
    kept = hotswap.AdapterBank(pipeline)
    kept.add("unet only", asked["unet only"])
    kept.add_weighted("half", {"unet only": 0.5})
    with kept.using("half"):
        assert torch.equal(outputs(pipeline)[0], expected["unet only"][0])  # the text encoder's
        assert hotswap.active(pipeline) == f"text_encoder: {files[0]}, unet: half"
