"""Adapters with a part of the parameters that others of the fleet target: the wrappers have other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import hotswap
from hotswap.adapters.fit import fits
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import AdapterError
from tests.support.adapter_files import write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.arange(12).reshape(1, 12)
UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def moe() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return transformers.Qwen3MoeForCausalLM(config).eval()


def write(folder: Path, seed: int, rank: int, targets: list[str] | None) -> Path:
    config = LoraConfig(
        r=rank,
        lora_alpha=8,
        target_modules=["q_proj"],
        target_parameters=targets,
        init_lora_weights=False,
    )
    torch.manual_seed(seed)
    get_peft_model(moe(), config).save_pretrained(folder)
    return folder


@torch.no_grad()
def run(model: Any) -> torch.Tensor:
    return model(input_ids=X).logits


def fresh(folder: Path) -> Any:
    return PeftModel.from_pretrained(moe(), folder).eval()


def test_a_part_of_the_parameters_is_swapped_among_all_of_them(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", 1, 2, [UP, DOWN])
    others = [
        write(tmp_path / name, seed, rank, targets)
        for seed, (name, rank, targets) in enumerate(
            [("attention", 4, None), ("down", 4, [DOWN]), ("up", 2, [UP])], 2
        )
    ]
    for fleet in ([whole, *others], [*others, whole]):
        plan = hotswap.plan(fleet)
        assert plan.conflicts == ()
        assert [finding for path in fleet for finding in fits(plan, AdapterSpec.read(path))] == []
        model = hotswap.load(moe(), plan, fleet[0])
        for path in (*fleet[1:], fleet[0]):
            hotswap.swap(model, path)
            torch.testing.assert_close(run(model), run(fresh(path)))
    loaded = fresh(whole)
    hotswap.prepare(loaded, target_rank=4)
    hotswap.swap(loaded, others[1])
    torch.testing.assert_close(run(loaded), run(fresh(others[1])))
    hotswap.swap(loaded, None)
    torch.testing.assert_close(run(loaded), run(moe()))


def test_what_only_the_order_would_tell_is_refused(tmp_path: Path) -> None:
    """Two parameters of one shape: which of them an adapter targets is not in its file."""
    shapes = {"x": (8, 8), "x.base_layer": (8, 8)}
    config = {"target_parameters": ["x.w1", "x.w2"], "target_modules": []}
    both = write_adapter(tmp_path / "both", modules=shapes, rank=2, config=config)
    one = write_adapter(
        tmp_path / "one",
        modules={"x": (8, 8)},
        rank=2,
        config={**config, "target_parameters": ["x.w1"]},
    )
    for fleet in ([both, one], [one, both]):
        assert {finding.code for finding in hotswap.plan(fleet).conflicts} == {"HSW107"}


def test_a_parameter_that_the_plan_lacks_is_refused(tmp_path: Path) -> None:
    up, down = write(tmp_path / "up", 1, 2, [UP]), write(tmp_path / "down", 2, 2, [DOWN])
    assert {finding.code for finding in hotswap.plan([up, down]).conflicts} == {"HSW107"}
    model = fresh(up)
    hotswap.prepare(model, target_rank=4)
    with pytest.raises(AdapterError, match="down_proj"):
        hotswap.swap(model, down)
