"""The engine on transformers models that carry adapters without a PeftModel, and on compiled parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.peft as integration
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

import hotswap
from hotswap.engine.layout.slots import lora_layers
from hotswap.errors import AdapterError, NotPreparedError, RankTooLargeError
from tests.support.models import fresh, micro, run, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
needs_hotswap = pytest.mark.skipif(
    not hasattr(PreTrainedModel, "enable_peft_hotswap"),
    reason="transformers < 5 has no hot-swapping",
)

TOKENS = torch.tensor([[1, 2, 3, 4, 5], [5, 6, 7, 8, 9]])
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 4},
    "alike": {"r": 2, "lora_alpha": 4},
    "large": {"r": 8, "lora_alpha": 3},
    "patterned": {"r": 4, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"v_proj": 1}},
    "subset": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]},
}


@pytest.fixture(autouse=True)
def any_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers may ask for a PEFT that is not released yet; its functions work with this one."""
    monkeypatch.setattr(integration, "MIN_PEFT_VERSION", "0.21.0", raising=False)


def llama(kind: type[PreTrainedModel] = LlamaForCausalLM, *, tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    return kind(config).eval()


def write(folder: Path, base: Any, *, seed: int, **config: Any) -> Path:
    """Write an adapter by transformers' own add_adapter and save_pretrained."""
    model = copy.deepcopy(base)
    model.add_adapter(LoraConfig(**{"target_modules": ["q_proj", "v_proj"], **config}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(folder)
    return folder


def loaded(base: Any, folder: Path, **options: Any) -> Any:
    model = copy.deepcopy(base)
    model.load_adapter(str(folder), **options)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS).logits


@pytest.fixture
def base() -> Any:
    return llama()


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    return {
        name: write(tmp_path / name, base, seed=seed, **config)
        for seed, (name, config) in enumerate(CONFIGS.items())
    }


def test_every_swap_equals_a_fresh_load_and_none_is_the_base_model(base: Any, fleet: Any) -> None:
    model = loaded(base, fleet["small"])
    hotswap.prepare(model, target_rank=8)
    for name in ("large", "patterned", "subset", "small"):
        hotswap.swap(model, fleet[name])
        torch.testing.assert_close(logits(model), logits(loaded(base, fleet[name])))
        assert not torch.allclose(logits(model), logits(base))
    hotswap.swap(model, None)
    assert torch.equal(logits(model), logits(base))


def test_a_compiled_model_does_not_recompile(base: Any, fleet: Any) -> None:
    model = loaded(base, fleet["small"])
    hotswap.prepare(model, target_rank=8)
    compiled = torch.compile(model, backend="eager")
    logits(compiled)
    with hotswap.forbid_recompiles():
        for name in ("large", "subset", "small"):
            hotswap.swap(compiled, fleet[name])
            torch.testing.assert_close(logits(compiled), logits(loaded(base, fleet[name])))
        hotswap.set_scale(compiled, 0.5)
        half = logits(compiled)
    hotswap.set_scale(model, 1.0)
    assert not torch.allclose(half, logits(model))


def test_an_adapter_of_add_adapter_is_prepared_and_swapped(base: Any, fleet: Any) -> None:
    model = copy.deepcopy(base)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), adapter_name="mine")
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, fleet["large"])
    assert hotswap.active(model, adapter_name="mine") == str(fleet["large"])
    torch.testing.assert_close(logits(model), logits(loaded(base, fleet["large"])))


@pytest.mark.parametrize("swapped", [False, True])
def test_what_save_pretrained_writes_loads_equal(
    base: Any, fleet: Any, tmp_path: Path, swapped: bool
) -> None:
    model = loaded(base, fleet["small"])
    hotswap.prepare(model, target_rank=8)
    if swapped:
        hotswap.swap(model, fleet["patterned"])
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded(base, tmp_path / "saved")), logits(model))


def test_tied_embeddings_are_swapped(tmp_path: Path) -> None:
    base = llama(tied=True)
    fleet = [
        write(tmp_path / str(r), base, seed=r, r=r, target_modules=["embed_tokens", "q_proj"])
        for r in (2, 4)
    ]
    model = copy.deepcopy(base)  # load_adapter would untie them
    model.add_adapter(LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]))
    model.eval()
    assert model.lm_head.weight is base_embedding(model)
    hotswap.prepare(model, target_rank=4)
    for folder in fleet:
        hotswap.swap(model, folder)
        assert model.lm_head.weight is base_embedding(model)
        torch.testing.assert_close(logits(model), logits(loaded(base, folder)))
        assert not torch.allclose(logits(model), logits(base))


def base_embedding(model: Any) -> nn.Parameter:
    weight: nn.Parameter = model.model.embed_tokens.base_layer.weight
    return weight


