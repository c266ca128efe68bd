"""Adapters that were trained with the module names of transformers 4 are swapped as PEFT loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

pytest.importorskip("peft.utils.transformers_weight_conversion")

from peft.utils import hotswap as peft_hotswap
from safetensors.torch import save_file

import hotswap
from hotswap.adapters.inspect import Inspector
from hotswap.adapters.spec import AdapterSpec
from hotswap.checks.base_model import read_base
from tests.support.adapter_files import write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.arange(12).reshape(1, 12)
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def mixtral() -> Any:
    torch.manual_seed(0)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **experts)).eval()


def llava() -> Any:
    torch.manual_seed(0)
    eyes = {key: SIZES[key] for key in SIZES if "key" not in key and key != "vocab_size"}
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SIZES),
        vision_config=transformers.CLIPVisionConfig(**eyes, image_size=8, patch_size=4),
        image_token_index=40,
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


EXPERT = "model.layers.{0}.block_sparse_moe.experts"
OLD: dict[str, tuple[Callable[[], Any], dict[str, tuple[int, int]]]] = {
    "experts": (
        mixtral,
        {
            f"{EXPERT.format(layer)}.{expert}.{name}": sizes
            for layer in range(2)
            for expert in range(4)
            for name, sizes in {"w1": (16, 24), "w3": (16, 24), "w2": (24, 16)}.items()
        }
        | {f"model.layers.{layer}.self_attn.q_proj": (16, 16) for layer in range(2)},
    ),
    "renamed modules": (
        llava,
        {f"language_model.model.layers.{n}.self_attn.o_proj": (16, 16) for n in range(2)},
    ),
}


def write(folder: Path, modules: dict[str, tuple[int, int]], rank: int, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    write_adapter(folder, modules=modules, rank=rank, alpha=8)
    tensors = {}
    for name, (into, out) in modules.items():
        for part, shape in (("A", (rank, into)), ("B", (out, rank))):
            value = torch.randn(shape, generator=generator) * 0.3
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = value
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@torch.no_grad()
def run(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("name", OLD)
def test_old_names_are_prepared_loaded_swapped_and_checked(name: str, tmp_path: Path) -> None:
    make, modules = OLD[name]
    a = write(tmp_path / "a", modules, 4, 1)
    b = write(tmp_path / "b", modules, 2, 2)
    expected = run(PeftModel.from_pretrained(make(), b).eval())
    assert not torch.allclose(expected, run(make()), atol=1e-3)
    model = PeftModel.from_pretrained(make(), a).eval()
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, b)
    torch.testing.assert_close(run(model), expected)
    bank = hotswap.AdapterBank(model)
    bank.add("a", a)
    with bank.using("a"):
        torch.testing.assert_close(run(model), run(PeftModel.from_pretrained(make(), a).eval()))
    loaded = hotswap.load(make(), hotswap.plan([a, b]), a)
    hotswap.swap(loaded, b)
    torch.testing.assert_close(run(loaded), expected)
    make().save_pretrained(tmp_path / "base")
    base = read_base(tmp_path / "base")
    assert Inspector(base=base)(str(a)).findings == ()
    other = write(tmp_path / "other", {"model.layers.0.self_attn.x_proj": (16, 16)}, 2, 3)
    assert {found.code for found in Inspector(base=base)(str(other)).findings} == {"HSW112"}
    with pytest.raises(hotswap.errors.AdapterError, match="x_proj"):
        hotswap.swap(loaded, other)
    torch.testing.assert_close(run(loaded), expected)


def test_experts_of_a_model_whose_config_peft_does_not_convert_are_refused(tmp_path: Path) -> None:
    """PEFT loads such an adapter without its experts; neither check nor swap takes a part for the whole."""
    torch.manual_seed(0)
    sizes = {**SIZES, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
    config = transformers.Qwen2MoeConfig(**sizes, **experts)
    model, expert = transformers.Qwen2MoeForCausalLM(config).eval(), "model.layers.0.mlp.experts.{}"
    config.save_pretrained(tmp_path / "base")
    attention = {f"model.layers.{layer}.self_attn.q_proj": (16, 16) for layer in range(2)}
    names = {"gate_proj": (16, 24), "up_proj": (16, 24), "down_proj": (24, 16)}
    modules = attention | {
        f"{expert.format(number)}.{name}": size
        for number in range(4)
        for name, size in names.items()
    }
    a, b = write(tmp_path / "a", attention, 4, 1), write(tmp_path / "b", modules, 2, 2)
    loaded = hotswap.load(model, hotswap.plan([a]), a)
    before = run(loaded)
    with pytest.raises(hotswap.errors.AdapterError, match="experts"):
        hotswap.swap(loaded, b)
    assert torch.equal(run(loaded), before)
    base = read_base(tmp_path / "base")
    assert {found.code for found in Inspector(base=base)(str(b)).findings} == {"HSW112"}
    assert Inspector(base=base)(str(a)).findings == ()


@pytest.mark.parametrize("name", OLD)
@pytest.mark.parametrize("prepared", [True, False])
def test_pefts_own_function_takes_old_names(name: str, prepared: bool, tmp_path: Path) -> None:
    make, modules = OLD[name]
    a = write(tmp_path / "a", modules, 4, 1)
    b = write(tmp_path / "b", modules, 2 if prepared else 4, 2)
    model = PeftModel.from_pretrained(make(), a).eval()
    if prepared:
        hotswap.prepare(model, target_rank=8)
    with hotswap.patch_peft():
        peft_hotswap.hotswap_adapter(model, str(b), "default")
    torch.testing.assert_close(run(model), run(PeftModel.from_pretrained(make(), b).eval()))
    other = write(tmp_path / "other", {"model.layers.0.self_attn.x_proj": (16, 16)}, 2, 3)
    with hotswap.patch_peft(), pytest.raises(RuntimeError, match="x_proj"):
        peft_hotswap.hotswap_adapter(model, str(other), "default")


def test_two_parameters_of_one_module_may_have_different_ranks(tmp_path: Path) -> None:
    folders = []
    for seed, rank in ((1, 4), (2, 2)):
        config = LoraConfig(
            r=rank,
            lora_alpha=8,
            task_type="CAUSAL_LM",
            target_modules=["q_proj", "w1", "w2", "w3"],
            init_lora_weights=False,
        )
        torch.manual_seed(seed)
        model = get_peft_model(mixtral(), config)
        model.save_pretrained(tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
    ranks = {m.rank for m in AdapterSpec.read(folders[0]).modules.values()}
    assert ranks == {4, 8}
    expected = run(PeftModel.from_pretrained(mixtral(), folders[1]).eval())
    model = PeftModel.from_pretrained(mixtral(), folders[0]).eval()
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, folders[1])
    torch.testing.assert_close(run(model), expected)
    loaded = hotswap.load(mixtral(), hotswap.plan(folders), folders[0])
    hotswap.swap(loaded, folders[1])
    torch.testing.assert_close(run(loaded), expected)
