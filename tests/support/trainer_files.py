"""Adapter files for pipelines in the names of trainers, for micro pipelines; one row a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from tests.support.pipelines import flux, stable_diffusion

Tensors = dict[str, torch.Tensor]


def wan(folder: Path) -> WanPipeline:
    """A pipeline of a Wan transformer alone; always the same weights."""
    del folder
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
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
    return WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=UniPCMultistepScheduler(),
        transformer=transformer,
    )


@dataclass(frozen=True)
class TrainerFormat:
    """How files are named: places (in, out), those of the text encoder, and the ends of a pair's names."""

    pipeline: Callable[[Path], Any]
    places: dict[str, tuple[int, int]]
    ends: tuple[str, str] = ("lora_A.weight", "lora_B.weight")
    text: tuple[str, ...] = ()
    text_ends: tuple[str, str] | None = None
    alpha: bool = True
    dora: str = ""

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
            if dora and self.dora:
                size = (out, 1) if self.dora == "dora_scale" else (out,)
                found[f"{place}.{self.dora}"] = torch.rand(size, generator=generator) + 0.5
        return found


UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model.encoder.layers.0.self_attn"
_SD = {f"{UNET}.{part}": (8, 8) for part in ("to_q", "to_out.0")}
_FLUX = "transformer_blocks.0.attn"
KOHYA = ("lora_down.weight", "lora_up.weight")


def _flat(start: str, places: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {f"{start}_{place.replace('.', '_')}": sizes for place, sizes in places.items()}


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
}