def test_heads_of_sequence_classification_are_swapped(tmp_path: Path) -> None:
    base = llama(LlamaForSequenceClassification)
    fleet = [
        write(tmp_path / str(r), base, seed=r, r=r, task_type="SEQ_CLS", modules_to_save=["score"])
        for r in (2, 4)
    ]
    model = loaded(base, fleet[0])
    hotswap.prepare(model, target_rank=4)
    for folder in (fleet[1], fleet[0]):
        hotswap.swap(model, folder)
        torch.testing.assert_close(logits(model), logits(loaded(base, folder)))
    hotswap.swap(model, None)
    assert torch.equal(logits(model), logits(base))


@needs_hotswap
@pytest.mark.parametrize("enabled", [False, True])
def test_transformers_own_hot_swapping_runs_on_the_engine(
    base: Any, fleet: Any, enabled: bool
) -> None:
    model = copy.deepcopy(base)
    with hotswap.patch_peft():
        if enabled:
            model.enable_peft_hotswap(target_rank=8)
        model.load_adapter(str(fleet["small"]), adapter_name="default")
        assert lora_layers(model)["model.layers.0.self_attn.q_proj"].lora_A["default"].weight.shape[
            0
        ] == (8 if enabled else 2)
        for name in ("large", "patterned", "subset", "small"):
            options = {} if enabled else {"hotswap": True}
            info = model.load_adapter(str(fleet[name]), adapter_name="default", **options)
            assert info.missing_keys == info.unexpected_keys == set()
            torch.testing.assert_close(logits(model), logits(loaded(base, fleet[name])))


@needs_hotswap
def test_transformers_own_hot_swapping_does_not_recompile(base: Any, fleet: Any) -> None:
    model = copy.deepcopy(base)
    with hotswap.patch_peft():
        model.enable_peft_hotswap(target_rank=8)
        model.load_adapter(str(fleet["small"]))
        compiled = torch.compile(model, backend="eager")
        logits(compiled)
        with hotswap.forbid_recompiles():
            for name in ("large", "subset", "small"):
                compiled.load_adapter(str(fleet[name]), hotswap=True)  # noqa: HSW207  patched
                torch.testing.assert_close(logits(compiled), logits(loaded(base, fleet[name])))


@needs_hotswap
def test_transformers_own_hot_swapping_takes_a_state_dict(base: Any, fleet: Any) -> None:
    other = loaded(base, fleet["large"])
    tensors, config = other.get_adapter_state_dict("default"), other.peft_config["default"]
    model = loaded(base, fleet["small"])
    with hotswap.patch_peft():
        model.load_adapter(
            adapter_state_dict=tensors, peft_config=config, adapter_name="default", hotswap=True
        )
    torch.testing.assert_close(logits(model), logits(other))


@needs_hotswap
def test_transformers_errors_keep_their_types(base: Any, fleet: Any) -> None:
    model = copy.deepcopy(base)
    with hotswap.patch_peft():
        with pytest.raises(ValueError, match="no adapter named 'default'"):
            model.load_adapter(str(fleet["small"]), hotswap=True)
        model.enable_peft_hotswap(target_rank=4)
        model.load_adapter(str(fleet["small"]))
        with pytest.raises(RankTooLargeError):
            model.load_adapter(str(fleet["large"]), hotswap=True)
        with pytest.raises(ValueError, match="peft_model_id"):
            model.load_adapter(hotswap=True)
        with pytest.raises(AdapterError):
            model.load_adapter(str(fleet["small"] / "missing"), hotswap=True)
    torch.testing.assert_close(logits(model), logits(loaded(base, fleet["small"])))


def compile_layers(model: Any) -> Any:
    layers = model.get_base_model().model.layers
    for index in range(len(layers)):
        layers[index] = torch.compile(layers[index], backend="eager")
    return model


def compile_in_place(model: Any) -> Any:
    for layer in model.get_base_model().model.layers:
        layer.compile(backend="eager")
    return model


@pytest.mark.parametrize("compile_parts", [compile_layers, compile_in_place])
def test_compiled_layers_are_swapped(base: Any, fleet: Any, compile_parts: Any) -> None:
    model = PeftModel.from_pretrained(copy.deepcopy(base), fleet["small"]).eval()
    hotswap.prepare(model, target_rank=8)
    compile_parts(model)
    logits(model)
    with hotswap.forbid_recompiles():
        for name in ("large", "subset", "patterned"):
            hotswap.swap(model, fleet[name])
            torch.testing.assert_close(logits(model), logits(loaded(base, fleet[name])))


def test_a_peft_model_over_a_compiled_base_is_swapped(tmp_path: Path) -> None:
    base = micro()
    folders = [write_adapter(tmp_path / str(r), base, seed=r, r=r) for r in (2, 4)]
    config = LoraConfig(r=4, target_modules=["embed", "first", "second", "conv"])
    model = get_peft_model(torch.compile(copy.deepcopy(base), backend="eager"), config).eval()
    with pytest.raises(NotPreparedError):
        hotswap.swap(model, folders[0])
    hotswap.prepare(model, target_rank=4, check_compiled="ignore")
    run(model)
    with hotswap.forbid_recompiles():
        for folder in folders:
            hotswap.swap(model, folder)
            torch.testing.assert_close(run(model), run(fresh(base, folder)))
