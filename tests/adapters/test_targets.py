"""hotswap.adapters.targets: which weights PEFT loads is what the config names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from hotswap.adapters.config import FIELDS
from hotswap.adapters.inspect import Inspector
from hotswap.adapters.spec import AdapterSpec
from hotswap.adapters.targets import left_out, naming
from tests.support.adapter_files import Tensors, write_adapter

MODULES = [
    f"{prefix}layers.{layer}.{module}"
    for prefix in ("", "model.", "model.vision.")
    for layer in (0, 1, 11)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.experts.1.q_proj")
]
LISTS = st.lists(
    st.sampled_from(["q_proj", "v_proj", "self_attn.q_proj", "proj", "layers.1.self_attn.q_proj"]),
    min_size=1,
)
PATTERNS = st.sampled_from(
    [
        r".*q_proj",
        r"(?i).*Q_PROJ",
        "q_proj",
        r".*\.layers\.0\..*(q|v)_proj",
        r"(?:.*?(?:self_attn|mlp).*?(?:q|v)_proj).*?",
    ]
)


@settings(deadline=None)
@given(
    targets=LISTS | PATTERNS,
    layers=st.none() | st.integers(0, 2) | st.lists(st.integers(0, 12), max_size=2),
    pattern=st.none() | st.sampled_from(["layers", "experts", ["experts", "layers"]]),
    excluded=st.none() | LISTS | PATTERNS,
)
def test_the_modules_of_a_config_are_those_that_peft_finds(
    targets: Any, layers: Any, pattern: Any, excluded: Any
) -> None:
    fields = {"target_modules": targets, "exclude_modules": excluded}
    if isinstance(targets, list):
        fields |= {"layers_to_transform": layers}
        fields |= {"layers_pattern": pattern} if layers is not None else {}
    config = LoraConfig(**fields)
    expected = [bool(check_target_module_exists(config, name)) for name in MODULES]
    assert [naming(fields)(name) for name in MODULES] == expected
    named = dict(zip(MODULES, expected, strict=True))
    assert left_out(fields, MODULES) == [name for name in MODULES if not named[name]]


def test_the_fields_of_a_config_are_pefts() -> None:
    assert set(LoraConfig.__dataclass_fields__) == FIELDS


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": r".*q_proj"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    ],
)
def test_weights_that_the_config_does_not_name_are_left_out_and_reported(
    config: dict[str, Any], tmp_path: Path
) -> None:
    modules = {"model.layers.0.v_proj": (8, 8), "model.layers.1.q_proj": (8, 8)}
    folder = write_adapter(tmp_path / "a", modules=modules, config=config)
    spec = AdapterSpec.read(folder)
    assert list(spec.modules) == ["model.layers.1.q_proj"]
    assert spec.left_out == ("model.layers.0.v_proj",)
    (found,) = Inspector()(str(folder)).findings
    assert found.code == "HSW118"
    assert "model.layers.0.v_proj" in found.message


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear", r".*_proj"])
def test_a_config_that_names_all_weights_is_silent(targets: Any, tmp_path: Path) -> None:
    modules = {"model.layers.0.v_proj": (8, 8), "model.layers.1.q_proj": (8, 8)}
    folder = write_adapter(tmp_path, modules=modules, config={"target_modules": targets})
    assert Inspector()(str(folder)).findings == ()


def test_all_linear_means_neither_heads_nor_embeddings(tmp_path: Path) -> None:
    """As in PEFT, which saves the names in its place; others write the word."""
    extra: Tensors = {
        "base_model.model.tokens.lora_embedding_A": ("F32", (8, 40)),
        "base_model.model.tokens.lora_embedding_B": ("F32", (16, 8)),
    }
    modules = {"layers.0.up": (16, 16), "score": (16, 2), "lm_head": (16, 40)}
    for task, left in ((None, ("lm_head", "tokens")), ("SEQ_CLS", ("lm_head", "score", "tokens"))):
        config = {"target_modules": "all-linear", "task_type": task}
        folder = write_adapter(tmp_path / str(task), modules=modules, config=config, extra=extra)
        assert sorted(AdapterSpec.read(folder).left_out) == sorted(left)
        assert [f.code for f in Inspector()(str(folder)).findings] == ["HSW118"]


def test_a_target_that_is_excluded_needs_no_weights(tmp_path: Path) -> None:
    targets = ["layers.0.q_proj", "layers.0.v_proj"]
    config = {"target_modules": targets, "exclude_modules": ["v_proj"]}
    folder = write_adapter(tmp_path, modules={"layers.0.q_proj": (8, 8)}, config=config)
    assert Inspector()(str(folder)).findings == ()


@pytest.mark.parametrize(
    "config",
    [
        {"task_type": "TEXT_GENERATION"},
        {"target_modules": 3},
        {"target_modules": r"(a+)+b"},
        {"target_modules": "q_proj", "layers_to_transform": [0]},
        {"layers_pattern": "layers"},
        {"layers_to_transform": ["0"]},
        {"use_dora": True, "lora_bias": True},
        {"init_lora_weights": 1},
    ],
)
def test_values_that_peft_refuses_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    findings = Inspector()(str(write_adapter(tmp_path, config=config))).findings
    assert {finding.code for finding in findings} == {"HSW003"}


def test_a_config_that_names_none_of_the_weights_is_refused_as_peft_does(tmp_path: Path) -> None:
    for name, targets in (("none", ["k_proj"]), ("some", ["q_proj"])):
        config = {"target_modules": targets}
        modules = {"layers.0.q_proj": (8, 8), "layers.0.v_proj": (8, 8)}
        write_adapter(tmp_path / name, modules=modules, config=config)
    refused = {
        f.code for f in Inspector()(str(tmp_path / "none")).findings if f.severity == "error"
    }
    assert refused == {"HSW004"}
    assert all(f.severity == "warning" for f in Inspector()(str(tmp_path / "some")).findings)


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_names_of_wrapped_models_are_refused_in_one_finding(wrapper: str, tmp_path: Path) -> None:
    modules = {f"layers.{layer}.{wrapper}q_proj": (8, 8) for layer in range(3)}
    (found,) = Inspector()(str(write_adapter(tmp_path, modules=modules))).findings
    assert (found.code, wrapper[:-1] in found.message) == ("HSW108", True)


def test_the_name_default_inside_of_keys_is_taken_as_peft_does(tmp_path: Path) -> None:
    named = {
        f"base_model.model.q_proj.lora_{part}.{name}.weight": ("F32", shape)
        for name in ("default",)
        for part, shape in (("A", (8, 16)), ("B", (16, 8)))
    }
    assert list(AdapterSpec.read(write_adapter(tmp_path, tensors=named)).modules) == ["q_proj"]
