"""Two denoisers of one pipeline, each with files of its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.errors import AdapterError, RankTooLargeError
from tests.support.models import bits

pytestmark = pytest.mark.filterwarnings("ignore")

HIGH, LOW = "transformer", "transformer_2"


def denoiser() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()


def wan() -> WanPipeline:
    torch.manual_seed(0)
    return WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=UniPCMultistepScheduler(),
        transformer=denoiser(),
        transformer_2=denoiser(),
    )


@torch.no_grad()
def run(pipe: Any) -> list[torch.Tensor]:
    """What each of the two denoisers computes."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, 4, 2, 4, 4, generator=generator)
    text = torch.randn(1, 6, 16, generator=generator)
    return [
        part(hidden_states=hidden, timestep=torch.tensor([3]), encoder_hidden_states=text).sample
        for part in (pipe.transformer, pipe.transformer_2)
    ]


def write(path: Path, rank: int, seed: int) -> Path:
    """A file in the names of the original code, as distilled LoRAs have them."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for place in [f"{kind}.{key}" for kind in ("self_attn", "cross_attn") for key in "qkvo"]:
        key = f"diffusion_model.blocks.0.{place}"
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, 24, generator=generator) * 0.3
        tensors[f"{key}.lora_up.weight"] = torch.randn(24, rank, generator=generator) * 0.3
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wan")
    ranks = {"high": 4, "low": 3, "other": 8}
    return {
        name: write(folder / f"{name}.safetensors", rank, seed)
        for seed, (name, rank) in enumerate(ranks.items())
    }


def fresh(high: Path | None, low: Path | None) -> WanPipeline:
    """What diffusers serves after loading these files."""
    pipe = wan()
    if high is not None:
        pipe.load_lora_weights(str(high), adapter_name="one")
    if low is not None:
        pipe.load_lora_weights(str(low), adapter_name="one", load_into_transformer_2=True)
    return pipe


def same(pipe: Any, high: Path | None, low: Path | None) -> bool:
    want = run(fresh(high, low))
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(run(pipe), want, strict=True))


@pytest.fixture
def pipe(files: dict[str, Path]) -> Any:
    found = fresh(files["high"], files["low"])
    hotswap.prepare(found, target_rank=8)
    return found


def test_a_file_changes_the_denoiser_that_it_names_and_keeps_the_other(
    pipe: Any, files: Any
) -> None:
    report = hotswap.swap(pipe, files["other"])
    assert same(pipe, files["other"], files["low"])
    assert report.adapter == str(files["other"])
    assert report.components == {HIGH: str(files["other"]), LOW: "one"}
    assert (report.kept, report.emptied) == ((LOW,), ())
    assert hotswap.active(pipe) == f"{HIGH}: {files['other']}, {LOW}: one"


def test_each_denoiser_gets_the_file_that_is_given_for_it(pipe: Any, files: Any) -> None:
    report = hotswap.swap(pipe, {HIGH: files["other"], LOW: str(files["high"])})
    assert same(pipe, files["other"], files["high"])
    assert report.components == {HIGH: str(files["other"]), LOW: str(files["high"])}
    assert report.kept == report.emptied == ()
    report = hotswap.swap(pipe, {LOW: files["low"]})
    assert same(pipe, files["other"], files["low"])
    assert report.kept == (HIGH,)
    report = hotswap.swap(pipe, {HIGH: None})
    assert same(pipe, None, files["low"])
    assert report.components == {HIGH: None, LOW: str(files["low"])}
    assert (report.kept, report.emptied) == ((LOW,), (HIGH,))
    assert hotswap.active(pipe) == str(files["low"])
    report = hotswap.swap(pipe, None)
    assert same(pipe, None, None)
    assert (report.kept, report.emptied, report.adapter) == ((), (LOW,), None)


def test_a_state_dict_is_given_for_one_denoiser(pipe: Any, files: Any) -> None:
    hotswap.swap(pipe, {LOW: load_file(files["other"])})
    assert same(pipe, files["high"], files["other"])


def test_one_file_that_does_not_fit_changes_neither(pipe: Any, files: Any, tmp_path: Path) -> None:
    before = [bits(pipe.transformer), bits(pipe.transformer_2)]
    large = write(tmp_path / "large.safetensors", 9, 5)
    with pytest.raises(RankTooLargeError, match="transformer_2"):
        hotswap.swap(pipe, {HIGH: files["other"], LOW: large})
    with pytest.raises(AdapterError, match="no component 'vae' carries a LoRA layer"):
        hotswap.swap(pipe, {HIGH: files["other"], "vae": None})
    for one, other in zip(before, (pipe.transformer, pipe.transformer_2), strict=True):
        now = bits(other)
        assert all(torch.equal(value, now[name]) for name, value in one.items())
    with pytest.raises(ValueError, match="an adapter each for transformer, but the model is no"):
        hotswap.swap(pipe.transformer, {HIGH: files["other"]})
    assert hotswap.active(pipe) == "one"


def test_a_plan_of_one_denoiser_loads_and_prepares_both(files: Any) -> None:
    plan = hotswap.plan([*files.values()])
    made = hotswap.load(wan(), plan, {HIGH: files["high"], LOW: files["low"]})
    assert same(made, files["high"], files["low"])
    alone = hotswap.load(wan(), plan, files["high"])
    assert same(alone, files["high"], None)
    again = fresh(files["high"], files["low"])
    hotswap.prepare(again, plan=plan)
    hotswap.swap(again, {HIGH: files["other"], LOW: None})
    assert same(again, files["other"], None)


def test_a_bank_puts_both_denoisers_in_place_or_the_one_that_a_file_is_of(
    pipe: Any, files: Any
) -> None:
    adapters = {"both": {HIGH: files["other"], LOW: files["high"]}, "first": files["high"]}
    reports = [hotswap.swap(pipe, each) for each in (*adapters.values(), None)]
    bank = hotswap.AdapterBank(pipe, adapter_name="one")
    for name, adapter in (*adapters.items(), ("none", None)):
        bank.add(name, adapter)
    assert bank.bytes == sum(report.bytes for report in reports)
    for _ in range(2):
        with bank.using("both"):
            assert same(pipe, files["other"], files["high"])
            assert hotswap.active(pipe) == "both"
        with bank.using("first"):
            assert same(pipe, files["high"], files["high"])
        with bank.using("none"):
            assert same(pipe, None, None)
            assert hotswap.active(pipe) is None


def test_a_copy_says_what_is_in_place_in_it(pipe: Any, files: Any) -> None:
    hotswap.swap(pipe.transformer, files["other"])
    assert hotswap.active(copy.deepcopy(pipe.transformer)) == str(files["other"])
    hotswap.swap(pipe.transformer, None)
    twin = copy.deepcopy(pipe.transformer)
    assert hotswap.active(twin) is None
    hotswap.swap(twin, files["high"])
    assert hotswap.active(twin) == str(files["high"])
    assert hotswap.active(pipe.transformer) is None
