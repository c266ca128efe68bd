"""What ran before makes no difference: torch recompiles for a number once, and then never again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from hotswap.compiler.regions import unwrap
from hotswap.engine.layout.slots import lora_layers
from pytest_hotswap import ReferenceSubject, run_hotswap_machine
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from pytest_hotswap.machine.steps import LawBrokenError
from tests.mutants.engines.compiles import CountsSwaps
from tests.support.models import Around, seeded, write_fleet

FLEET: dict[str, dict[str, Any]] = {
    name: {"r": 2, "lora_alpha": alpha, "target_modules": ["layer"]}
    for name, alpha in (("one", 2), ("three", 6), ("five", 10))
}
FEW = settings(
    max_examples=16,
    stateful_step_count=4,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)


def base_model() -> Any:
    return seeded(lambda: Around(nn.Linear(6, 5)))


class Sound(ReferenceSubject):
    """hotswap's engine on one layer."""

    def base_model(self) -> Any:
        return base_model()

    def inputs(self) -> dict[str, Any]:
        return {"value": torch.linspace(-1, 1, 12).reshape(2, 6)}


class Unprepared(Sound):
    """Preparation is forgotten, and each swap writes a number."""

    def prepare(self, model: Any, plan: Any) -> None:
        pass

    def swap(self, model: Any, adapter: Path | None) -> None:
        assert adapter is not None
        tensors = load_file(adapter / "adapter_model.safetensors")
        set_peft_model_state_dict(unwrap(model), tensors)
        config = LoraConfig.from_pretrained(adapter)
        for layer in lora_layers(model).values():
            layer.scaling["default"] = config.lora_alpha / config.r


class Versioned(CountsSwaps, Sound):
    """A sound one but for that."""


@pytest.fixture
def adapters(tmp_path: Path) -> Iterator[str]:
    torch._dynamo.reset()
    write_fleet(tmp_path / "fleet", base_model(), FLEET)
    yield str(tmp_path / "fleet" / "*")
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [Sound, Unprepared])
def test_an_unprepared_model_recompiles_whatever_was_judged_before(
    adapters: str, tmp_path: Path, kind: type[Sound]
) -> None:
    deployment = Deployment(kind(adapters=[adapters]), tmp_path / "judged")
    for law in (
        "swap-equals-load",
        "zero-recompiles",
    ):  # swaps write the number that torch remembers
        broken = list(violations(deployment, law))
    assert bool(broken) == (kind is Unprepared)  # although the law before it saw the first swaps
    assert list(violations(deployment, "unprepared-recompiles")) == []
    assert list(violations(deployment, "unprepared-recompiles", controls=True)) == []
    assert list(violations(deployment, "zero-recompiles", controls=True)) == []


def test_the_machine_sees_a_recompile_each_time_it_takes_the_same_steps(adapters: str) -> None:
    with pytest.raises(LawBrokenError) as caught:
        run_hotswap_machine(Versioned(adapters=[adapters]), settings=FEW)
    assert caught.value.law == "zero-recompiles"
