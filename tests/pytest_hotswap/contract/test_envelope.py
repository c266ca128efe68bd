"""Companions stay inside of the plan, layers that no input reaches are judged, interrupts leave a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap import AdapterSpec
from hotswap.adapters.fit import fits
from hotswap.engine.layout.slots import lora_layers
from pytest_hotswap import ReferenceSubject
from pytest_hotswap.adapters.companions import companions_of, write_companions
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from pytest_hotswap.contract.placed import misplaced, unreached
from tests.mutants.subject import Engine, write_fleets
from tests.support.models import TOKENS, seeded, write_fleet


class TwoKinds(nn.Module):
    """A request of text does not take the branch of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.text, self.pictures = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, tokens: torch.Tensor, pictures: torch.Tensor | None = None) -> torch.Tensor:
        found = self.text(self.embed(tokens))
        return found if pictures is None else found + self.pictures(pictures)


class Sound(ReferenceSubject):
    def base_model(self) -> Any:
        return seeded(TwoKinds)

    def inputs(self) -> dict[str, Any]:
        return {"tokens": TOKENS}


class SkipsPictures(Sound):
    """The branch that is not taken keeps the adapter before."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        layer = lora_layers(model)["pictures"].lora_B["default"]
        kept = layer.weight.detach().clone()
        super().swap(model, adapter)
        layer.weight.data.copy_(kept)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def adapters(tmp_path: Path) -> str:
    targets = ["text", "pictures"]
    fleet: dict[str, dict[str, Any]] = {
        "one": {"r": 2, "lora_alpha": 4, "target_modules": targets},
        "two": {"r": 3, "lora_alpha": 3, "target_modules": targets},
    }
    write_fleet(tmp_path / "fleet", seeded(TwoKinds), fleet)
    return str(tmp_path / "fleet" / "*")


def test_a_layer_that_no_input_reaches_is_named_and_judged(adapters: str, tmp_path: Path) -> None:
    sound = Deployment(Sound(adapters=[adapters]), tmp_path / "sound")
    assert list(violations(sound, "swap-equals-load")) == []
    assert unreached(sound) == ["pictures"]
    faulty = Deployment(SkipsPictures(adapters=[adapters]), tmp_path / "faulty")
    faulty.swap(faulty.paths[1])
    assert faulty.compare(faulty.paths[1]).equal  # the outputs show nothing
    assert misplaced(faulty, faulty.paths[1]) == [
        "pictures does not hold what the file has: lora_B.weight"
    ]
    assert any("pictures" in found for found in violations(faulty, "swap-equals-load"))


def test_companions_are_the_same_at_every_call_and_fit_the_plan(tmp_path: Path) -> None:
    write_fleets(tmp_path)
    for fleet in ("fleet", "features"):
        plan = hotswap.plan([*map(str, sorted((tmp_path / fleet).iterdir()))])
        assert companions_of(plan, "all") == companions_of(plan, "all")
        few, everything = companions_of(plan, "few"), companions_of(plan, "all")
        assert few.keys() < everything.keys()
        assert companions_of(plan, "none") == {}
        found, left = write_companions(tmp_path / f"{fleet}-companions", plan, "all")
        assert (found.keys(), left) == (everything.keys(), {})
        assert all(not fits(plan, AdapterSpec.read(path)) for path in found.values())
        assert ("DoRA" in few) == (fleet == "features")


def test_another_word_for_companions_is_refused() -> None:
    with pytest.raises(ValueError, match="'some'; expected one of none, few, all"):
        companions_of(hotswap.SwapPlan({}), "some")  # type: ignore[arg-type]


def test_what_torch_noted_in_a_control_hides_no_recompile(tmp_path: Path) -> None:
    """The number that the control changed would be compiled as dynamic afterwards."""
    write_fleets(tmp_path)

    class FirstScalingIsANumber(Engine):
        def swap(self, model: Any, adapter: Path | None) -> None:
            super().swap(model, adapter)
            self.models(model)[0].base_model.model.number = float(len(str(adapter)))

        def base_model(self) -> Any:
            model = super().base_model()
            model.number = 1.0
            model.register_forward_hook(lambda module, _, output: output + 0 * module.number)
            return model

    deployment = Deployment(FirstScalingIsANumber(tmp_path), tmp_path / "numbers")
    assert deployment.unprepared_recompiles["another alpha"]
    assert any("recompiled" in found for found in violations(deployment, "zero-recompiles"))
