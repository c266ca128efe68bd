"""Small models of twelve architectures, and fleets of adapters as their libraries save them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = SMALL | {"intermediate_size": 32, "vocab_size": 64, "max_position_embeddings": 64}
DECODER = TEXT | {"num_key_value_heads": 2}
SEQ2SEQ = {
    "d_model": 16,
    "vocab_size": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
IMAGE = SMALL | {"intermediate_size": 32, "image_size": 16, "patch_size": 8}


def _model(config: str, model: str, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return build


def _llava() -> Any:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**DECODER),
        vision_config=transformers.CLIPVisionConfig(**IMAGE),
        image_token_index=63,
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration(config)


def _wav2vec2() -> Any:
    return transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            **{**SMALL, "intermediate_size": 32, "vocab_size": 32},
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            num_feat_extract_layers=2,
        )
    )


HEADED = {"task_type": "SEQ_CLS"}
ARCHITECTURES: dict[str, tuple[Callable[[], Any], list[str], dict[str, Any]]] = {
    "Llama": (
        _model("LlamaConfig", "LlamaForCausalLM", **DECODER),
        ["q_proj", "v_proj"],
        {"task_type": "CAUSAL_LM"},
    ),
    "BERT, embeddings": (
        _model("BertConfig", "BertModel", **TEXT),
        ["query", "value"],
        {"task_type": "FEATURE_EXTRACTION"},
    ),
    "BERT, classifier": (
        _model("BertConfig", "BertForSequenceClassification", **TEXT),
        ["query", "value"],
        HEADED,
    ),
    "T5": (
        _model(
            "T5Config",
            "T5ForConditionalGeneration",
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            vocab_size=64,
            decoder_start_token_id=0,
        ),
        ["q", "v"],
        {"task_type": "SEQ_2_SEQ_LM"},
    ),
    "BART": (
        _model("BartConfig", "BartForConditionalGeneration", **SEQ2SEQ, **TOKENS),
        ["q_proj", "v_proj"],
        {"task_type": "SEQ_2_SEQ_LM"},
    ),
    "Whisper": (
        _model(
            "WhisperConfig",
            "WhisperForConditionalGeneration",
            **{key: value for key, value in SEQ2SEQ.items() if key != "max_position_embeddings"},
            **TOKENS,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=16,
        ),
        ["q_proj", "v_proj"],
        {},
    ),
    "ViT, classifier": (
        _model("ViTConfig", "ViTForImageClassification", **IMAGE),
        ["q_proj", "v_proj"],
        {"modules_to_save": ["classifier"]},
    ),
    "CLIP": (
        _model(
            "CLIPConfig",
            "CLIPModel",
            text_config=TEXT | {"projection_dim": 16, "eos_token_id": 2},
            vision_config=IMAGE | {"projection_dim": 16},
            projection_dim=16,
        ),
        ["q_proj", "v_proj"],
        {},
    ),
    "DINOv2": (
        _model("Dinov2Config", "Dinov2Model", **IMAGE),
        ["q_proj", "v_proj"],
        {},
    ),
    "wav2vec 2.0": (_wav2vec2, ["q_proj", "v_proj"], {}),
    "LLaVA": (_llava, ["q_proj", "v_proj"], {}),
}
PIPELINE = "Stable Diffusion"
RANKS = {"a": 2, "b": 4, "c": 3}
DAMAGES = ("none", "one NaN", "one rank too large", "one half pair")


def write_fleet(name: str, folder: Path) -> tuple[Path, list[Path]]:
    """Write the base model and three adapters as their libraries save them."""
    base = folder / "base"
    if name == PIPELINE:
        return base, _write_pipeline(base, folder)
    build, targets, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    build().save_pretrained(base)
    adapters = []
    for number, (adapter, rank) in enumerate(RANKS.items()):
        config = LoraConfig(r=rank, lora_alpha=2 * rank + 1, target_modules=targets, **options)
        torch.manual_seed(0)
        adapted = get_peft_model(build(), config)
        torch.manual_seed(number + 1)
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_" in key or "modules_to_save" in key:
                    weight.copy_(torch.randn_like(weight) * 0.2)
        adapters.append(folder / "adapters" / adapter)
        adapted.save_pretrained(str(adapters[-1]))
    return base, adapters


def _write_pipeline(base: Path, folder: Path) -> list[Path]:
    from tests.support.pipelines import stable_diffusion, write_pipeline_adapter

    stable_diffusion(folder).save_pretrained(base)
    for number, (adapter, rank) in enumerate(RANKS.items()):
        write_pipeline_adapter(
            folder / "adapters" / adapter,
            stable_diffusion(folder),
            seed=number + 1,
            parts=("unet",),
            r=rank,
            lora_alpha=2 * rank + 1,
        )
    return [folder / "adapters" / adapter for adapter in RANKS]


def damage(adapter: Path, how: str) -> None:
    """Damage an adapter's weights in place."""
    (file,) = adapter.glob("*.safetensors")
    tensors = load_file(file)
    names = [name for name in tensors if "lora" in name]
    a = next(name for name in names if "lora_A" in name)
    b = a.replace("lora_A", "lora_B")
    if how == "one NaN":
        tensors[a][0, 0] = float("nan")
    elif how == "one half pair":
        del tensors[b]
    elif how == "one rank too large":
        for key in names:
            axis = 0 if "lora_A" in key else 1
            tensors[key] = torch.cat([tensors[key]] * 4, axis)
    save_file(tensors, file, metadata={"format": "pt"})
    config = adapter / "adapter_config.json"
    if how == "one rank too large" and config.exists():
        text = config.read_text()
        rank = int(re.search(r'"r": (\d+)', text)[1])  # type: ignore[index]
        config.write_text(text.replace(f'"r": {rank}', f'"r": {4 * rank}'))
