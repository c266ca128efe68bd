"""transformers' tensor parallelism with PEFT's adapters, and its FSDP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import hotswap
from hotswap.checks.parallel import cuts_of
from pytest_hotswap.ranks.pool import RankPool
from tests.support import rank_models as at

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RECIPES: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "lora_alpha": 8, "target_modules": LINEAR},
    "b": {"r": 2, "lora_alpha": 8, "target_modules": LINEAR, "use_rslora": True},
    "c": {"r": 8, "lora_alpha": 4, "target_modules": LINEAR},
}
SOME: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=64,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    generator = torch.Generator().manual_seed(seed)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(**config))
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fleet(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fleet")
    recipes = {**RECIPES, "some": SOME}
    return {n: write(base, folder / n, i, **r) for i, (n, r) in enumerate(recipes.items())}


@pytest.fixture(scope="module")
def expected(base: Path, fleet: dict[str, Path]) -> dict[str | None, torch.Tensor]:
    found: dict[str | None, torch.Tensor] = {}
    for name in (None, *fleet):
        model: Any = LlamaForCausalLM.from_pretrained(base)
        if name is not None:
            model = PeftModel.from_pretrained(model, fleet[name])
        with torch.no_grad():
            found[name] = model.eval()(input_ids=at.IDS, use_cache=False).logits
    return found


@pytest.fixture(scope="module")
def pool(base: Path) -> Iterator[RankPool]:
    pool = RankPool()
    pool(at.llama_base, base)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def four(base: Path) -> Iterator[RankPool]:
    pool = RankPool(4)
    pool(at.llama_base, base)
    yield pool
    pool.close()


def check(pool: RankPool, want: torch.Tensor) -> None:
    for output in pool(at.generate):
        torch.testing.assert_close(output, want, rtol=1e-4, atol=1e-5)


def test_each_swap_equals_a_fresh_load_of_the_whole_model(
    pool: RankPool, fleet: dict[str, Path], expected: dict[str | None, torch.Tensor]
) -> None:
    pool(at.bring_up_llama, fleet["a"])
    check(pool, expected["a"])
    for name in ("b", None, "c", "some", "a", "b"):
        pool(at.swap, fleet[name] if name else None)
        check(pool, expected[name])


@pytest.mark.parametrize(("ranks", "backend"), [("pool", "inductor"), ("four", "eager")])
def test_no_rank_recompiles_under_a_plan_that_transformers_finds(
    request: pytest.FixtureRequest,
    fleet: dict[str, Path],
    expected: dict[str | None, torch.Tensor],
    ranks: str,
    backend: str,
) -> None:
    """``tp_plan="auto"``, without a size: all the ranks that there are."""
    pool: RankPool = request.getfixturevalue(ranks)
    pool(at.bring_up_llama, fleet["a"], None, "auto")
    pool(at.compile_it, backend)
    check(pool, expected["a"])
    order = ["b", None, "c", "a", "some"]
    found = pool(at.watched_swaps, [fleet[name] if name else None for name in order], at.generate)
    for recompiles, hits, eager, same, outputs in found:
        assert (recompiles, eager, same) == (0, {}, True)
        assert hits >= len(order)
        for name, output in zip(order, outputs, strict=True):
            torch.testing.assert_close(output, expected[name], rtol=1e-4, atol=1e-5)


def test_what_is_saved_is_the_adapter_as_it_was_trained(
    pool: RankPool, fleet: dict[str, Path], tmp_path: Path
) -> None:
    pool(at.bring_up_llama, fleet["a"])
    pool(at.swap, fleet["b"])
    original = load_file(fleet["b"] / "adapter_model.safetensors")
    for folder in pool(at.save, tmp_path):
        saved = load_file(folder / "adapter_model.safetensors")
        assert saved.keys() == original.keys()
        assert all(torch.equal(saved[name], value) for name, value in original.items())
        assert LoraConfig.from_pretrained(folder).r == 2


def test_load_puts_an_adapter_into_a_model_that_is_cut_and_holds_what_was_planned(
    pool: RankPool, base: Path, fleet: dict[str, Path], expected: dict[str | None, torch.Tensor]
) -> None:
    plan = hotswap.plan(list(fleet.values()))
    pool(at.bring_up_llama, fleet["a"], plan)
    assert pool(at.held) == [plan.bytes_per_rank(cuts_of(base, 2), 2)] * 2
    assert plan.bytes_per_rank({}, 2) == plan.padded_bytes
    check(pool, expected["a"])
    for name in ("some", "b", None):
        pool(at.swap, fleet[name] if name else None)
        check(pool, expected[name])


def test_an_adapter_with_biases_is_loaded_beside_one_without(
    pool: RankPool,
    base: Path,
    fleet: dict[str, Path],
    expected: dict[str | None, torch.Tensor],
    tmp_path: Path,
) -> None:
    biased = write(base, tmp_path, 7, **SOME | {"target_modules": LINEAR, "lora_bias": True})
    pool(at.bring_up_llama, fleet["a"], hotswap.plan([fleet["a"], biased]))
    check(pool, expected["a"])
    pool(at.swap, biased)
    with torch.no_grad():
        whole = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), biased).eval()
        check(pool, whole(input_ids=at.IDS, use_cache=False).logits)
    pool(at.swap, None)
    check(pool, expected[None])


CUT: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": (
        {"target_modules": ["q_proj"], "use_dora": True},
        "model.layers.*.self_attn.q_proj (2 modules): DoRA needs the norm of the base weight, which is",
    ),
    "LoRA on the head": (
        {"target_modules": ["lm_head"]},
        "lm_head: is cut over several devices as 'colwise_gather_output', which PEFT's LoRA does not",
    ),
    "a saved head": (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "lm_head: is cut over several devices, and only lora_A and lora_B are swapped by their shards",
    ),
    "token rows": (
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]},
        "model.embed_tokens: is cut over several devices, and only lora_A and lora_B are swapped by",
    ),
    "PiSSA": (
        {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
        "q_proj (2 modules): is cut over several devices, and PEFT takes a part out of whole base weights",
    ),
}


def test_what_cannot_be_put_into_a_model_that_is_cut_is_refused_by_name_and_changes_nothing(
    pool: RankPool, base: Path, tmp_path: Path
) -> None:
    folders = [write(base, tmp_path / name, 0, r=4, **config) for name, (config, _) in CUT.items()]
    for told, same in pool(at.refused_loads, folders):
        for found, (_, says) in zip(told, CUT.values(), strict=True):
            assert found.startswith("UnsupportedLayerError: ")
            assert says in found
        assert same


def test_lora_as_narrow_as_one_part_of_its_layer_is_not_prepared(pool: RankPool) -> None:
    for found in pool.attempt(at.prepare_head):
        assert found.kind == "UnsupportedLayerError"
        assert "lm_head: PEFT made lora_B.weight 32 wide, as this rank's part of 64; " in found.text


def test_a_load_that_fails_on_one_rank_is_told_to_the_others_and_the_next_is_good(
    pool: RankPool, fleet: dict[str, Path], expected: dict[str | None, torch.Tensor], tmp_path: Path
) -> None:
    plan = hotswap.plan([fleet["a"]])
    own = [(fleet["a"], plan), (tmp_path / "gone", plan)]
    first, second = pool.attempt(at.bring_up_llama, own=own)
    assert second.kind == "UnreadableAdapterError"
    assert first.text.startswith("rank 1 cannot (UnreadableAdapterError: ")
    pool(at.bring_up_llama, fleet["a"], plan)
    check(pool, expected["a"])


def test_an_adapter_over_a_base_that_fsdp_has_cut_is_whole(
    pool: RankPool, fleet: dict[str, Path], expected: dict[str | None, torch.Tensor]
) -> None:
    pool(at.bring_up_llama_fsdp, fleet["a"])
    for name in ("b", None, "c"):
        pool(at.swap, fleet[name] if name else None)
        pool(at.reshard)
        check(pool, expected[name])


def test_base_weights_in_an_adapter_are_compared_shard_by_shard(
    pool: RankPool, base: Path, fleet: dict[str, Path], tmp_path: Path
) -> None:
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), fleet["b"])
    model.save_pretrained(tmp_path / "same", save_embedding_layers=True)
    tensors = load_file(tmp_path / "same" / "adapter_model.safetensors")
    (name,) = [name for name in tensors if "lm_head" in name]
    pool(at.bring_up_llama, fleet["a"])
    pool(at.swap, tmp_path / "same")
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    tensors[name][-1, 0] += 1.0
    save_file(tensors, tmp_path / "other" / "adapter_model.safetensors", {"format": "pt"})
    found = pool.attempt(at.swap, tmp_path / "other")
    assert sorted(one.kind for one in found) in (
        ["AdapterError", "AdapterError"],
        ["AdapterError", "RankError"],
    )
    assert all("differs from the model's" in one.text for one in found)


def test_the_functions_of_peft_swap_a_model_that_is_cut(
    pool: RankPool, fleet: dict[str, Path], expected: dict[str | None, torch.Tensor]
) -> None:
    order = ["a", "b", "c"]
    for outputs in pool(at.patched_swaps, [fleet[name] for name in order]):
        for name, output in zip(order, outputs, strict=True):
            torch.testing.assert_close(output, expected[name], rtol=1e-4, atol=1e-5)
