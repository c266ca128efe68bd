"""Adapter files for pipelines in the names of trainers, for micro pipelines; one row a format."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tests.support.pipelines import flux, stable_diffusion

Tensors = dict[str, torch.Tensor]


Make = Callable[[Path], Any]


def denoiser(pipeline: Any, model: Any, **sizes: Any) -> Make:
    """Makes a pipeline of one transformer alone; always of the same weights."""

    def make(folder: Path) -> Any:
        del folder
        torch.manual_seed(0)
        asked = inspect.signature(pipeline.__init__).parameters.values()
        others = [each.name for each in asked if each.default is each.empty and each.name != "self"]
        return pipeline(**{**dict.fromkeys(others), "transformer": model(**sizes)})

    return make


wan = denoiser(
    WanPipeline,
    WanTransformer3DModel,
    patch_size=(1, 2, 2),
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    freq_dim=16,
    ffn_dim=32,
    num_layers=2,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    rope_max_seq_len=32,
)
ltx = denoiser(
    LTXPipeline,
    LTXVideoTransformer3DModel,
    in_channels=8,
    out_channels=8,
    num_attention_heads=2,
    attention_head_dim=8,
    cross_attention_dim=16,
    num_layers=1,
    caption_channels=16,
)
qwen_image = denoiser(
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    in_channels=16,
    out_channels=4,
    num_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=16,
    axes_dims_rope=(8, 4, 4),
)
z_image = denoiser(
    ZImagePipeline,
    ZImageTransformer2DModel,
    in_channels=4,
    dim=32,
    n_layers=1,
    n_refiner_layers=1,
    n_heads=2,
    n_kv_heads=2,
    cap_feat_dim=16,
    axes_dims=[8, 4, 4],
)
hunyuan_video = denoiser(
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=10,
    num_layers=1,
    num_single_layers=1,
    num_refiner_layers=1,
    text_embed_dim=16,
    pooled_projection_dim=8,
    rope_axes_dim=(2, 4, 4),
)
flux2 = denoiser(
    Flux2Pipeline,
    Flux2Transformer2DModel,
    in_channels=4,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=16,
    timestep_guidance_channels=32,
    axes_dims_rope=(4, 4, 4, 4),
)


@dataclass(frozen=True)
class TrainerFormat:
    """How files are named: places (in, out), those of the text encoder, and the ends of a pair's names."""

    pipeline: Make
    places: dict[str, tuple[int, int]]
    ends: tuple[str, str] = ("lora_A.weight", "lora_B.weight")
    text: tuple[str, ...] = ()
    text_ends: tuple[str, str] | None = None
    alpha: bool = True
    dora: str = ""
    bias: str = ""

    def tensors(
        self, *, rank: int, alpha: float | None, seed: int, text: bool = False, dora: bool = False
    ) -> Tensors:
        """Random weights; an alpha, a magnitude and a text encoder only where the format has these."""
        generator, found = torch.Generator().manual_seed(seed), {}
        texts = dict.fromkeys(self.text if text else (), (16, 16))
        for place, (into, out) in {**self.places, **texts}.items():
            down, up = (self.text_ends or self.ends) if place in texts else self.ends
            found[f"{place}.{down}"] = torch.randn(rank, into, generator=generator) * 0.3
            found[f"{place}.{up}"] = torch.randn(out, rank, generator=generator) * 0.3
            if alpha is not None and self.alpha:
                found[f"{place}.alpha"] = torch.tensor(alpha)
            if self.bias:
                found[f"{place}.{self.bias}"] = torch.randn(out, generator=generator)
            if dora and self.dora:
                size = (out, 1) if self.dora == "dora_scale" else (out,)
                end = (
                    ".weight" if place.startswith("text_encoder") else ""
                )  # as transformers finds it
                found[f"{place}.{self.dora}{end}"] = torch.rand(size, generator=generator) + 0.5
        return found


UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model.encoder.layers.0.self_attn"
_SD = {f"{UNET}.{part}": (8, 8) for part in ("to_q", "to_out.0")}
_FLUX = "transformer_blocks.0.attn"
KOHYA = ("lora_down.weight", "lora_up.weight")


