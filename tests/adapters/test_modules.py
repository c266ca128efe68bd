"""What the tensors of one module say, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotswap.adapters.modules import ModuleSpec, widest
from hotswap.adapters.spec import AdapterSpec
from tests.support.adapter_files import Tensors, lora_tensors, write_adapter
from tests.support.adapter_specs import (
    Q,
    codes,
    pair,
)


def test_an_embedding_and_a_grouped_convolution_are_recognised(tmp_path: Path) -> None:
    tensors: Tensors = {
        "base_model.model.tokens.lora_embedding_A": ("F32", (8, 100)),
        "base_model.model.tokens.lora_embedding_B": ("F32", (16, 8)),
        "base_model.model.conv.lora_A.weight": ("F32", (8, 6, 3, 5)),
        "base_model.model.conv.lora_B.weight": ("F32", (12, 4, 1, 1)),
    }
    spec = AdapterSpec.read(write_adapter(tmp_path, tensors=tensors))
    assert spec.findings == ()
    assert spec.modules["tokens"] == ModuleSpec(
        "embedding", 8, 16.0, 2.0, 100, 16, (), 1, "F32", False
    )
    assert spec.modules["conv"] == ModuleSpec("conv", 8, 16.0, 2.0, 6, 12, (3, 5), 2, "F32", False)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (pair((4, 32), (16, 4)), "the weights have rank 4, the config says 8"),
        (pair((8, 32), (16, 4)), "A has rank 8, B has rank 4"),
        (pair((32, 8), (8, 16)), "exchanged"),
        (pair((8, 32, 3), (16, 8)), "expected (rank, in, *kernel)"),
        (pair((8, 32, 3, 3), (16, 8, 3, 3)), "expected (rank, in, *kernel)"),
        (pair((8, 32, 3, 3), (16, 3, 1, 1)), "not a multiple of the 3 columns"),
        (pair((0, 32), (16, 0)), "expected (rank, in, *kernel)"),
        (pair((8,), (16,)), "expected (rank, in, *kernel)"),
    ],
)
def test_a_rank_that_disagrees_is_a_mismatch(tmp_path: Path, tensors: Tensors, words: str) -> None:
    spec = AdapterSpec.read(write_adapter(tmp_path, tensors=tensors))
    assert codes(spec) == ["HSW104"]
    assert words in spec.findings[0].message
    assert spec.findings[0].where == f"{tmp_path}::q_proj"
    assert spec.modules == {}


@pytest.mark.parametrize("missing", ["lora_A.weight", "lora_B.weight", "lora_B.bias"])
def test_half_a_pair_is_incomplete(tmp_path: Path, missing: str) -> None:
    tensors = lora_tensors({"q_proj": (32, 16)}, bias=True)
    del tensors[f"{Q}.{missing}"]
    spec = AdapterSpec.read(write_adapter(tmp_path, tensors=tensors, bias=True))
    assert codes(spec) == ["HSW103"]
    assert spec.findings[0].message.startswith(missing)


def test_a_bias_that_the_config_denies_is_unexpected(tmp_path: Path) -> None:
    extra: Tensors = {f"{Q}.lora_B.bias": ("F32", (16,))}
    assert codes(AdapterSpec.read(write_adapter(tmp_path, extra=extra))) == ["HSW108"]


def test_a_bias_of_another_length_is_invalid(tmp_path: Path) -> None:
    tensors = {**pair((8, 32), (16, 8)), f"{Q}.lora_B.bias": ("F32", (15,))}
    assert codes(AdapterSpec.read(write_adapter(tmp_path, tensors=tensors, bias=True))) == [
        "HSW005"
    ]


def test_a_magnitude_is_part_of_a_dora_module(tmp_path: Path) -> None:
    extra: Tensors = {f"{Q}.lora_magnitude_vector": ("F32", (16,))}
    spec = AdapterSpec.read(write_adapter(tmp_path, extra=extra, config={"use_dora": True}))
    assert spec.findings == ()
    assert spec.modules["q_proj"].dora
    spec = AdapterSpec.read(write_adapter(tmp_path / "none", config={"use_dora": True}))
    assert codes(spec) == ["HSW103"]


def test_the_experts_of_a_parameter_are_counted(tmp_path: Path) -> None:
    name = "base_model.model.layers.0.experts"
    tensors: Tensors = {
        f"{name}.lora_A.weight": ("F32", (24, 10)),
        f"{name}.lora_B.weight": ("F32", (6, 24)),
    }
    config = {"target_parameters": ["experts.up"], "rank_pattern": {"experts.up": 4}}
    spec = AdapterSpec.read(write_adapter(tmp_path, tensors=tensors, config=config))
    assert spec.findings == ()
    module = spec.modules["layers.0.experts"]
    assert (module.kind, module.rank, module.experts) == ("parameter", 4, 6)


def test_parameters_of_one_module_share_a_rank(tmp_path: Path) -> None:
    tensors: Tensors = {
        "base_model.model.experts.lora_A.weight": ("F32", (8, 10)),
        "base_model.model.experts.lora_B.weight": ("F32", (6, 8)),
    }
    config = {
        "target_parameters": ["experts.up", "experts.down"],
        "rank_pattern": {"experts.up": 4},
    }
    spec = AdapterSpec.read(write_adapter(tmp_path, tensors=tensors, config=config))
    assert codes(spec) == ["HSW102"]
    assert "tells the parameters down, up apart" in spec.findings[0].message


def test_half_precisions_of_both_kinds_need_float32() -> None:
    assert widest(["F16", "BF16"]) == "F32"
    assert widest(["BF16", "BF16"]) == "BF16"
    assert widest(["F16", "F64"]) == "F64"
    assert widest([]) == "F32"
