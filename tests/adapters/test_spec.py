"""AdapterSpec: what the tensors and the config say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hotswap.adapters.modules import ModuleSpec, TokenRows, widest
from hotswap.adapters.names import family
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import UnreadableAdapterError
from tests.support.adapter_files import Tensors, lora_tensors, write_adapter

Q = "base_model.model.q_proj"


def codes(spec: AdapterSpec) -> list[str]:
    return [finding.code for finding in spec.findings]


def pair(a: tuple[int, ...], b: tuple[int, ...], dtype: str = "F32") -> Tensors:
    return {f"{Q}.lora_A.weight": (dtype, a), f"{Q}.lora_B.weight": (dtype, b)}


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


@pytest.mark.parametrize(
    "name",
    [
        f"{Q}.lora_magnitude_vector",
        "base_model.model.other.weight",
        "q_proj.lora_A.weight",
    ],
)
def test_any_other_tensor_is_named(tmp_path: Path, name: str) -> None:
    spec = AdapterSpec.read(write_adapter(tmp_path, extra={name: ("F32", (8, 32))}))
    assert codes(spec) == ["HSW108"]
    assert spec.findings[0].where.startswith(f"{tmp_path}::")


def test_a_bias_that_the_config_denies_is_unexpected(tmp_path: Path) -> None:
    extra: Tensors = {f"{Q}.lora_B.bias": ("F32", (16,))}
    assert codes(AdapterSpec.read(write_adapter(tmp_path, extra=extra))) == ["HSW108"]


def test_a_bias_of_another_length_is_invalid(tmp_path: Path) -> None:
    tensors = {**pair((8, 32), (16, 8)), f"{Q}.lora_B.bias": ("F32", (15,))}
    assert codes(AdapterSpec.read(write_adapter(tmp_path, tensors=tensors, bias=True))) == [
        "HSW005"
    ]


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


def test_a_broken_config_and_broken_weights_are_both_reported(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, config={"r": 0})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UnreadableAdapterError) as caught:
        AdapterSpec.read(folder)
    assert [finding.code for finding in caught.value.findings] == ["HSW003", "HSW004"]


@pytest.mark.parametrize("config", [{"peft_type": "LOHA"}, {"peft_type": "LORA", "r": 0}])
def test_tensors_with_a_bad_config_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnreadableAdapterError):
        AdapterSpec.from_tensors("state dict", config, {})


def test_layer_numbers_make_a_family() -> None:
    assert family("h.0.attn.12.q1") == "h.*.attn.*.q1"
    assert family("0") == "*"


def test_half_precisions_of_both_kinds_need_float32() -> None:
    assert widest(["F16", "BF16"]) == "F32"
    assert widest(["BF16", "BF16"]) == "BF16"
    assert widest(["F16", "F64"]) == "F64"
    assert widest([]) == "F32"


def test_base_weights_beside_an_adapter_are_copies(tmp_path: Path) -> None:
    names = ("lm_head.weight", "model.embed_tokens.weight", "q_proj.base_layer.weight")
    extra: Tensors = {f"base_model.model.{name}": ("F32", (4, 4)) for name in names}
    spec = AdapterSpec.read(write_adapter(tmp_path, extra=extra))
    assert spec.findings == ()
    assert set(spec.copies) == set(names)
    assert spec.bytes == 4 * (8 * 32 + 16 * 8)


def test_a_magnitude_is_part_of_a_dora_module(tmp_path: Path) -> None:
    extra: Tensors = {f"{Q}.lora_magnitude_vector": ("F32", (16,))}
    spec = AdapterSpec.read(write_adapter(tmp_path, extra=extra, config={"use_dora": True}))
    assert spec.findings == ()
    assert spec.modules["q_proj"].dora
    spec = AdapterSpec.read(write_adapter(tmp_path / "none", config={"use_dora": True}))
    assert codes(spec) == ["HSW103"]


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


def test_an_empty_token_tensor_is_none(tmp_path: Path) -> None:
    rows = "base_model.model.embed.token_adapter.trainable_tokens_delta"
    spec = AdapterSpec.read(write_adapter(tmp_path, extra={rows: ("F32", (0, 6))}))
    assert (spec.findings, spec.tokens) == ((), {})


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


def test_parameters_of_one_module_are_told_apart_by_their_ranks_only(tmp_path: Path) -> None:
    tensors: Tensors = {
        "base_model.model.experts.lora_A.weight": ("F32", (8, 10)),
        "base_model.model.experts.lora_B.weight": ("F32", (6, 8)),
    }
    config = {
        "target_parameters": ["experts.up", "experts.down"],
        "alpha_pattern": {"experts.up": 4},
    }
    spec = AdapterSpec.read(write_adapter(tmp_path, tensors=tensors, config=config))
    assert codes(spec) == ["HSW102"]
    assert "tells the parameters down, up apart" in spec.findings[0].message
