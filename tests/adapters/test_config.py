"""adapter_config.json: ranks, alphas, scalings; what is refused, and what is not supported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hotswap.adapters.config import (
    alpha_of,
    rank_of,
    read_config,
    saved_module,
    scaling_of,
    target_parameters,
    token_indices,
    unsupported_features,
)
from hotswap.errors import UnreadableAdapterError
from tests.support.adapter_files import write_adapter


def codes(folder: Path) -> list[str]:
    with pytest.raises(UnreadableAdapterError) as caught:
        read_config(folder)
    return [finding.code for finding in caught.value.findings]


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    assert codes(tmp_path / "nowhere") == ["HSW001"]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert codes(tmp_path / "a.safetensors") == ["HSW001"]


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    assert codes(tmp_path) == ["HSW002"]
    with pytest.raises(UnreadableAdapterError, match="pass a folder that PEFT saved"):
        read_config(tmp_path)


def test_a_folder_of_adapters_is_told_from_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(UnreadableAdapterError, match=r"pass '.*/\*'"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", "[" * 100_000])
def test_a_config_that_is_no_object_is_invalid(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    assert codes(tmp_path) == ["HSW003"]


@pytest.mark.parametrize(
    "config",
    [
        {"r": 0},
        {"r": "8"},
        {"r": True},
        {"r": None},
        {"lora_alpha": "16"},
        {"lora_alpha": math.nan},
        {"lora_alpha": 10**400},
        {"rank_pattern": [8]},
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": {"q_proj": 4.5}},
        {"rank_pattern": {"(": 4}},
        {"alpha_pattern": {"q_proj": math.inf}},
        {"alpha_pattern": {"q_proj": "1"}},
        {"modules_to_save": "lm_head"},
        {"target_parameters": 3},
        {"trainable_token_indices": "1"},
        {"trainable_token_indices": [-1]},
        {"trainable_token_indices": {"embed": [True]}},
    ],
)
def test_a_value_that_gives_no_rank_or_alpha_is_invalid(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    assert codes(write_adapter(tmp_path, config=config)) == ["HSW003"]


@pytest.mark.parametrize("peft_type", ["LOHA", None, ["LORA"]])
def test_another_kind_of_adapter_is_not_lora(tmp_path: Path, peft_type: Any) -> None:
    assert codes(write_adapter(tmp_path, config={"peft_type": peft_type})) == ["HSW101"]


def test_the_first_matching_pattern_gives_the_rank_and_alpha() -> None:
    config = {
        "r": 8,
        "lora_alpha": 16,
        "rank_pattern": {"0.q_proj": 2, "q_proj": 4},
        "alpha_pattern": {"v_.*": 32},
    }
    assert rank_of(config, "layers.0.q_proj") == 2
    assert rank_of(config, "layers.10.q_proj") == 4
    assert rank_of(config, "layers.1.xq_proj") == 8
    assert alpha_of(config, "layers.1.v_proj") == 32
    assert alpha_of(config, "layers.1.q_proj") == 16


def test_rslora_divides_by_the_square_root_of_the_rank() -> None:
    assert scaling_of({"lora_alpha": 8}, "q_proj", 4) == 2
    assert scaling_of({"lora_alpha": 8, "use_rslora": True}, "q_proj", 4) == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", "all"),
        ("bias", "lora_only"),
        ("layer_replication", [[0, 1]]),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("use_bdlora", {"x": 1}),
        ("arrow_config", {"x": 1}),
        ("kasa_config", {"x": 1}),
        ("monteclora_config", {"x": 1}),
        ("velora_config", {"x": 1}),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "OLoRA"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
    ],
)
def test_a_feature_that_a_swap_would_lose_is_named(key: str, value: Any) -> None:
    (sentence,) = unsupported_features({key: value})
    assert sentence.startswith(key)
    assert "PEFT's " in sentence


def test_ordinary_settings_are_supported(tmp_path: Path) -> None:
    config = {"lora_dropout": 0.1, "init_lora_weights": "gaussian", "use_dora": False, "bias": None}
    assert unsupported_features(json.loads(json.dumps(config))) == ()
    for init in ("eva", "mica", "orthogonal", "gaussian"):
        assert unsupported_features({"init_lora_weights": init}) == ()
    for swapped in (
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["experts.w"]},
    ):
        assert unsupported_features(swapped) == ()
    assert unsupported_features(read_config(write_adapter(tmp_path))) == ()


def test_a_module_is_saved_whole_when_its_path_ends_with_an_entry() -> None:
    config = {"modules_to_save": ["head", "block.norm"]}
    assert saved_module(config, "model.head.weight")
    assert saved_module(config, "model.head.dense.bias")
    assert saved_module(config, "x.block.norm.weight")
    assert not saved_module(config, "model.norm.weight")
    assert not saved_module({}, "model.head.weight")


def test_token_rows_are_for_every_embedding_or_by_name() -> None:
    assert token_indices({"trainable_token_indices": [3, 1]}, "model.embed_tokens") == (3, 1)
    by_name = {"trainable_token_indices": {"embed_tokens": [2]}}
    assert token_indices(by_name, "model.embed_tokens") == (2,)
    assert token_indices(by_name, "model.wte") == ()
    assert token_indices({}, "model.embed_tokens") == ()


def test_target_parameters_are_those_of_the_module() -> None:
    config = {"target_parameters": ["experts.up", "experts.down", "other.up"]}
    assert target_parameters(config, "layers.0.experts") == ("down", "up")
    assert target_parameters(config, "layers.0.xexperts") == ()
