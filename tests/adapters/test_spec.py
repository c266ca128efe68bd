"""AdapterSpec: what the tensors and the config say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hotswap.adapters.modules import ModuleSpec, TokenRows
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import UnreadableAdapterError
from tests.support.adapter_files import Tensors, lora_tensors, write_adapter
from tests.support.adapter_specs import (
    Q,
    codes,
)


def test_an_adapter_is_described_per_module(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path / "a",
        modules={"x.q_proj": (32, 16), "x.v_proj": (32, 8)},
        rank_pattern={"v_proj": 4},
        bias=True,
        dtype="BF16",
    )
    spec = AdapterSpec.read(folder)
    assert spec.findings == ()
    assert spec.modules == {
        "x.q_proj": ModuleSpec("linear", 8, 16.0, 2.0, 32, 16, (), 1, "BF16", True),
        "x.v_proj": ModuleSpec("linear", 4, 16.0, 4.0, 32, 8, (), 1, "BF16", True),
    }
    assert (spec.name, spec.rank) == ("a", 8)
    assert spec.bytes == 2 * (8 * 32 + 16 * 8 + 16 + 4 * 32 + 8 * 4 + 8)


@pytest.mark.parametrize("name", [f"{Q}.lora_magnitude_vector", "base_model.model.other.weight"])
def test_any_other_tensor_is_named(tmp_path: Path, name: str) -> None:
    spec = AdapterSpec.read(write_adapter(tmp_path, extra={name: ("F32", (8, 32))}))
    assert codes(spec) == ["HSW108"]
    assert spec.findings[0].where.startswith(f"{tmp_path}::")


HEAD: Tensors = {"base_model.model.head.weight": ("F32", (3, 32))}
HEAD_BIAS: Tensors = {"base_model.model.head.bias": ("F32", (3,))}


@pytest.mark.parametrize(
    ("carried", "found"),
    [
        (HEAD, []),
        (HEAD | HEAD_BIAS, []),
        (HEAD_BIAS, ["HSW103"]),  # half of a head
        ({}, ["HSW103"]),  # a head that the config promises
    ],
)
def test_a_module_to_save_is_whole(tmp_path: Path, carried: Tensors, found: list[str]) -> None:
    folder = write_adapter(tmp_path, extra=carried, config={"modules_to_save": ["head", "score"]})
    assert codes(AdapterSpec.read(folder)) == found


def test_weights_that_are_no_floating_numbers_are_named(tmp_path: Path) -> None:
    spec = AdapterSpec.read(write_adapter(tmp_path, dtype="I8"))
    assert codes(spec) == ["HSW109", "HSW109"]


def test_a_file_without_lora_weights_has_none(tmp_path: Path) -> None:
    assert codes(AdapterSpec.read(write_adapter(tmp_path, tensors={}))) == ["HSW004"]


def test_an_unsupported_feature_is_a_finding_and_the_spec_is_still_there(tmp_path: Path) -> None:
    spec = AdapterSpec.read(write_adapter(tmp_path, config={"use_qalora": True}))
    assert codes(spec) == ["HSW102"]
    assert list(spec.modules) == ["q_proj"]


def test_the_same_in_every_layer_is_said_once(tmp_path: Path) -> None:
    modules = {f"layers.{i}.q_proj": (32, 16) for i in range(12)}
    tensors = lora_tensors(modules, rank=4)
    spec = AdapterSpec.read(write_adapter(tmp_path, modules=modules, tensors=tensors))
    (finding,) = spec.findings
    assert "(and 11 more of layers.*.q_proj)" in finding.message


@pytest.mark.parametrize("config", [{"peft_type": "LOHA"}, {"peft_type": "LORA", "r": 0}])
def test_tensors_with_a_bad_config_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnreadableAdapterError):
        AdapterSpec.from_tensors("state dict", config, {})


def test_base_weights_beside_an_adapter_are_copies(tmp_path: Path) -> None:
    names = ("lm_head.weight", "model.embed_tokens.weight", "q_proj.base_layer.weight")
    extra: Tensors = {f"base_model.model.{name}": ("F32", (4, 4)) for name in names}
    spec = AdapterSpec.read(write_adapter(tmp_path, extra=extra))
    assert spec.findings == ()
    assert set(spec.copies) == set(names)
    assert spec.bytes == 4 * (8 * 32 + 16 * 8)


def test_whole_modules_and_token_rows_are_read(tmp_path: Path) -> None:
    rows = "base_model.model.embed.token_adapter.trainable_tokens_delta"
    extra: Tensors = {rows: ("F32", (2, 6)), "base_model.model.score.weight": ("F32", (3, 6))}
    config = {"modules_to_save": ["score"], "trainable_token_indices": [4, 9]}
    spec = AdapterSpec.read(write_adapter(tmp_path, extra=extra, config=config))
    assert spec.findings == ()
    assert list(spec.saved) == ["score.weight"]
    assert spec.tokens == {"embed": TokenRows((4, 9), 6, "F32")}
    config["trainable_token_indices"] = [4]
    spec = AdapterSpec.read(write_adapter(tmp_path, extra=extra, config=config))
    assert codes(spec) == ["HSW104"]
    assert codes(AdapterSpec.read(write_adapter(tmp_path, extra=extra))) == ["HSW108", "HSW108"]


def test_token_rows_without_a_shape_are_a_finding(tmp_path: Path) -> None:
    rows = "base_model.model.embed.token_adapter.trainable_tokens_delta"
    config = {"trainable_token_indices": [4]}
    spec = AdapterSpec.read(write_adapter(tmp_path, extra={rows: ("F32", ())}, config=config))
    assert codes(spec) == ["HSW104"]


def test_an_empty_token_tensor_is_none(tmp_path: Path) -> None:
    rows = "base_model.model.embed.token_adapter.trainable_tokens_delta"
    spec = AdapterSpec.read(write_adapter(tmp_path, extra={rows: ("F32", (0, 6))}))
    assert (spec.findings, spec.tokens) == ((), {})


@pytest.mark.parametrize("given", [[4, 9], {"embed": [4, 9]}])
def test_rows_that_the_config_names_and_the_weights_lack_are_a_finding(
    tmp_path: Path, given: object
) -> None:
    folder = write_adapter(tmp_path, config={"trainable_token_indices": given})
    (found,) = AdapterSpec.read(folder).findings
    assert (found.code, "the weights have none" in found.message) == ("HSW103", True)
    write_adapter(folder, config={"trainable_token_indices": {"embed": []}})
    assert AdapterSpec.read(folder).findings == ()
