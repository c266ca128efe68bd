"""hotswap.engine on transformers: heads, embeddings, tied weights, token rows; each equals a fresh load."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from transformers import (
    BertConfig,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

import hotswap
from hotswap.errors import AdapterError, HotswapError
from tests.support.models import check_swaps, fresh, run, seeded, write_adapter, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")

PLAIN = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
WIDE = {"r": 6, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"]}


def llama(*, tied: bool = False, classifies: bool = False) -> Any:
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
        num_labels=3,
        pad_token_id=0,
        use_cache=False,
    )
    kind = LlamaForSequenceClassification if classifies else LlamaForCausalLM
    return seeded(lambda: kind(config))


def bert() -> Any:
    config = BertConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        num_labels=4,
    )
    return seeded(lambda: BertForTokenClassification(config))


def check(base: Any, folder: Path, configs: dict[str, dict[str, Any]], **options: Any) -> None:
    fleet = write_fleet(folder, base, configs)
    plan = hotswap.plan([*fleet.values()])
    assert plan.conflicts == ()
    model = hotswap.load(copy.deepcopy(base), plan, next(iter(fleet.values())))
    check_swaps(model, base, fleet, **options)


def test_the_heads_of_sequence_classifiers_swap(tmp_path: Path) -> None:
    check(
        llama(classifies=True),
        tmp_path,
        {
            "small": {**PLAIN, "task_type": "SEQ_CLS"},
            "wide": {**WIDE, "task_type": "SEQ_CLS"},
            "headless": {**WIDE, "task_type": "FEATURE_EXTRACTION"},
        },
    )


def test_the_heads_of_token_classifiers_swap(tmp_path: Path) -> None:
    targets = {"target_modules": ["query", "value"]}
    check(
        bert(),
        tmp_path,
        {
            "small": {**PLAIN, **targets, "task_type": "TOKEN_CLS"},
            "wide": {**WIDE, **targets, "task_type": "TOKEN_CLS"},
        },
    )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_embeddings_and_language_heads_swap(tied: bool, tmp_path: Path) -> None:
    check(
        llama(tied=tied),
        tmp_path,
        {
            "both": {**PLAIN, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
            "embedding": {**WIDE, "target_modules": ["embed_tokens", "v_proj"]},
            "head": {**WIDE, "target_modules": ["lm_head"], "use_rslora": True},
            "neither": PLAIN,
        },
    )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_whole_embeddings_and_heads_swap(tied: bool, tmp_path: Path) -> None:
    check(
        llama(tied=tied),
        tmp_path,
        {
            "embedding": {**PLAIN, "modules_to_save": ["embed_tokens"]},
            "both": {**WIDE, "modules_to_save": ["embed_tokens", "lm_head"]},
            "neither": PLAIN,
        },
    )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_token_rows_swap(tied: bool, tmp_path: Path) -> None:
    check(
        llama(tied=tied),
        tmp_path,
        {
            "list": {**PLAIN, "trainable_token_indices": [1, 5]},
            "others": {**WIDE, "trainable_token_indices": {"embed_tokens": [10, 2, 3]}},
            "overlapping": {**PLAIN, "trainable_token_indices": [5, 4]},
            "none": PLAIN,
        },
    )


def test_a_base_weight_in_an_adapter_must_be_the_models(tmp_path: Path) -> None:
    base = llama()
    config = {**PLAIN, "target_modules": ["embed_tokens"]}
    good = write_adapter(tmp_path / "good", base, **config)
    model = fresh(base, good)
    hotswap.prepare(model, target_rank=4)
    adapter = fresh(base, good)
    state = {k: v.clone() for k, v in get_peft_model_state_dict(adapter).items()}
    name = next(key for key in state if "base_layer" in key)
    hotswap.swap(model, state, config=adapter.peft_config["default"])
    state[name][0, 0] += 1
    with pytest.raises(
        AdapterError, match=r"base weight that differs.*save_embedding_layers=False"
    ):
        hotswap.swap(model, state, config=adapter.peft_config["default"])


def test_a_base_weight_that_a_fresh_load_would_round_to_the_models_is_the_models(
    tmp_path: Path,
) -> None:
    base = llama().to(torch.bfloat16)
    model = fresh(base, write_adapter(tmp_path / "a", base, r=4, target_modules=["embed_tokens"]))
    hotswap.prepare(model, target_rank=4)
    state = {key: value.float() for key, value in get_peft_model_state_dict(model).items()}
    name = next(key for key in state if "base_layer" in key)
    state[name] *= 1 + 1e-5
    hotswap.swap(model, state, config=model.peft_config["default"])
    state[name] *= 1.1
    with pytest.raises(AdapterError, match="base weight that differs"):
        hotswap.swap(model, state, config=model.peft_config["default"])


def everything(model: Any) -> list[Any]:
    """What a failing load could leave behind in a model."""
    modules = [
        (name, id(module), module.training, len(module._forward_hooks), list(vars(module)))
        for name, module in model.named_modules()
    ]
    return modules + [(name, p.requires_grad) for name, p in model.named_parameters()]


def test_a_load_that_fails_leaves_the_base_model_as_it_was(tmp_path: Path) -> None:
    base = llama()
    configs = {
        "lora": {**PLAIN, "target_modules": ["q_proj", "embed_tokens"]},
        "head": {**WIDE, "modules_to_save": ["lm_head"]},
    }
    fleet = write_fleet(tmp_path, base, configs)
    plan = hotswap.plan([*fleet.values()])
    model, expected = copy.deepcopy(base), run(base)
    before = everything(model)
    file = fleet["head"] / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(AdapterError, match="truncated"):
        hotswap.load(model, plan, fleet["head"])
    assert everything(model) == before
    assert torch.equal(run(model), expected)
    loaded = hotswap.load(model, plan, fleet["lora"])
    torch.testing.assert_close(run(loaded), run(fresh(base, fleet["lora"])))
    with pytest.raises(HotswapError, match="carries LoRA layers already"):
        hotswap.load(loaded, plan, fleet["lora"])


def test_a_load_that_peft_gives_up_midway_leaves_the_base_model_as_it_was(tmp_path: Path) -> None:
    base = llama().train()
    path = write_adapter(tmp_path / "a", base, target_modules=["q_proj", "v_proj"])
    plan = hotswap.plan([path])
    model = copy.deepcopy(base)
    for layer in model.model.layers[1:]:  # PEFT wraps the first layer, and cannot wrap these
        layer.self_attn.v_proj = torch.nn.Sequential(layer.self_attn.v_proj)
    before, expected = everything(model), run(model)
    with pytest.raises(ValueError, match="not supported"):
        hotswap.load(model, plan, path)
    assert everything(model) == before
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize(
    "other", [{"trainable_token_indices": [1, 5]}, {"modules_to_save": ["embed_tokens"]}], ids=str
)
def test_an_embedding_with_lora_in_one_adapter_and_trained_in_another_is_refused(
    other: dict[str, Any], tmp_path: Path
) -> None:
    base = llama()
    configs = {"lora": {**PLAIN, "target_modules": ["embed_tokens"]}, "other": {**WIDE, **other}}
    plan = hotswap.plan([*write_fleet(tmp_path, base, configs).values()])
    assert [(f.code, f.where) for f in plan.conflicts] == [("HSW102", "model.embed_tokens")]
    names = [*base.state_dict()]
    with pytest.raises(HotswapError, match=r"embed_tokens has LoRA in some .* two models"):
        hotswap.load(base, plan)
    assert [*base.state_dict()] == names


def test_a_base_weight_of_another_shape_is_not_read(tmp_path: Path) -> None:
    """A file of holes claims a terabyte: it is refused by its header."""
    base = llama()
    folder = write_adapter(tmp_path / "a", base, **{**PLAIN, "target_modules": ["embed_tokens"]})
    model = fresh(base, folder)
    hotswap.prepare(model, target_rank=4)
    file = folder / "adapter_model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = next(key for key in header if "base_layer" in key)
    start, end = header[name]["data_offsets"]
    for key, entry in header.items():
        if key != "__metadata__" and entry["data_offsets"][0] > start:
            entry["data_offsets"] = [offset - (end - start) for offset in entry["data_offsets"]]
    least = len(raw) - 8 - length - (end - start)
    header[name].update(shape=[2**32, 64], data_offsets=[least, least + 2**40])
    text = json.dumps(header).encode()
    with file.open("wb") as sparse:
        sparse.write(len(text).to_bytes(8, "little") + text)
        sparse.truncate(8 + len(text) + least + 2**40)
    with pytest.raises(AdapterError, match="base weight that differs"):
        hotswap.swap(model, folder)
