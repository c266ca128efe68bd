"""The laws on adapters that train whole modules or token rows beside LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hotswap import AdapterSpec
from hotswap.report.laws import LAWS
from pytest_hotswap import ReferenceSubject
from pytest_hotswap.adapters.derived import widen_adapter
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from tests.support.models import (
    TOKENS,
    Around,
    Experts,
    fresh,
    run,
    seeded,
    write_adapter,
    write_fleet,
)


class Classifier(nn.Module):
    """An embedding, a layer, and a head that reads the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(self.embed(tokens))).mean(1))


class Classifying(ReferenceSubject):
    """hotswap's engine on it."""

    def base_model(self) -> Any:
        return seeded(Classifier)

    def inputs(self) -> dict[str, Any]:
        return {"tokens": TOKENS}


LAYER: dict[str, Any] = {"r": 2, "lora_alpha": 3, "target_modules": ["layer"]}
FLEETS: dict[str, dict[str, dict[str, Any]]] = {
    "a head in each": {
        "one": {**LAYER, "modules_to_save": ["head"]},
        "two": {**LAYER, "r": 4, "modules_to_save": ["head"]},
    },
    "a head in one": {"one": {**LAYER, "modules_to_save": ["head"]}, "two": LAYER},
    "other rows in each, or none": {
        "one": {**LAYER, "trainable_token_indices": {"embed": [1, 2]}},
        "two": {**LAYER, "r": 4, "trainable_token_indices": {"embed": [2, 6]}},
        "three": LAYER,
    },
}


@pytest.fixture(scope="module", params=FLEETS)
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("fleet")
    write_fleet(folder / "fleet", seeded(Classifier), FLEETS[request.param])
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Deployment(Classifying(adapters=[str(folder / "fleet" / "*")]), folder)
    torch._dynamo.reset()


@pytest.mark.parametrize("law", LAWS)
def test_the_engine_obeys(deployment: Deployment, law: str) -> None:
    assert list(violations(deployment, law)) == []
    assert list(violations(deployment, law, controls=True)) == []


def test_a_wider_adapter_of_expert_parameters_computes_the_same(tmp_path: Path) -> None:
    base = seeded(lambda: Around(Experts()))
    config = {"r": 2, "lora_alpha": 3, "target_parameters": ["layer.up", "layer.down"]}
    source = write_adapter(tmp_path / "narrow", base, target_modules=[], **config)
    wanted = dict.fromkeys(AdapterSpec.read(source).modules, 5)
    wide = widen_adapter(source, tmp_path / "wide", wanted)
    assert {module.rank for module in AdapterSpec.read(wide).modules.values()} == {5}
    hidden = torch.ones(4, 8)
    expected, found = (run(fresh(base, folder), hidden) for folder in (source, wide))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(expected, run(base, hidden))


def test_an_adapter_that_was_never_trained_is_not_the_one_that_controls_show_something_with(
    tmp_path: Path,
) -> None:
    untrained = {**LAYER, "init_lora_weights": True}
    model = get_peft_model(seeded(Classifier), LoraConfig(**untrained))
    model.save_pretrained(tmp_path / "fleet" / "a")
    write_fleet(tmp_path / "fleet", seeded(Classifier), {"b": {**LAYER, "r": 4}})
    deployment = Deployment(Classifying(adapters=[str(tmp_path / "fleet" / "*")]), tmp_path)
    assert deployment.first.name == "b"
    assert list(violations(deployment, "swap-equals-load", controls=True)) == []
    (found,) = violations(deployment, "swap-has-effect")
    assert found.startswith("swap-has-effect: a leaves the base model's outputs as they are")
    deployment.close()
