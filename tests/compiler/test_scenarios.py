"""Each scenario recompiles as often as it should, and is told by its cause, whatever is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hotswap
from hotswap.compiler.watch import CompileLog
from tests.support.compiled import Lora, decoder, llama, mlp
from tests.support.scenarios import (
    LLAMA_ONLY,
    LLAMA_PER_LAYER,
    MLP_ONLY,
    SCENARIOS,
    Scenario,
)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def check(scenario: Scenario, lora: Lora, style: str, regions: int) -> CompileLog:
    scenario.before(lora)
    lora.warm(style)
    with hotswap.watch_compiles(lora.model) as log:
        scenario.act(lora)
        scenario.call(lora)
    assert len(log.recompiles) == scenario.recompiles * regions
    assert log.first_compiles == []
    assert log.eager_misses == {}
    for found in log.recompiles:
        assert found.cause == scenario.cause, str(found)
        assert scenario.says in str(found)
        assert scenario.remedy in str(found)
        assert all(reason.cause != "unknown" for reason in found.reasons), str(found)
    outcome = {"": "passed", "swap": "failed"}.get(scenario.cause, "vacuous")
    assert log.verdict().outcome == outcome
    if scenario.recompiles == 0:
        assert log.total_hits == regions
    elif outcome == "vacuous":
        assert "the warm-up does not match this call" in log.verdict().reasons[0]
    return log


@pytest.mark.parametrize("name", SCENARIOS | MLP_ONLY)
def test_a_model_compiled_as_a_whole(name: str, tmp_path: Path) -> None:
    check((SCENARIOS | MLP_ONLY)[name], Lora(mlp, tmp_path, ["up"]), "whole", 1)


@pytest.mark.parametrize("style", ["in place", "forward"])
def test_every_other_style_of_compiling_is_explained_alike(style: str, tmp_path: Path) -> None:
    log = check(SCENARIOS["a larger rank"], Lora(mlp, tmp_path), style, 1)
    assert log.recompiles[0].reasons[0].modules == ("down", "up")


@pytest.mark.parametrize("name", LLAMA_ONLY)
def test_a_language_model_compiled_as_a_whole(name: str, tmp_path: Path) -> None:
    check(LLAMA_ONLY[name], Lora(llama, tmp_path, ["q_proj"]), "whole", 1)


@pytest.mark.parametrize("name", SCENARIOS)
def test_layers_compiled_one_by_one(name: str, tmp_path: Path) -> None:
    check_layers(SCENARIOS[name], Lora(decoder, tmp_path), "layers.{}", "")


@pytest.mark.parametrize("name", LLAMA_PER_LAYER)
def test_layers_of_a_language_model_compiled_one_by_one(name: str, tmp_path: Path) -> None:
    check_layers(LLAMA_PER_LAYER[name], Lora(llama, tmp_path), "model.layers.{}", "self_attn.")


def check_layers(scenario: Scenario, lora: Lora, layer: str, inside: str) -> None:
    log = check(scenario, lora, "layer", 2)
    regions = [found.region for found in log.recompiles] or list(log.hits)
    assert regions == [layer.format(0), layer.format(1)]
    for found in log.recompiles:
        for module in found.reasons[0].modules:
            assert module.startswith(f"{found.region}.{inside}")
