"""Small copies of pipelines, from the configs of their components alone, and adapters cut to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hotswap import AdapterSpec, SwapPlan, plan
from hotswap.adapters.fit import fits
from hotswap.checks.tiny_pipeline import shrink_component, write_tiny_pipeline
from hotswap.cli.verify.tiny import write
from hotswap.errors import HotswapError

pytest.importorskip("diffusers")

SDXL_UNET = {
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "norm_num_groups": 32,
}
SD3 = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
}
FLUX = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 4096,
    "axes_dims_rope": [16, 56, 56],
}
T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 24}


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        (
            SDXL_UNET,
            {
                "block_out_channels": [32, 64, 128],
                "attention_head_dim": [1, 1, 2],
                "layers_per_block": 1,
                "transformer_layers_per_block": [1, 1, 1],
            },
        ),
        (
            {"block_out_channels": [128, 512], "norm_num_groups": 32},
            {"block_out_channels": [32, 128]},
        ),
        ({"block_out_channels": [128, 512]}, {"block_out_channels": [32, 128]}),
        (SD3, {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128}),
        (FLUX, {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2}),
        (T5, {"d_ff": 128, "num_heads": 2, "num_layers": 2}),
        (
            {"text_config": {"hidden_size": 3584, "num_hidden_layers": 28}},
            {"text_config": {"hidden_size": 3584, "num_hidden_layers": 2}},
        ),
    ],
)
def test_widths_that_components_hand_on_stay(fields: dict[str, Any], changed: Any) -> None:
    assert shrink_component(fields, 2) == fields | changed


def write_large(folder: Path) -> Path:
    """Configs of a pipeline without weights, as the index of a hub's folder has them, and an adapter."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    from tests.support import pipelines

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(16,), norm_num_groups=2, sample_size=8),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                **sizes,
                vocab_size=64,
                intermediate_size=200,
                max_position_embeddings=8,
                bos_token_id=52,
                eos_token_id=53,
            )
        ),
        tokenizer=pipelines.tokenizer(folder / "words"),
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=48,
            attention_head_dim=4,
            norm_num_groups=4,
            sample_size=8,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "base")
    for file in (folder / "base").rglob("*.safetensors"):
        file.unlink()
    index = folder / "base" / "model_index.json"
    fields = json.loads(index.read_text()) | {"safety_checker": ["elsewhere", "Checker"]}
    index.write_text(json.dumps(fields))
    (folder / "base" / "safety_checker").mkdir()
    (folder / "base" / "safety_checker" / "config.json").write_text("{}")
    parts = ("unet", "text_encoder")
    return pipelines.write_pipeline_adapter(folder / "a", pipeline, seed=1, parts=parts, r=6)


@torch.no_grad()
def test_a_pipeline_is_cut_with_its_adapters(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    adapter = write_large(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    plan([adapter]).save(small / "plan.json")
    write(small, str(tmp_path / "base"), [str(adapter)], [str(adapter)])
    told = (small / "told.txt").read_text()
    assert told.startswith("verified on a small copy of StableDiffusionPipeline, 0.")
    spec, whole = AdapterSpec.read(small / "a"), AdapterSpec.read(adapter)
    assert spec.findings == ()
    assert fits(SwapPlan.read(small / "plan.json"), spec) == ()
    assert spec.modules.keys() < whole.modules.keys()
    assert {name.partition(".")[0] for name in spec.modules} == {"unet", "text_encoder"}
    assert {(m.rank, m.alpha) for m in spec.modules.values()} == {(6, 8)}
    pipeline = DiffusionPipeline.from_pretrained(small / "base")
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 1, "height": 16, "width": 16, "output_type": "latent"}
    images = []
    for _ in range(2):
        noise = torch.Generator().manual_seed(0)
        images.append(pipeline("a", **call, generator=noise, return_dict=False)[0])
        pipeline.load_lora_weights(small / "a")
    assert images[0].isfinite().all()
    assert not torch.allclose(*images, rtol=1e-2)


def test_a_component_that_is_not_cut_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"block_out_channels": [5, 7]}')
    index = {"_class_name": "MyPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        HotswapError, match="--tiny: unet, a UNet2DConditionModel, is not cut by its"
    ):
        write_tiny_pipeline(str(tmp_path), tmp_path / "small", {})
