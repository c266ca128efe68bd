"""Heads and tied embeddings: whole modules that an adapter's config names, or that PEFT adds by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.checks.base_model import read_base
from hotswap.errors import AdapterError

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.arange(12).reshape(1, 12)
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def tied() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config).eval()


def classifier() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_labels=3)
    return transformers.LlamaForSequenceClassification(config).eval()


def answers() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForQuestionAnswering(transformers.LlamaConfig(**SIZES)).eval()


def write(folder: Path, make: Callable[[], Any], seed: int, r: int = 4, **config: Any) -> Path:
    """An adapter with random weights, saved by PEFT."""
    config = {"target_modules": ["q_proj", "v_proj"], **config}
    model = get_peft_model(make(), LoraConfig(r=r, lora_alpha=8, **config))
    generator, seen = torch.Generator().manual_seed(seed), set()
    for key, parameter in model.named_parameters():
        if ("lora_" in key or "modules_to_save" in key) and parameter.data_ptr() not in seen:
            seen.add(parameter.data_ptr())
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return folder


def rewrite(folder: Path, drop: str = "", **fields: Any) -> Path:
    """Change the config of a folder, and take tensors out whose names hold ``drop``."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    if drop:
        weights = folder / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(weights).items() if drop not in k}, weights)
    return folder


@torch.no_grad()
def run(model: Any) -> torch.Tensor:
    found = model(input_ids=X)
    return found.start_logits if hasattr(found, "start_logits") else found.logits


def fresh(make: Callable[[], Any], folder: Path) -> Any:
    return PeftModel.from_pretrained(make(), folder).eval()


def swapped(make: Callable[[], Any], first: Path, second: Path, *, planned: bool) -> Any:
    if planned:
        model = hotswap.load(make(), hotswap.plan([first, second]), first)
    else:
        model = fresh(make, first)
        hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, second)
    return model


HEADS: dict[str, Callable[[], Any]] = {"SEQ_CLS": classifier, "QUESTION_ANS": answers}


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("planned", [False, True])
def test_a_head_that_the_config_does_not_name_is_swapped(
    task: str, planned: bool, tmp_path: Path
) -> None:
    make, files = HEADS[task], []
    for seed, rank in ((1, 4), (2, 2)):
        folder = write(tmp_path / str(seed), make, seed, rank, task_type=task)
        files.append(rewrite(folder, modules_to_save=None))  # as PEFT up to 0.10 saved it
    assert hotswap.check_adapters(files) == []
    expected = run(fresh(make, files[1]))
    model = swapped(make, *files, planned=planned)
    torch.testing.assert_close(run(model), expected)
    hotswap.swap(model, None)
    torch.testing.assert_close(run(model), run(make()))


def test_a_whole_module_of_another_task_is_no_head(tmp_path: Path) -> None:
    folder = write(tmp_path, classifier, 1, task_type="SEQ_CLS")
    rewrite(folder, modules_to_save=None, task_type="CAUSAL_LM")
    assert {found.code for found in hotswap.check_adapters(folder)} == {"HSW108"}


def test_a_head_that_the_file_lacks_is_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good", classifier, 1, task_type="SEQ_CLS")
    headless = write(tmp_path / "bad", classifier, 2, task_type="SEQ_CLS")
    rewrite(headless, drop="score")
    by_task = write(tmp_path / "task", classifier, 3, task_type="SEQ_CLS")
    rewrite(by_task, drop="score", modules_to_save=None)
    classifier().save_pretrained(tmp_path / "base")
    base, plan = read_base(tmp_path / "base"), hotswap.plan([good])
    assert base.parameters
    assert hotswap.check_adapters(good, base=tmp_path / "base", plan=plan) == []
    assert {found.code for found in hotswap.check_adapters(headless)} == {"HSW103"}
    model = fresh(classifier, good)
    hotswap.prepare(model, target_rank=8)
    before = run(model)
    for folder in (headless, by_task):
        with pytest.raises(KeyError):
            fresh(classifier, folder)
        for asked in ({"plan": plan}, {"base": tmp_path / "base"}):
            found = hotswap.check_adapters(folder, **asked)
            assert {one.code for one in found} == {"HSW103"}
        with pytest.raises(AdapterError, match="is missing"):
            hotswap.swap(model, folder)
        assert torch.equal(run(model), before)


TIED: dict[str, Any] = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}


@pytest.mark.parametrize("planned", [False, True])
def test_a_head_tied_to_trained_embeddings_follows_them(planned: bool, tmp_path: Path) -> None:
    first = write(tmp_path / "a", tied, 1, **TIED)
    second = write(tmp_path / "b", tied, 2, 2, **TIED)
    assert [f for f in hotswap.check_adapters([first, second]) if f.severity == "error"] == []
    expected = run(fresh(tied, second))
    assert not torch.allclose(expected, run(tied()), atol=1e-2)
    model = swapped(tied, first, second, planned=planned)
    torch.testing.assert_close(run(model), expected)
    hotswap.swap(model, None)
    torch.testing.assert_close(run(model), run(tied()))
    plain = write(tmp_path / "plain", tied, 3)
    hotswap.swap(model, plain)
    torch.testing.assert_close(run(model), run(fresh(tied, plain)))


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_lora_of_tied_embeddings_is_swapped_on_both_ends(
    targets: list[str], planned: bool, tmp_path: Path
) -> None:
    config: dict[str, Any] = {"target_modules": [*targets, "q_proj"], "ensure_weight_tying": True}
    first = write(tmp_path / "a", tied, 1, **config)
    second = write(tmp_path / "b", tied, 2, 2, **config)
    assert [f for f in hotswap.check_adapters([first, second]) if f.code == "HSW118"] == []
    expected = run(fresh(tied, second))
    model = swapped(tied, first, second, planned=planned)
    torch.testing.assert_close(run(model), expected)
    hotswap.swap(model, None)
    torch.testing.assert_close(run(model), run(tied()))


def test_tied_and_untied_embeddings_are_not_mixed(tmp_path: Path) -> None:
    both = write(tmp_path / "tied", tied, 1, **TIED)
    alone = write(tmp_path / "untied", tied, 2, modules_to_save=["embed_tokens"])
    for first, second in ((both, alone), (alone, both)):
        found = hotswap.check_adapters(second, plan=hotswap.plan([first]))
        assert {"HSW107"} <= {one.code for one in found if one.severity == "error"}
        with pytest.raises(AdapterError, match="tied"):
            swapped(tied, first, second, planned=False)
    assert {finding.code for finding in hotswap.plan([both, alone]).conflicts} == {"HSW107"}


def test_a_tied_head_of_other_values_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a", tied, 1, **TIED)
    torn = write(tmp_path / "b", tied, 2, **TIED)
    weights = torn / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors["base_model.model.lm_head.weight"] += 1
    save_file(tensors, weights)
    with pytest.raises(AdapterError, match="lm_head"):
        swapped(tied, first, torn, planned=False)
