"""Micro pipelines of diffusers, built from configs, and adapters written by their own save_lora_weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TARGETS = {
    "unet": ["to_q", "to_v", "conv1"],
    "transformer": ["to_q", "to_k", "proj_mlp"],
    "text_encoder": ["q_proj", "fc1"],
}


def tokenizer(folder: Path) -> CLIPTokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=52,
            eos_token_id=53,
            projection_dim=16,
        )
    )


def stable_diffusion(folder: Path) -> StableDiffusionPipeline:
    """A pipeline of a UNet and a text encoder; always the same weights."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder / "tokenizer"),
        unet=UNet2DConditionModel(
            block_out_channels=(4, 8),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=2,
        ),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux(folder: Path) -> FluxPipeline:
    """A pipeline of a Flux transformer and a CLIP text encoder (the T5 encoder is left out)."""
    torch.manual_seed(0)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder / "tokenizer"),
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
        ),
    )


def write_pipeline_adapter(
    folder: Path,
    pipeline: Any,
    *,
    seed: int,
    parts: tuple[str, ...],
    metadata: bool = True,
    **config: Any,
) -> Path:
    """Write an adapter with random weights; the pipeline is left with its LoRA layers."""
    generator = torch.Generator().manual_seed(seed)
    arguments: dict[str, Any] = {}
    for part in parts:
        model = getattr(pipeline, part)
        options = {"target_modules": TARGETS[part], **config}
        from peft import inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(**options), model, "default")
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        arguments[f"{part}_lora_layers"] = get_peft_model_state_dict(model, adapter_name="default")
        if metadata:
            arguments[f"{part}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    type(pipeline).save_lora_weights(folder, **arguments)
    return folder


@torch.no_grad()
def outputs(pipeline: Any) -> list[torch.Tensor]:
    """What the text encoder and the denoiser of a pipeline compute for fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.tensor([[52, 1, 5, 9, 30, 27, 53, 53]])
    encoded = pipeline.text_encoder(tokens)
    hidden, pooled = encoded.last_hidden_state, encoded.pooler_output
    if hasattr(pipeline, "unet"):
        sample = torch.randn(1, 4, 8, 8, generator=generator)
        denoised = pipeline.unet(sample, torch.tensor([10]), hidden).sample
    else:
        denoised = pipeline.transformer(
            hidden_states=torch.randn(1, 16, 4, generator=generator),
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            timestep=torch.tensor([1.0]),
            img_ids=torch.randn(16, 3, generator=generator),
            txt_ids=torch.zeros(8, 3),
        ).sample
    return [hidden, denoised]
