"""A pipeline is prepared, used and exchanged as a whole: whatever fails, every component is as it was."""

# ruff: noqa: F811 -- fixtures are taken by name

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")

import hotswap
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.slots import lora_layers
from hotswap.engine.parts import parts_of
from hotswap.errors import BusyError
from tests.engine.test_pipelines import (  # noqa: F401
    Make,
    assert_same,
    bits,
    denoiser,
    fleet,
    loaded,
    make,
    prepared,
)
from tests.support.pipelines import outputs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_pipeline_is_prepared_as_a_whole_or_not_at_all(
    make: Make, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = loaded(make, fleet["small"])
    before, made = bits(pipeline), Placement.of
    calls = iter(range(100))

    def failing(*args: Any) -> Placement:
        if next(calls) == 1:
            raise MemoryError
        return made(*args)

    monkeypatch.setattr(Placement, "of", failing)
    with pytest.raises(MemoryError):
        hotswap.prepare(pipeline, target_rank=8)
    monkeypatch.setattr(Placement, "of", made)
    assert_same(before, bits(pipeline), exact=True)
    assert {
        type(la.scaling) for part in parts_of(pipeline) for la in lora_layers(part.model).values()
    } == {dict}
    hotswap.prepare(pipeline, target_rank=8)
    hotswap.swap(pipeline, fleet["large"])
    assert_same(outputs(pipeline), outputs(loaded(make, fleet["large"])))


def test_a_bank_of_a_pipeline_puts_every_component_in_place_at_once(
    make: Make, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, base = prepared(make, fleet["small"]), outputs(make())
    bank = hotswap.AdapterBank(pipeline)
    reported = {name: hotswap.swap(pipeline, fleet[name]).digest for name in ("large", "denoiser")}
    assert {name: bank.add(name, fleet[name]) for name in reported} == reported
    bank.add("none", None)
    for name in ("large", "denoiser", "large"):
        with bank.using(name):
            assert_same(outputs(pipeline), outputs(loaded(make, fleet[name])))
            assert hotswap.active(pipeline) == name
            with pytest.raises(BusyError):
                hotswap.swap(pipeline, None)
    before, put = bits(pipeline), Placement.put
    calls = iter(range(100))

    def failing(self: Placement, *args: Any) -> None:
        put(self, *args)
        if next(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Placement, "put", failing)
    with pytest.raises(KeyboardInterrupt), bank.using("denoiser"):
        pytest.fail("the body must not run")
    assert_same(before, bits(pipeline), exact=True)
    monkeypatch.setattr(Placement, "put", put)
    with bank.using("none"):
        assert_same(outputs(pipeline), base)


def test_the_components_are_locked_together(make: Make, denoiser: str, fleet: Any) -> None:
    pipeline = prepared(make, fleet["small"])
    bank = hotswap.AdapterBank(pipeline.text_encoder, adapter_name="default_0")
    bank.add("none", None)
    with bank.using("none"):
        before = bits(pipeline)
        with pytest.raises(BusyError):
            hotswap.swap(pipeline, fleet["large"])
        assert_same(before, bits(pipeline), exact=True)
