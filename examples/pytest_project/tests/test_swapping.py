"""What a project asks of its own serving code: no recompile, and every law."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from swapping import FLEET, adapters, serve
from transformers import AutoModelForCausalLM

import hotswap
from pytest_hotswap import HotswapContract, ReferenceSubject

TOKENS = torch.arange(1, 9).reshape(1, 8)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    compiled = serve("aot_eager")
    with torch.no_grad():
        compiled(input_ids=TOKENS, use_cache=False)  # the first call compiles
        yield compiled
    torch.compiler.reset()


@pytest.mark.hotswap(max_recompiles=0)
def test_a_swap_never_recompiles(model: Any) -> None:
    for adapter in adapters():
        hotswap.swap(model, adapter)
        model(input_ids=TOKENS, use_cache=False)


def test_another_adapter_says_something_else(model: Any) -> None:
    first, second, *_ = adapters()
    outputs = []
    for adapter in (first, second):
        hotswap.swap(model, adapter)
        outputs.append(model(input_ids=TOKENS, use_cache=False).logits)
    assert not torch.equal(*outputs)


class Production(ReferenceSubject):
    adapters = str(FLEET / "adapters/*")

    def base_model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(FLEET / "base").eval()


class TestProduction(HotswapContract):
    subject = Production
