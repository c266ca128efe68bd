"""However a prepared model is compiled and called, a swap is right and does not recompile."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

import hotswap
from tests.engine.test_embeddings import llama
from tests.support.models import (
    TARGETS,
    TOKENS,
    Around,
    fresh,
    micro,
    run,
    seeded,
    write_adapter,
    write_fleet,
)

pytestmark = pytest.mark.filterwarnings("ignore")

FLEET: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 4},
    "large": {"r": 8, "lora_alpha": 3, "rank_pattern": {"first": 5}},
    "some": {"r": 4, "use_rslora": True, "target_modules": ["first", "conv"]},
}


@pytest.fixture(autouse=True)
def _reset() -> None:
    torch._dynamo.reset()


@pytest.fixture
def base() -> Any:
    return micro()


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    return write_fleet(tmp_path, base, FLEET)


def prepared(base: Any, fleet: dict[str, Path]) -> Any:
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=8)
    return model


def check(
    model: Any,
    call: Callable[[Any], Any],
    base: Any,
    fleet: dict[str, Path],
    **tolerance: float,
) -> None:
    """Assert that calls after each swap equal fresh loads, and that no swap recompiles."""
    expected = {name: run(fresh(base, folder)) for name, folder in fleet.items()}
    with torch.no_grad():
        call(TOKENS)
        call(TOKENS)
        with hotswap.forbid_recompiles():
            for name, folder in fleet.items():
                hotswap.swap(model, folder)
                torch.testing.assert_close(call(TOKENS), expected[name], **tolerance)


def in_place(part: Callable[[Any], nn.Module]) -> Callable[[Any], Any]:
    def compiled(model: Any) -> Any:
        part(model).compile(backend="eager")
        return model

    return compiled


def forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def layers(model: Any) -> Any:
    inner = model.get_base_model()
    for name in TARGETS:
        setattr(inner, name, torch.compile(getattr(inner, name), backend="eager"))
    return model


WAYS: dict[str, Callable[[Any], Any]] = {
    "torch.compile(model)": lambda model: torch.compile(model, backend="eager", fullgraph=True),
    "aot_eager": lambda model: torch.compile(model, backend="aot_eager"),
    "dynamic": lambda model: torch.compile(model, backend="eager", dynamic=True),
    "static": lambda model: torch.compile(model, backend="eager", dynamic=False),
    "model.compile()": in_place(lambda model: model),
    "base.compile()": in_place(lambda model: model.get_base_model()),
    "layer.compile()": in_place(lambda model: model.get_base_model().first),
    "forward": forward,
    "closure": lambda model: torch.compile(lambda tokens: model(tokens), backend="eager"),
    "layers": layers,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_compile(way: str, base: Any, fleet: Any) -> None:
    model = prepared(base, fleet)
    check(model, WAYS[way](model), base, fleet)


def test_inductor(tmp_path: Path) -> None:
    base = seeded(lambda: Around(nn.Linear(8, 5)))
    values = torch.linspace(-1, 1, 16).reshape(2, 8)
    fleet = {
        name: write_adapter(tmp_path / name, base, r=rank, target_modules=["layer"], seed=rank)
        for name, rank in (("small", 2), ("large", 8))
    }
    model = prepared(base, fleet)
    compiled = torch.compile(model, fullgraph=True)
    run(compiled, values)
    with hotswap.forbid_recompiles(compiled):
        for name in ("large", "small"):
            hotswap.swap(compiled, fleet[name])
            expected = run(fresh(base, fleet[name]), values)
            torch.testing.assert_close(run(compiled, values), expected, rtol=0, atol=4e-6)


def test_inference_mode_and_autocast(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet)
    compiled = torch.compile(model, backend="eager")

    def call(tokens: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return compiled(tokens).clone()

    check(model, call, base, fleet)
    torch._dynamo.reset()

    def cast(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(tokens).float()

    check(model, cast, base, fleet, rtol=0.1, atol=0.1)


def test_the_first_forward_after_a_swap_compiles_once(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet)
    compiled = torch.compile(model, backend="eager")
    hotswap.swap(compiled, fleet["large"])
    with hotswap.watch_compiles(compiled) as log:
        torch.testing.assert_close(run(compiled), run(fresh(base, fleet["large"])))
        hotswap.swap(compiled, fleet["small"])
        torch.testing.assert_close(run(compiled), run(fresh(base, fleet["small"])))
    assert (len(log.first_compiles), len(log.recompiles)) == (1, 0)


def test_an_adapter_over_a_compiled_base_swaps(base: Any, fleet: Any) -> None:
    compiled = torch.compile(copy.deepcopy(base), backend="eager")
    model = PeftModel.from_pretrained(compiled, fleet["small"]).eval()
    hotswap.prepare(model, target_rank=8, check_compiled="ignore")
    check(model, model, base, fleet)


def test_batches_of_several_adapters_swap(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    model.load_adapter(fleet["large"], "other")
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, fleet["some"], adapter_name="other")
    names = ["default", "other"]
    oracles = [run(fresh(base, fleet[name])) for name in ("small", "some")]
    torch._dynamo.reset()
    with torch.no_grad():
        mixed = model(TOKENS, adapter_names=names)
        torch.testing.assert_close(mixed, torch.stack([oracles[0][0], oracles[1][1]]))
        compiled = torch.compile(model, backend="eager")
        for _ in range(2):
            compiled(TOKENS, adapter_names=names)
        with hotswap.forbid_recompiles(compiled):
            hotswap.swap(compiled, fleet["large"], adapter_name="other")
            compiled(TOKENS, adapter_names=names)
        with hotswap.watch_compiles(compiled) as log:
            compiled(TOKENS, adapter_names=names[::-1])
    assert re.search(r"its adapters in another order.*sort the rows", str(log.recompiles[0]))


@pytest.mark.parametrize("way", ["static cache", "generate"])
def test_generation_swaps(way: str, tmp_path: Path) -> None:
    base = llama()
    base.config.use_cache = True
    fleet = write_fleet(
        tmp_path,
        base,
        {
            name: {"r": rank, "lora_alpha": 64, "target_modules": ["q_proj", "v_proj", "down_proj"]}
            for name, rank in (("small", 2), ("large", 8))
        },
    )
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    prompt = torch.tensor([[1, 5, 7]])
    model = prepared(base, fleet)
    generate = model.generate
    if way == "static cache":
        options["cache_implementation"] = "static"
        model.get_base_model().forward = torch.compile(
            model.get_base_model().forward, backend="eager"
        )
    else:
        generate = torch.compile(model.generate, backend="eager")
    generate(input_ids=prompt, **options)
    generate(input_ids=prompt, **options)
    outputs = []
    with hotswap.forbid_recompiles():
        for name in ("large", "small"):
            hotswap.swap(model, fleet[name])
            outputs.append(generate(input_ids=prompt, **options))
    for name, output in zip(("large", "small"), outputs, strict=True):
        expected = fresh(base, fleet[name]).generate(input_ids=prompt, **options)
        assert torch.equal(output, expected)
    assert not torch.equal(*outputs)
