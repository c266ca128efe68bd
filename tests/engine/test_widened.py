"""Bases with a wider input (Flux Fill, Control): adapters of the plain model get columns of zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.cli.fleet import read_fleet
from hotswap.errors import AdapterError
from tests.support.pipelines import flux, stable_diffusion

pytestmark = pytest.mark.filterwarnings("ignore")
UNET = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def fill(folder: Path) -> Any:
    pipeline = flux(folder)
    torch.manual_seed(0)
    fields = {**dict(pipeline.transformer.config), "in_channels": 8, "out_channels": 4}
    pipeline.transformer = FluxTransformer2DModel.from_config(fields).eval()
    return pipeline


def write(file: Path, seed: int, rank: int, *, width: int = 4) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, into in (("x_embedder", width), ("transformer_blocks.0.attn.to_q", 32)):
        for part, shape in (("A", (rank, into)), ("B", (32, rank))):
            value = torch.randn(shape, generator=generator) * 0.3
            tensors[f"transformer.{name}.lora_{part}.weight"] = value
    save_file(tensors, file)
    return file


@torch.no_grad()
def run(pipeline: Any) -> torch.Tensor:
    generator, model = torch.Generator().manual_seed(3), pipeline.transformer
    return model(
        hidden_states=torch.randn(1, 16, model.x_embedder.in_features, generator=generator),
        encoder_hidden_states=torch.randn(1, 8, 16, generator=generator),
        pooled_projections=torch.randn(1, 16, generator=generator),
        timestep=torch.tensor([1.0]),
        img_ids=torch.zeros(16, 3),
        txt_ids=torch.zeros(8, 3),
    ).sample


def fresh(folder: Path, file: Path) -> Any:
    pipeline = fill(folder)
    pipeline.load_lora_weights(str(file))
    return pipeline


def test_adapters_for_a_narrower_input_are_widened_as_diffusers_does(tmp_path: Path) -> None:
    narrow = write(tmp_path / "a.safetensors", 1, 4)
    other = write(tmp_path / "b.safetensors", 2, 2)
    wide = write(tmp_path / "c.safetensors", 3, 2, width=8)
    pipeline = fresh(tmp_path, narrow)
    hotswap.prepare(pipeline, target_rank=4)
    bank = hotswap.AdapterBank(pipeline)
    bank.add("a", narrow)
    for adapter in (other, wide, load_file(other), narrow):
        hotswap.swap(pipeline, adapter)
        expected = fresh(tmp_path, adapter if isinstance(adapter, Path) else other)
        torch.testing.assert_close(run(pipeline), run(expected))
    with bank.using("a"):
        torch.testing.assert_close(run(pipeline), run(fresh(tmp_path, narrow)))
    for files in ([narrow, other], [narrow, wide, other]):
        plan = hotswap.plan(files)
        assert plan.conflicts == ()
        assert read_fleet([str(file) for file in files]).refused == {}
        assert hotswap.check_adapters(files, plan=plan) == []
        loaded = hotswap.load(fill(tmp_path), plan, other)
        torch.testing.assert_close(run(loaded), run(fresh(tmp_path, other)))
    narrow_plan = hotswap.plan([narrow, other])
    assert [f.code for f in hotswap.check_adapters(wide, plan=narrow_plan)] == ["HSW107"]


def test_the_base_of_a_wider_input_takes_them(tmp_path: Path) -> None:
    narrow = write(tmp_path / "a.safetensors", 1, 4)
    wider = write(tmp_path / "b.safetensors", 1, 4, width=9)
    fill(tmp_path).save_pretrained(tmp_path / "fill")
    for base in (tmp_path / "fill", tmp_path / "fill" / "transformer"):
        assert hotswap.check_adapters(narrow, base=base) == []
        (found,) = hotswap.check_adapters(wider, base=base)
        assert found.code == "HSW107"


def test_other_pipelines_do_not_widen(tmp_path: Path) -> None:
    def file(name: str, width: int) -> Path:
        tensors = {
            f"{UNET}.lora_A.weight": torch.ones(2, width),
            f"{UNET}.lora_B.weight": torch.ones(8, 2),
        }
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    pipeline = stable_diffusion(tmp_path)
    pipeline.load_lora_weights(str(file("a.safetensors", 8)))
    hotswap.prepare(pipeline, target_rank=4)
    with pytest.raises(AdapterError, match="in_features 4"):
        hotswap.swap(pipeline, file("b.safetensors", 4))
