"""A bank whose model is another one by now is refused, or serves the right thing; it never writes past it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap.errors import HotswapError
from tests.support.models import Around, run
from tests.support.served import VALUES, prepared, serves

pytestmark = pytest.mark.filterwarnings("ignore")


def plain_layer(inner: Any) -> None:
    inner.layer[1] = nn.Linear(8, 8)


def plain_block(inner: Any) -> None:
    inner.layer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


@pytest.mark.parametrize("change", [plain_layer, plain_block])
def test_layers_that_were_replaced_are_not_written_any_more(
    change: Callable[[Any], None], model: Any, fleet: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("two", fleet["two"])
    gone = model.base_model.model.layer[1].lora_B["default"].weight
    before = gone.detach().clone()
    change(model.base_model.model)
    with pytest.raises(HotswapError), bank.using("two"):
        pytest.fail("the body must not run")
    assert torch.equal(gone, before)


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_factor_that_was_replaced_is_written_where_it_is_now(
    factor: str, model: Any, fleet: Any, expected: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("two", fleet["two"])
    factors = getattr(model.base_model.model.layer[1], factor)
    factors["default"] = copy.deepcopy(factors["default"])
    serves(bank, model, "two", expected["two"])
    hotswap.swap(model, fleet["three"])
    torch.testing.assert_close(run(model, VALUES), expected["three"])


@pytest.mark.parametrize("whose", ["a pipeline's", "a wrapper's"])
def test_a_model_in_place_of_the_banks_own_is_refused(
    whose: str, model: Any, base: Any, fleet: Any
) -> None:
    other = prepared(base, fleet["one"])
    served: Any = Around(model)
    if whose == "a pipeline's":
        served = SimpleNamespace(components={"unet": model})
    bank = hotswap.AdapterBank(served)
    bank.add("none", None)
    compiled = torch.compile(model, backend="eager")
    for now in (compiled, other):
        if whose == "a pipeline's":
            served.components["unet"] = now
        else:
            served.layer = now
        if now is compiled:
            with bank.using("none"):
                continue
        with pytest.raises(HotswapError, match="is another one than when the bank was made"):
            bank.using("none").__enter__()


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_bank_is_not_copied(way: Callable[[Any], Any], model: Any) -> None:
    with pytest.raises(TypeError, match="make another one"):
        way(hotswap.AdapterBank(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_model_that_was_prepared_anew_in_another_dtype_refuses_what_was_staged(
    dtype: torch.dtype, model: Any, fleet: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("two", fleet["two"])
    model.base_model.model.layer[0].to(torch.float64).to(dtype)  # its scaling stays float64
    model.base_model.model.layer[1].to(dtype)
    hotswap.prepare(model, target_rank=4)
    with pytest.raises(HotswapError, match="prepared anew after 'two' was staged"):
        bank.using("two").__enter__()
    bank.add("two", fleet["two"])
    with bank.using("two"):
        values = VALUES.to(dtype)
        hotswap.swap(twin := copy.deepcopy(model), fleet["two"])
        assert torch.equal(run(model, values), run(twin, values))
