"""Adapters that need more of a model than LoRA layers: swapped for those that need the same of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import hotswap
from hotswap.engine.peft.functions import hotswap_adapter
from hotswap.errors import HotswapError
from tests.support.models import bits, fresh, run, same_bits, seeded, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.arange(1, 13).reshape(1, 12)
Y = torch.linspace(-1, 1, 16).reshape(2, 8)
TARGETS = {"target_modules": ["0", "2"]}


@pytest.fixture
def base() -> Any:
    return seeded(lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8)))


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_of_one_recipe_share_what_is_left_of_the_base_weights(
    init: str, rslora: bool, base: Any, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "r": 3,
        "lora_alpha": 5,
        "rank_pattern": {"2": 2},
        "use_rslora": rslora,
        "init_lora_weights": init,
        **TARGETS,
    }
    fleet = {
        name: write_adapter(tmp_path / name, base, seed=seed, **recipe)
        for seed, name in enumerate(("one", "two"))
    }
    expected = {name: run(fresh(base, folder), Y) for name, folder in fleet.items()}
    assert not torch.allclose(expected["one"], expected["two"])
    plan = hotswap.plan(fleet.values())
    assert plan.conflicts == ()
    assert hotswap.SwapPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert hotswap.check_adapters([*fleet.values()]) == []
    loaded = hotswap.load(copy.deepcopy(base), plan, fleet["one"])
    for name in ("one", "two"):
        hotswap.swap(loaded, fleet[name])
        torch.testing.assert_close(run(loaded, Y), expected[name])
        assert hotswap.check_adapters(fleet[name], plan=plan) == []
    model = fresh(base, fleet["one"])
    hotswap_adapter(model, fleet["two"], "default")  # as it is, and then prepared
    torch.testing.assert_close(run(model, Y), expected["two"])
    hotswap.prepare(model, target_rank=8)
    bank = hotswap.AdapterBank(model)
    for name in ("one", "two"):
        hotswap.swap(model, fleet[name])
        torch.testing.assert_close(run(model, Y), expected[name])
        bank.add(name, fleet[name])
        hotswap_adapter(model, fleet[name], "default")
        torch.testing.assert_close(run(model, Y), expected[name])
    with bank.using("one"):
        torch.testing.assert_close(run(model, Y), expected["one"])
    others: dict[str, dict[str, Any]] = {
        "another rank": {"r": 4},
        "another scaling": {"lora_alpha": 6},
        "fewer modules": {"target_modules": ["0"]},
        "drawn": {"init_lora_weights": "pissa_niter_4"},
        "the other": {"init_lora_weights": {"pissa": "olora", "olora": "pissa"}[init]},
        "plain": {"init_lora_weights": True},
    }
    before = bits(model)
    for name, change in others.items():
        other = write_adapter(tmp_path / name, base, **{**recipe, **change})
        remedy = (
            "model of its own" if name == "plain" else "path_initial_model_for_weight_conversion"
        )
        assert {f.code for f in hotswap.check_adapters(other, plan=plan)} >= {"HSW102"}
        assert hotswap.plan([*fleet.values(), other]).conflicts
        for swap in (hotswap.swap, lambda m, a: hotswap_adapter(m, a, "default")):
            with pytest.raises(HotswapError, match=remedy):
                swap(model, other)
    for action in (lambda: hotswap.swap(model, None), lambda: bank.add("none", None)):
        with pytest.raises(HotswapError, match=r"base weights; load a base model of its own"):
            action()
    assert same_bits(before, bits(model))


def test_an_adapter_with_such_a_beginning_is_refused_over_plain_ones(
    base: Any, tmp_path: Path
) -> None:
    plain = write_adapter(tmp_path / "plain", base, r=3, **TARGETS)
    pissa = write_adapter(tmp_path / "pissa", base, r=3, init_lora_weights="pissa", **TARGETS)
    model = fresh(base, plain)
    for prepared in (False, True):
        if prepared:
            hotswap.prepare(model)
        with pytest.raises(HotswapError, match="path_initial_model_for_weight_conversion"):
            hotswap_adapter(model, pissa, "default")
    together, kept = hotswap.plan([plain, pissa]), copy.deepcopy(base)
    assert {f.code for f in together.conflicts} == {"HSW102"}
    assert {f.code for f in hotswap.check_adapters([plain, pissa])} == {"HSW102"}
    with pytest.raises(HotswapError, match="path_initial_model_for_weight_conversion"):
        hotswap.load(kept, together, pissa)
    before = bits(kept)
    with pytest.raises(HotswapError, match="load a base model of its own"):
        hotswap.load(kept, hotswap.plan([pissa]))  # PEFT has taken its part out by then
    assert same_bits(before, bits(kept))


def language_model() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes, **heads))


def test_activated_adapters_with_equal_tokens_are_swapped(tmp_path: Path) -> None:
    base = seeded(language_model)
    config = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    fleet = {
        name: write_adapter(
            tmp_path / name, base, seed=seed, r=rank, alora_invocation_tokens=tokens, **config
        )
        for seed, (name, rank, tokens) in enumerate(
            (("one", 2, [5, 6]), ("two", 6, [5, 6]), ("other", 2, [7]))
        )
    }
    plain = write_adapter(tmp_path / "plain", base, r=2, **config)

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=X).logits
        return found

    expected = {name: logits(fresh(base, folder)) for name, folder in fleet.items()}
    bare = logits(base)
    assert torch.equal(expected["one"][:, :4], bare[:, :4])  # it begins at token 5
    assert not torch.allclose(expected["one"], expected["two"])
    plan = hotswap.plan([fleet["one"], fleet["two"]])
    loaded = hotswap.load(copy.deepcopy(base), plan)
    model = PeftModel.from_pretrained(copy.deepcopy(base), fleet["one"]).eval()
    hotswap.prepare(model, target_rank=8)
    for name in ("two", "one", None, "two"):
        for each in (model, loaded):
            hotswap.swap(each, fleet[name] if name else None)
            torch.testing.assert_close(logits(each), expected[name] if name else bare)
    assert hotswap.check_adapters([fleet["one"], fleet["two"]], plan=plan) == []
    assert {f.code for f in hotswap.check_adapters([fleet["other"], plain], plan=plan)} == {
        "HSW102"
    }
    before = bits(model)
    for other in (fleet["other"], plain):
        with pytest.raises(HotswapError, match="alora_invocation_tokens") as refused:
            hotswap.swap(model, other)
        assert str(refused.value).count("alora_invocation_tokens") == 1
    assert same_bits(before, bits(model))
    served = fresh(base, plain)
    hotswap.prepare(served, target_rank=8)
    with pytest.raises(HotswapError, match="alora_invocation_tokens"):
        hotswap.swap(served, fleet["one"])