def _flat(start: str, places: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {f"{start}.{place}".replace(".", "_"): sizes for place, sizes in places.items()}


def _below(start: str, places: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {f"{start}.{place}": sizes for place, sizes in places.items()}


_WAN = {
    "blocks.0.self_attn.q": (24, 24),
    "blocks.1.cross_attn.o": (24, 24),
    "blocks.0.ffn.0": (24, 32),
}
_WHOLE_WAN = {
    f"blocks.{block}.{place}": sizes
    for block in range(2)
    for place, sizes in (
        *((f"{kind}_attn.{part}", (24, 24)) for kind in ("self", "cross") for part in "qkvo"),
        ("ffn.0", (24, 32)),
        ("ffn.2", (32, 24)),
    )
}
"""diffusers' converter for musubi wants every module, and an alpha of each."""
_BLOCK = "transformer_blocks.0"
_QWEN = {
    f"{_BLOCK}.attn.to_q": (32, 32),
    f"{_BLOCK}.attn.add_k_proj": (32, 32),
    f"{_BLOCK}.img_mlp.net.0.proj": (32, 128),
}
_FLUX2 = {
    "double_blocks.0.img_attn.qkv": (32, 96),
    "double_blocks.0.txt_mlp.0": (32, 192),
    "single_blocks.0.linear1": (32, 288),
}
FORMATS: dict[str, TrainerFormat] = {
    "diffusers": TrainerFormat(
        stable_diffusion,
        _below("unet", _SD),
        text=(f"text_encoder.{TEXT}.q_proj",),
        alpha=False,
        dora="lora_magnitude_vector",
    ),
    "older diffusers": TrainerFormat(
        stable_diffusion,
        _below("unet", _SD),
        ends=("lora.down.weight", "lora.up.weight"),
        text=(f"text_encoder.{TEXT}.v_proj",),
        text_ends=("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        alpha=False,
    ),
    "oldest diffusers (processor)": TrainerFormat(
        stable_diffusion,
        {f"unet.{UNET}.processor.to_{part}_lora": (8, 8) for part in "qkv"},
        ends=("down.weight", "up.weight"),
        alpha=False,
    ),
    "kohya (sd-scripts)": TrainerFormat(
        stable_diffusion,
        _flat("lora_unet", _SD),
        ends=KOHYA,
        text=tuple(f"lora_te_{TEXT.replace('.', '_')}_{part}_proj" for part in ("q", "out")),
        dora="dora_scale",
    ),
    "Flux, diffusers with alpha (ai-toolkit)": TrainerFormat(
        flux, {f"transformer.{_FLUX}.to_q": (32, 32), f"transformer.{_FLUX}.add_k_proj": (32, 32)}
    ),
    "Flux, XLabs": TrainerFormat(
        flux,
        {
            "double_blocks.0.processor.proj_lora1": (32, 32),
            "double_blocks.0.processor.qkv_lora2": (32, 96),
        },
        ends=("down.weight", "up.weight"),
        alpha=False,
    ),
    "Flux, original names (ComfyUI)": TrainerFormat(
        flux,
        {
            "diffusion_model.double_blocks.0.img_attn.qkv": (32, 96),
            "diffusion_model.double_blocks.0.img_attn.proj": (32, 32),
            "diffusion_model.single_blocks.0.linear2": (160, 32),
        },
        ends=KOHYA,
    ),
    "Flux, kohya": TrainerFormat(
        flux,
        {
            "lora_unet_double_blocks_0_img_attn_proj": (32, 32),
            "lora_unet_double_blocks_0_txt_attn_qkv": (32, 96),
        },
        ends=KOHYA,
        dora="dora_scale",
    ),
    "Wan, original names (ComfyUI)": TrainerFormat(
        wan, _below("diffusion_model", _WAN), ends=KOHYA
    ),
    "Wan, original names with lora_A": TrainerFormat(wan, _below("diffusion_model", _WAN)),
    "Wan, musubi": TrainerFormat(wan, _flat("lora_unet", _WHOLE_WAN), ends=KOHYA),
    "Wan, diffusers": TrainerFormat(
        wan,
        {"transformer.blocks.0.attn1.to_q": (24, 24), "transformer.blocks.1.ffn.net.2": (32, 24)},
        alpha=False,
    ),
    "Wan with biases (lightx2v)": TrainerFormat(
        wan, _below("diffusion_model", _WAN), ends=KOHYA, bias="diff_b"
    ),
    "LTX, original names (ComfyUI)": TrainerFormat(
        ltx,
        _below(f"diffusion_model.{_BLOCK}", {"attn1.to_q": (16, 16), "ff.net.0.proj": (16, 64)}),
        alpha=False,
    ),
    "Qwen-Image, original names (ComfyUI)": TrainerFormat(
        qwen_image, _below("diffusion_model", _QWEN)
    ),
    "Qwen-Image, lightning": TrainerFormat(qwen_image, _QWEN, ends=KOHYA),
    "Qwen-Image, musubi": TrainerFormat(qwen_image, _flat("lora_unet", _QWEN), ends=KOHYA),
    "Z-Image, original names (ComfyUI)": TrainerFormat(
        z_image,
        _below(
            "diffusion_model",
            {"layers.0.attention.to_q": (32, 32), "noise_refiner.0.feed_forward.w1": (32, 85)},
        ),
    ),
    "Z-Image, kohya, fused": TrainerFormat(
        z_image,
        _flat("lora_unet.layers.0.attention", {"qkv": (32, 96), "out": (32, 32)}),
        ends=KOHYA,
    ),
    "Hunyuan, original names with fused qkv": TrainerFormat(
        hunyuan_video,
        _below(
            "diffusion_model.double_blocks.0",
            {"img_attn_qkv": (20, 60), "txt_attn_proj": (20, 20), "img_mlp.fc1": (20, 80)},
        ),
        alpha=False,
    ),
    "Flux2, original names (ComfyUI)": TrainerFormat(
        flux2, _below("diffusion_model", _FLUX2), alpha=False
    ),
    "Flux2, kohya": TrainerFormat(flux2, _flat("lora_unet", _FLUX2), ends=KOHYA),
}
