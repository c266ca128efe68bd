"""hotswap.state: what is in place and kept, as plain data that a health endpoint can tell."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from hotswap.engine.layout.registry import placement_of
from hotswap.errors import NoAdapterError, NotPreparedError
from tests.support.models import fresh
from tests.support.served import NAMES, base_model, prepared, size_of, write_named

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


@pytest.fixture
def model(base: Any, fleet: dict[str, Path]) -> Any:
    return prepared(base, fleet["one"])


def in_place(model: Any) -> dict[str, Any]:
    (row,) = hotswap.state(model)["in_place"]
    return dict(row)


def test_it_tells_what_is_in_place_and_what_is_kept_where(model: Any, fleet: Any) -> None:
    size = size_of(model)
    bank = hotswap.AdapterBank(model, max_adapters=2, max_device_bytes=size)
    for name, folder in fleet.items():
        bank.add(name, folder)
    bank.prefetch("three").result(WAIT)
    with bank.using("two"):
        found = hotswap.state(torch.compile(model, backend="eager"))
        assert found["using"] == 1
    assert json.loads(json.dumps(found)) == found
    assert found["in_place"] == [
        {
            "component": "",
            "name": "default",
            "active": "two",
            "digest": bank.digest("two"),
            "bytes": size,
            "swaps": 1,
        }
    ]
    rows = {row.pop("name"): row for row in found["banks"]}
    assert {name: (row["tier"], row["users"]) for name, row in rows.items()} == {
        "one": ("disk", 0),
        "two": ("host", 1),
        "three": ("device", 0),
    }
    assert {row["digest"] for row in rows.values()} == {bank.digest(name) for name in NAMES}
    assert found["bytes"] == {"in_place": size, "device": size, "host": 2 * size}


def test_the_digest_is_that_of_what_is_in_place_or_not_told(model: Any, fleet: Any) -> None:
    assert in_place(model)["digest"] is None  # loaded by PEFT
    report = hotswap.swap(model, fleet["two"])
    assert in_place(model)["digest"] == report.digest
    assert in_place(model)["active"] == str(fleet["two"])
    for number in range(3):
        hotswap.swap(model, fleet[NAMES[number]])
    assert in_place(model)["digest"] == hotswap.swap(model, fleet["three"]).digest
    assert in_place(model)["swaps"] == 5
    with torch.no_grad():
        placement_of(model, "default").slots[0].tensor.mul_(2)
    assert in_place(model)["digest"] is None
    hotswap.swap(model, None)
    assert in_place(model)["active"] is None
    assert in_place(model)["digest"] is not None


def test_a_swap_while_the_digest_is_computed_is_no_digest_of_another(
    model: Any, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hotswap.swap(model, fleet["one"])
    staged = placement_of(model, "default").staged
    assert staged is not None
    real = type(staged)._hash

    def swapping(self: Any) -> str:
        monkeypatch.setattr(type(staged), "_hash", real)
        hotswap.swap(model, fleet["two"])
        hotswap.swap(model, fleet["three"])  # into the buffer of the first
        return real(self)

    monkeypatch.setattr(type(staged), "_hash", swapping)
    assert in_place(model)["digest"] is None
    assert in_place(model)["digest"] == hotswap.swap(model, fleet["three"]).digest


def test_swaps_that_fail_are_not_counted_and_waits_are(model: Any, fleet: Any) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("one", fleet["one"])
    for _ in range(3):
        with bank.using("one"):
            pass
    with pytest.raises(hotswap.HotswapError):
        hotswap.swap(model, fleet["one"] / "missing")
    assert hotswap.state(model)["swaps"] == 1
    assert hotswap.state(model)["waits"] == 0

    def use() -> None:
        with bank.using("one", timeout=WAIT):
            pass

    with bank.using("one"):
        thread = threading.Thread(target=use)
        thread.start()
        while not hotswap.state(model)["waiting"]:
            time.sleep(0.001)
        time.sleep(0.02)
    thread.join(WAIT)
    found = hotswap.state(model)
    assert (found["waits"], found["waiting"], found["using"]) == (1, 0, 0)
    assert 0.02 <= found["waited_seconds"] < WAIT


def test_every_name_and_component_has_a_row(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["one"])
    model.load_adapter(fleet["two"], "other")
    hotswap.prepare(model, target_rank=4)
    hotswap.swap(model, fleet["three"], adapter_name="other")
    rows = hotswap.state(model)["in_place"]
    assert {row["name"]: row["active"] for row in rows} == {
        "default": "default",
        "other": str(fleet["three"]),
    }


def test_a_model_that_is_not_prepared_is_said_to_be(base: Any, fleet: Any) -> None:
    with pytest.raises(NotPreparedError):
        hotswap.state(fresh(base, fleet["one"]))
    with pytest.raises(NoAdapterError):
        hotswap.state(base)


def test_a_pipeline_is_told_component_by_component(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="not run: diffusers is not installed")
    from tests.support.pipelines import stable_diffusion, write_pipeline_adapter

    file = write_pipeline_adapter(
        tmp_path / "file", stable_diffusion(tmp_path), seed=1, parts=("unet", "text_encoder"), r=2
    )
    pipeline = stable_diffusion(tmp_path)
    pipeline.load_lora_weights(file, adapter_name="default")
    hotswap.prepare(pipeline, target_rank=4)
    bank = hotswap.AdapterBank(pipeline)
    bank.add("x", file)
    with bank.using("x"):
        found = hotswap.state(pipeline)
    assert {row["component"]: row["active"] for row in found["in_place"]} == {
        "unet": "x",
        "text_encoder": "x",
    }
    assert [row["name"] for row in found["banks"]] == ["x"]
    assert found["bytes"]["host"] == bank.bytes == found["bytes"]["in_place"]
    assert found["using"] == 2  # one for each component
