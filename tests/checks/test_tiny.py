"""Small copies of models, from their config alone, and adapters cut to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from hotswap import AdapterSpec
from hotswap.adapters.planner import plan
from hotswap.checks.base_model import describe
from hotswap.checks.equivalence import compare
from hotswap.checks.inputs import default_inputs
from hotswap.checks.recut import recut, recut_plan
from hotswap.checks.tiny import first_layer, layers_needed, shrink, write_tiny
from hotswap.errors import HotswapError
from tests.support.architectures import ARCHITECTURES
from tests.support.models import seeded

WIDE = {
    "hidden_size": 144,
    "d_model": 144,
    "intermediate_size": 200,
    "d_ff": 200,
    "encoder_ffn_dim": 200,
    "decoder_ffn_dim": 200,
    "d_kv": 24,
    "num_hidden_layers": 5,
    "num_layers": 5,
    "encoder_layers": 5,
    "decoder_layers": 5,
    "num_attention_heads": 6,
    "num_heads": 6,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "num_key_value_heads": 3,
    "projection_dim": 96,
    "image_size": 64,
    "max_source_positions": 100,
}
"""What they have in the large: three heads of keys for six, widths that 64 does not divide."""


def widened(config: Any) -> Any:
    """A config in the large."""
    found = type(config).from_dict(_wide(config.to_dict()))
    found.architectures = config.architectures
    return found


def _wide(fields: dict[str, Any]) -> dict[str, Any]:
    found = {key: WIDE.get(key, value) for key, value in fields.items()}
    if "num_conv_pos_embedding_groups" in found:
        found["num_conv_pos_embedding_groups"] = 16
    found = {k: v for k, v in found.items() if k not in ("head_dim", "stage_names", "out_features")}
    found = {k: v for k, v in found.items() if k not in ("layer_types", "out_indices")}
    return {
        k: _wide(v) if isinstance(v, dict) and k.endswith("_config") else v
        for k, v in found.items()
    }


def write_large(name: str, folder: Path) -> Path:
    """Write a config without weights, and an adapter as PEFT saves it."""
    build, targets, options = ARCHITECTURES[name]
    small = build()
    large = seeded(lambda: type(small)(widened(small.config)))
    large.config.architectures = [type(large).__name__]
    large.config.save_pretrained(folder / "base")
    config = LoraConfig(r=6, lora_alpha=9, target_modules=targets, **options)
    adapted = get_peft_model(large, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in adapted.named_parameters():
            if "lora_" in key:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1e-3)
    adapted.save_pretrained(str(folder / "a"))
    return folder / "a"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_of_any_architecture_is_cut_with_its_adapters(name: str, tmp_path: Path) -> None:
    adapter = write_large(name, tmp_path)
    assert not list((tmp_path / "base").glob("*.safetensors"))
    model, told = write_tiny(str(tmp_path / "base"), tmp_path / "small", {"a": 0})
    assert told.startswith(f"{type(model).__name__}, ")
    assert max(max(p.shape) for p in model.parameters() if p.ndim > 1) <= 1500
    recut(str(adapter), describe(model, "small"), tmp_path / "cut" / "a")
    spec, whole = AdapterSpec.read(tmp_path / "cut" / "a"), AdapterSpec.read(adapter)
    assert spec.findings == ()
    assert spec.modules.keys() < whole.modules.keys()
    assert {(m.rank, m.alpha) for m in spec.modules.values()} == {(6, 9)}
    reloaded = type(model).from_pretrained(tmp_path / "small").eval()
    inputs = default_inputs(reloaded)
    with torch.no_grad():
        bare = reloaded(**inputs)
        adapted = PeftModel.from_pretrained(reloaded, str(tmp_path / "cut" / "a")).eval()
        found = compare(adapted(**inputs), bare)
    assert not found.equal, "the cut adapter does not show"
    assert found.max_error < 1e3


def test_sizes_that_divide_others_still_do() -> None:
    config = transformers.Qwen2VLConfig(
        text_config={
            "hidden_size": 1536,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        }
    )
    found = shrink(config.to_dict(), 2)["text_config"]
    assert (found["hidden_size"], found["num_attention_heads"]) == (64, 4)
    assert found["num_key_value_heads"] == 2
    rope = found.get("rope_parameters") or found["rope_scaling"]
    assert sum(rope["mrope_section"]) == 8


def test_every_kind_of_layer_is_kept() -> None:
    kinds = {"num_hidden_layers": 12, "layer_types": [*["sliding"] * 5, "full"] * 2}
    assert layers_needed(kinds, {"a": 0}) == 6
    assert shrink(kinds, 6)["layer_types"] == [*["sliding"] * 5, "full"]
    assert layers_needed({}, {"a": 0, "b": 3}) == 4
    with pytest.raises(HotswapError, match="b has weights from layer 40 on only; verify the model"):
        layers_needed({}, {"a": 0, "b": 40})
    assert first_layer(["model.layers.41.mlp", "model.layers.40.q_proj"]) == 40
    assert first_layer(["lm_head", "model.layers.40.q_proj"]) == 0


def test_a_config_that_is_not_cut_is_one_sentence(tmp_path: Path) -> None:
    config = ARCHITECTURES["Llama"][0]().config
    config.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields |= {"architectures": ["LlamaForCausalLM"], "hidden_act": "no such function"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        HotswapError, match=r"--tiny: LlamaForCausalLM is not cut .*no such function"
    ):
        write_tiny(str(tmp_path), tmp_path / "small", {"a": 0})


def test_experts_heads_rows_and_the_plan_are_cut_too(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": 64}
    sizes |= {"num_attention_heads": 6, "num_key_value_heads": 2, "num_local_experts": 8}
    large = seeded(lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)))
    large.config.architectures = ["MixtralForCausalLM"]
    large.config.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=3,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        modules_to_save=["lm_head"],
        trainable_token_indices={"embed_tokens": [3, 5]},
        use_rslora=True,
    )
    get_peft_model(large, config).save_pretrained(str(tmp_path / "a"))
    model, _ = write_tiny(str(tmp_path / "base"), tmp_path / "small", {"a": 0})
    small = describe(model, "small")
    recut(str(tmp_path / "a"), small, tmp_path / "cut")
    PeftModel.from_pretrained(model, str(tmp_path / "cut"))
    cut = recut_plan(plan([tmp_path / "a"]), small)
    own = plan([tmp_path / "cut"])
    assert (cut.modules, cut.saved, cut.tokens) == (own.modules, own.saved, own.tokens)
    assert {m.experts for m in cut.modules.values()} == {1, 4}
