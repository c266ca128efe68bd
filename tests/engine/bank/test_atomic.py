"""What a bank does is done or not done, whatever line it is interrupted at, and no lock stays taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import hotswap
from tests.engine.test_atomic import interrupts
from tests.support.models import run
from tests.support.served import (
    VALUES,
    answers,
    in_threads,
    prepared,
    serves,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("how", ["add", "remove", "register", "add_weighted", "using"])
def test_an_operation_of_a_bank_is_all_or_nothing_at_any_line(
    how: str, failure: type, base: Any, fleet: Any
) -> None:
    model = prepared(base, fleet["one"], rank=8)
    expected = answers(base, fleet, rank=8)
    banks: list[Any] = []

    def fill() -> Any:
        bank = hotswap.AdapterBank(model, max_adapters=2)
        bank.add("x", fleet["one"])
        bank.add("two", fleet["two"])
        with bank.using("two"):
            pass
        return bank

    def use() -> None:
        with banks[0].using("x"):
            pass

    action: Callable[[], Any] = {
        "add": lambda: banks[0].add("x", fleet["three"]),
        "remove": lambda: banks[0].remove("x"),
        "register": lambda: banks[0].register("x", fleet["three"]),
        "add_weighted": lambda: banks[0].add_weighted("x", {"x": 1.0, "two": 0.0}),
        "using": use,
    }[how]
    after = {"add": "three"}.get(how, "one")
    count = 0
    banks.append(fill())
    for _ in interrupts(failure, action):
        bank, count = banks[0], count + 1

        def others(turn: int, bank: Any = bank) -> None:
            serves(bank, model, "two", expected["two"])
            if "x" in bank:
                with bank.using("x", timeout=30):
                    output = run(model, VALUES)
                assert any(
                    torch.allclose(output, expected[name], rtol=1e-4, atol=1e-5)
                    for name in ("one", after)
                )

        in_threads(2, others)
        assert "x" in bank or how == "remove"
        assert len(bank) <= 2
        found = hotswap.state(model)
        assert (found["using"], found["waiting"]) == (0, 0)
        assert sum(row["users"] for row in found["banks"]) == 0
        banks[0] = fill()
    assert count > 5
