"""hotswap.engine.peft.functions and peft_patch: PEFT's functions over this engine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import peft.utils.hotswap as upstream
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.slots import lora_layers
from hotswap.engine.peft.functions import (
    check_hotswap_configs_compatible,
    hotswap_adapter,
    hotswap_adapter_from_state_dict,
    prepare_model_for_compiled_hotswap,
)
from hotswap.errors import (
    AdapterError,
    MergedAdapterError,
    NoAdapterError,
    NotPreparedError,
    RankTooLargeError,
    UnexpectedModulesError,
    UnsupportedLayerError,
)
from tests.support import warm
from tests.support.models import fresh, micro, run, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 4},
    "alike": {"r": 2, "lora_alpha": 4},
    "large": {"r": 8, "lora_alpha": 3},
    "alpha": {"r": 2, "lora_alpha": 5},
    "patterned": {"r": 4, "rank_pattern": {"first": 6}, "alpha_pattern": {"second": 1}},
    "subset": {"r": 2, "lora_alpha": 4, "target_modules": ["first", "conv"]},
    "dora": {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["first"]},
    "biased": {"r": 2, "lora_alpha": 4, "lora_bias": True, "target_modules": ["first", "conv"]},
}


@pytest.fixture
def base() -> Any:
    return micro()


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    return {
        name: write_adapter(tmp_path / name, base, seed=seed, **config)
        for seed, (name, config) in enumerate(CONFIGS.items())
    }


def bits(model: Any) -> list[torch.Tensor]:
    return [value.detach().clone() for value in (*model.parameters(), *model.buffers())]


def same_bits(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def with_name(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The keys that PEFT's low-level function takes: with the adapter's name."""
    return {
        f"{stem}.{name}.{kind}" if kind in ("weight", "bias") else f"{key}.{name}": value
        for key, value in tensors.items()
        for stem, _, kind in (key.rpartition("."),)
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_an_unprepared_model_takes_any_adapter_that_fits(base: Any, fleet: Any, name: str) -> None:
    model = fresh(base, fleet["small"])
    for each in (name, "small", name):
        hotswap_adapter(model, fleet[each], adapter_name="default", torch_device="cpu")
        torch.testing.assert_close(run(model), run(fresh(base, fleet[each])))


@pytest.mark.parametrize("name", ["small", "large", "alpha", "patterned", "subset"])
def test_a_prepared_model_takes_state_dicts_with_the_adapters_name(
    base: Any, fleet: Any, name: str
) -> None:
    model = fresh(base, fleet["small"])
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    reference = fresh(base, fleet[name])
    tensors = with_name(get_peft_model_state_dict(reference), "default")
    hotswap_adapter_from_state_dict(model, tensors, "default", reference.peft_config["default"])
    torch.testing.assert_close(run(model), run(reference))


def test_an_adapter_of_the_same_shape_is_swapped_without_preparing(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    places = [p.data_ptr() for p in model.parameters()]
    compiled = torch.compile(model, backend="eager")
    run(compiled)
    with hotswap.forbid_recompiles():
        for name in ("alike", "subset", "small"):
            hotswap_adapter(compiled, fleet[name], adapter_name="default")
            torch.testing.assert_close(run(compiled), run(fresh(base, fleet[name])))
    assert places == [p.data_ptr() for p in model.parameters()]
    assert not any(isinstance(la.scaling, Scalings) for la in lora_layers(model).values())


@pytest.mark.parametrize("name", ["large", "alpha", "patterned"])
def test_a_compiled_model_that_is_not_prepared_refuses_another_shape(
    base: Any, fleet: Any, name: str
) -> None:
    model = torch.compile(fresh(base, fleet["small"]), backend="eager")
    before = bits(model)
    with pytest.raises(NotPreparedError, match="prepare_model_for_compiled_hotswap") as caught:
        hotswap_adapter(model, fleet[name], adapter_name="default")
    assert isinstance(caught.value, RuntimeError)
    assert same_bits(before, bits(model))


def test_a_prepared_and_compiled_model_does_not_recompile(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    assert prepare_model_for_compiled_hotswap(model, target_rank=8) is None
    compiled = torch.compile(model, backend="eager")
    run(compiled)
    with hotswap.forbid_recompiles():
        for name in ("large", "patterned", "subset", "small"):
            assert hotswap_adapter(compiled, fleet[name], adapter_name="default") is None
            torch.testing.assert_close(run(compiled), run(fresh(base, fleet[name])))


def test_the_target_rank_of_a_model_that_was_prepared_on_purpose_is_a_bound(
    base: Any, fleet: Any
) -> None:
    model = fresh(base, fleet["small"])
    prepare_model_for_compiled_hotswap(model, target_rank=4)
    before = bits(model)
    with pytest.raises(RankTooLargeError):
        hotswap_adapter(model, fleet["large"], adapter_name="default")
    assert same_bits(before, bits(model))


def test_more_modules_are_a_runtime_error(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["subset"])
    before = bits(model)
    with pytest.raises(UnexpectedModulesError, match=r"hotswap\.load") as caught:
        hotswap_adapter(model, fleet["small"], adapter_name="default")
    assert isinstance(caught.value, RuntimeError)
    assert {finding.code for finding in caught.value.findings} == {"HSW106"}
    assert same_bits(before, bits(model))


def test_half_a_pair_counts_as_zeros_and_is_warned_of(base: Any, fleet: Any) -> None:
    file = fleet["small"] / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.first.lora_A.weight"]
    save_file(tensors, file)
    model = fresh(base, fleet["alike"])
    with pytest.warns(UserWarning, match="only one of lora_A and lora_B for first"):
        hotswap_adapter(model, fleet["small"], adapter_name="default")
    assert not lora_layers(model)["first"].lora_A["default"].weight.any()
    assert lora_layers(model)["second"].lora_A["default"].weight.any()


@pytest.mark.parametrize("prepared", [False, True])
def test_a_bad_value_changes_nothing(base: Any, fleet: Any, prepared: bool) -> None:
    file = fleet["alike"] / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[sorted(tensors)[-1]].view(-1)[-1] = float("nan")
    save_file(tensors, file)
    model = fresh(base, fleet["small"])
    if prepared:
        prepare_model_for_compiled_hotswap(model, target_rank=8)
    before = bits(model)
    with pytest.raises(AdapterError, match="NaN"):
        hotswap_adapter(model, fleet["alike"], adapter_name="default")
    assert same_bits(before, bits(model))


def test_an_adapter_loaded_under_inference_mode_is_swapped_outside_of_it(
    base: Any, fleet: Any
) -> None:
    with torch.inference_mode():
        model = fresh(base, fleet["small"])
    for name in ("alike", "large"):
        hotswap_adapter(model, fleet[name], adapter_name="default")
        torch.testing.assert_close(run(model), run(fresh(base, fleet[name])))


def test_a_copy_that_fails_half_way_is_undone(
    base: Any, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh(base, fleet["small"])
    before, copy = bits(model), torch._foreach_copy_

    def fail_once(targets: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        monkeypatch.setattr(torch, "_foreach_copy_", copy)
        copy(targets[:3], values[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "_foreach_copy_", fail_once)
    with pytest.raises(KeyboardInterrupt):
        hotswap_adapter(model, fleet["alike"], adapter_name="default")
    assert same_bits(before, bits(model))
    hotswap_adapter(model, fleet["alike"], adapter_name="default")
    torch.testing.assert_close(run(model), run(fresh(base, fleet["alike"])))


@pytest.mark.parametrize("name", ["alike", "large"])
def test_a_merged_adapter_is_a_value_error(base: Any, fleet: Any, name: str) -> None:
    model = fresh(base, fleet["small"])
    model.merge_adapter()
    with pytest.raises((MergedAdapterError, UnsupportedLayerError), match="merged"):
        hotswap_adapter(model, fleet[name], adapter_name="default")


def test_other_methods_and_other_names_are_value_errors(
    base: Any, fleet: Any, tmp_path: Path
) -> None:
    ia3 = get_peft_model(micro(), IA3Config(target_modules=["first"], feedforward_modules=[]))
    ia3.save_pretrained(tmp_path / "ia3")
    model = fresh(base, fleet["small"])
    with pytest.raises(AdapterError, match="IA3"):
        hotswap_adapter(model, tmp_path / "ia3", adapter_name="default")
    with pytest.raises(NoAdapterError, match="other"):
        hotswap_adapter(model, fleet["alike"], adapter_name="other")
    lora, other = LoraConfig(), IA3Config()
    with pytest.raises(ValueError, match="LORA and IA3"):
        check_hotswap_configs_compatible(lora, other)
    with pytest.raises(ValueError, match="IA3 and IA3"):
        check_hotswap_configs_compatible(other, other)
    check_hotswap_configs_compatible(lora, LoraConfig(use_rslora=True, lora_dropout=0.5))


def test_an_unknown_argument_is_a_type_error(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    with pytest.raises(TypeError, match="key_map="):
        hotswap_adapter(model, fleet["alike"], adapter_name="default", key_map={})
    hotswap_adapter(
        model, fleet["alike"].parent, "default", subfolder="alike", revision=None, token=None
    )
    torch.testing.assert_close(run(model), run(fresh(base, fleet["alike"])))


@pytest.mark.parametrize("names", [("default", "default_2"), ("0", "00"), ("weight", "q")])
def test_only_the_named_adapter_is_touched(base: Any, fleet: Any, names: tuple[str, str]) -> None:
    first, second = names
    model = PeftModel.from_pretrained(base, fleet["small"], adapter_name=second).eval()
    model.load_adapter(fleet["small"], adapter_name=first)
    before = get_peft_model_state_dict(model, adapter_name=second)
    before = {key: value.clone() for key, value in before.items()}
    for name in ("alike", "large"):
        tensors = get_peft_model_state_dict(fresh(micro(), fleet[name]))
        config = LoraConfig.from_pretrained(fleet[name])
        hotswap_adapter_from_state_dict(model, with_name(tensors, first), first, config)
        after = get_peft_model_state_dict(model, adapter_name=second)
        assert all(torch.equal(after[key], value) for key, value in before.items())
        model.set_adapter(first)
        torch.testing.assert_close(run(model), run(fresh(micro(), fleet[name])))


@pytest.mark.parametrize("swapped", [False, True])
def test_configs_get_the_target_rank_and_write_the_adapters_own(
    base: Any, fleet: Any, tmp_path: Path, swapped: bool
) -> None:
    model = fresh(base, fleet["patterned"])
    prepare_model_for_compiled_hotswap(model, target_rank=8, config=model.peft_config)
    config = model.peft_config["default"]
    assert config.r == 8
    assert config.rank_pattern == {"first": 8}
    name = "large" if swapped else "patterned"
    if swapped:
        hotswap_adapter(model, fleet["large"], adapter_name="default")
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(run(fresh(base, tmp_path / "saved")), run(fresh(base, fleet[name])))


def test_a_config_is_read_at_the_adapters_own_rank(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    tensors = with_name(get_peft_model_state_dict(model), "default")
    expected = run(model)
    prepare_model_for_compiled_hotswap(model, target_rank=8, config=model.peft_config["default"])
    hotswap_adapter(model, fleet["alike"], adapter_name="default")
    hotswap_adapter_from_state_dict(model, tensors, "default", model.peft_config["default"])
    torch.testing.assert_close(run(model), expected)


def test_what_is_saved_after_a_swap_without_preparing_loads_equal(
    base: Any, fleet: Any, tmp_path: Path
) -> None:
    model = fresh(base, fleet["small"])
    hotswap_adapter(model, fleet["subset"], adapter_name="default")
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(run(fresh(base, tmp_path / "saved")), run(model))
    assert model.peft_config["default"].target_modules == {"first", "conv"}


def test_patch_peft_replaces_the_functions_wherever_they_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs, module = upstream.hotswap_adapter, ModuleType("somebody")
    vars(module)["swap_it"] = theirs
    vars(module)["ours"] = hotswap_adapter
    monkeypatch.setitem(sys.modules, "somebody", module)
    with hotswap.patch_peft() as patch:
        for place in (upstream.hotswap_adapter, module.swap_it):
            assert place.__wrapped__ is hotswap_adapter
        with hotswap.patch_peft():
            pass
        assert upstream.hotswap_adapter.__wrapped__ is hotswap_adapter
        vars(module)["late"] = upstream.hotswap_adapter
    assert upstream.hotswap_adapter is module.swap_it is module.late is theirs
    assert module.ours is hotswap_adapter
    patch.undo()
    patch = hotswap.patch_peft()
    assert (
        upstream.prepare_model_for_compiled_hotswap.__wrapped__
        is prepare_model_for_compiled_hotswap
    )
    patch.undo()
    assert upstream.hotswap_adapter is theirs


def test_importing_it_imports_no_diffusers() -> None:
    code = (
        "import sys, hotswap.engine.peft.patch, hotswap.engine.parts; "
        "sys.exit('diffusers' in sys.modules)"
    )
    assert warm.run([sys.executable, "-c", code]).returncode == 0  # PEFT alone imports none either
