"""hotswap.engine: a prepared model holds what its plan says, and swapping does not grow."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._functorch import is_functorch_wrapped_tensor

import hotswap
from tests.support.models import fresh, micro, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base() -> Any:
    return micro()


@pytest.fixture(scope="module")
def fleet(base: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("fleet")
    return [
        write_adapter(folder / "small", base, r=2, use_dora=True, target_modules=["first"]),
        write_adapter(folder / "large", base, r=7, lora_bias=True, target_modules=["second"]),
        write_adapter(folder / "all", base, r=3, rank_pattern={"conv": 5}),
    ]


def living() -> list[torch.Tensor]:
    """The plain tensors that exist."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    plain = [thing for thing in gc.get_objects() if type(thing) in kinds]
    return [tensor for tensor in plain if not is_functorch_wrapped_tensor(tensor)]


def grown(before: list[torch.Tensor]) -> int:
    """The bytes of storages that were not there; ``before`` keeps the others, so none can go."""
    old = {tensor.untyped_storage().data_ptr() for tensor in before}
    found = (tensor.untyped_storage() for tensor in living())
    new = {each.data_ptr(): each.nbytes() for each in found if each.data_ptr() not in old}
    return sum(new.values())


def test_growth_sees_a_tensor_that_stays() -> None:
    before = living()
    kept = torch.zeros(1000)
    assert grown(before) == kept.untyped_storage().nbytes()


def test_a_prepared_model_holds_exactly_what_the_plan_says(base: Any, fleet: list[Path]) -> None:
    plan = hotswap.plan(fleet)
    model = fresh(base, fleet[2])
    report = hotswap.prepare(model, plan=plan)
    assert report.bytes == plan.padded_bytes
    views = [p for name, p in model.named_parameters() if "lora_" in name]
    views += [b for name, b in model.named_buffers() if ".scaling." in name]
    held = {view.untyped_storage().data_ptr(): view.untyped_storage().nbytes() for view in views}
    assert sum(held.values()) == plan.padded_bytes


def test_a_uniform_rank_holds_what_the_plan_says_of_it(base: Any, fleet: list[Path]) -> None:
    plan = hotswap.plan([fleet[2]])
    assert plan.uniform_bytes > plan.padded_bytes
    model = fresh(base, fleet[2])
    assert hotswap.prepare(model, target_rank=plan.target_rank).bytes == plan.uniform_bytes


def test_swapping_does_not_grow(base: Any, fleet: list[Path]) -> None:
    model = hotswap.load(micro(), hotswap.plan(fleet), fleet[0])
    bank = hotswap.AdapterBank(model)
    bank.add("large", fleet[1])

    def turn() -> None:
        for adapter in (*fleet, None):
            hotswap.swap(model, adapter)
        with bank.using("large"):
            pass

    for _ in range(3):
        turn()
    before = living()
    for _ in range(30):
        turn()
    assert grown(before) == 0
