"""``--base`` of a pipeline's folder: which converter reads a file, and components one by one."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from click.testing import CliRunner
from safetensors.torch import save_file

import hotswap
from hotswap.adapters.inspect import Inspector
from hotswap.checks.base_model import read_base
from hotswap.cli.plan import plan as plan_command
from hotswap.errors import HotswapError, UnreadableAdapterError
from tests.support.pipelines import stable_diffusion, write_pipeline_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pipeline")
    stable_diffusion(made / "words").save_pretrained(made / "sd")
    return made / "sd"


def pairs(name: str, into: int, out: int, down: str = "lora_A", up: str = "lora_B") -> Any:
    return {
        f"{name}.{down}.weight": torch.ones(2, into),
        f"{name}.{up}.weight": torch.ones(out, 2),
    }


def saved(path: Path, *parts: Any) -> Path:
    save_file({name: value for part in parts for name, value in part.items()}, path)
    return path


MODULES = {
    "unet": pairs(f"unet.{UNET}.to_q", 8, 8),
    "text": pairs(f"text_encoder.{TEXT}", 16, 16),
    "wide": pairs(f"text_encoder.{TEXT}", 17, 16),
    "strange": pairs("unet.to_x", 8, 8),
    "other": pairs("transformer.blocks.0.to_q", 8, 8),
}


def codes(base: Path, file: Path) -> set[str]:
    return {found.code for found in Inspector(base=read_base(base))(str(file)).findings}


@pytest.mark.parametrize(
    ("at", "modules", "expected"),
    [
        ("", ["unet", "text"], set()),
        ("", ["text"], set()),
        ("", ["unet"], set()),
        ("model_index.json", ["unet", "text"], set()),
        ("unet", ["unet", "text"], set()),
        ("text_encoder", ["unet", "text"], set()),
        ("text_encoder", ["text"], set()),
        ("unet", ["text"], {"HSW112"}),
        ("", ["unet", "wide"], {"HSW107"}),
        ("text_encoder", ["unet", "wide"], {"HSW107"}),
        ("unet", ["unet", "wide"], set()),
        ("", ["unet", "strange"], {"HSW112"}),
        ("", ["other"], {"HSW112"}),
    ],
)
def test_the_components_of_a_pipeline_are_checked_one_by_one(
    folder: Path, tmp_path: Path, at: str, modules: list[str], expected: set[str]
) -> None:
    file = saved(tmp_path / "file.safetensors", *(MODULES[name] for name in modules))
    assert codes(folder / at, file) == expected


def test_what_a_pipeline_writes_belongs_to_its_folder(folder: Path, tmp_path: Path) -> None:
    parts = ("unet", "text_encoder")
    written = write_pipeline_adapter(tmp_path, stable_diffusion(tmp_path), seed=1, parts=parts, r=2)
    assert codes(folder, written) == set()
    assert hotswap.check_adapters(written, base=folder) == []


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (r".*self_attn.*", {"HSW112"}),
        (["q_proj", "mlp"], {"HSW112"}),
        ([TEXT, "text_model.encoder"], {"HSW112"}),
        (r"text_model\..*q_proj", {"HSW112"}),
        (r".*q_proj", set()),
    ],
)
@pytest.mark.parametrize("parts", [["text"], ["unet", "text"]])
def test_what_metadata_names_of_a_text_encoder_is_judged_as_a_swap_judges_it(
    folder: Path, tmp_path: Path, parts: list[str], targets: Any, expected: set[str]
) -> None:
    file = saved(tmp_path / "file.safetensors", *(MODULES[name] for name in parts))
    pipeline = hotswap.load(stable_diffusion(tmp_path), hotswap.plan([file]), file)
    own = {"r": 2, "lora_alpha": 2, "target_modules": targets}
    told = {f"text_encoder.{key}": value for key, value in own.items()}
    told |= {f"unet.{key}": value for key, value in {**own, "target_modules": ["to_q"]}.items()}
    tensors = {name: value for part in parts for name, value in MODULES[part].items()}
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps(told)})
    assert codes(folder, file) == expected
    if targets[0] not in (TEXT, "t"):  # of one model by itself, names are not changed
        assert codes(folder / "text_encoder", file) == expected
    with pytest.raises(HotswapError) if expected else nullcontext():
        hotswap.swap(pipeline, file)


def test_a_pipeline_says_which_converter_reads_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    folder.mkdir()
    index = {"_class_name": "QwenImagePipeline", "transformer": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    bare = pairs("layers.0.x.to_q", 8, 8, "lora_down", "lora_up")
    alpha = {"layers.0.x.to_q.alpha": torch.tensor(1.0)}
    given = saved(tmp_path / "bare.safetensors", bare, alpha)
    with pytest.raises(UnreadableAdapterError, match="no pipeline that is known") as caught:
        hotswap.plan([given])
    assert "--base PIPELINE_FOLDER" in caught.value.findings[0].remedy
    assert set(hotswap.plan([given], base=folder).modules) == {"layers.0.x.to_q"}
    words = [str(given), "--base", str(folder), "--json"]
    done = CliRunner().invoke(plan_command, words)
    assert (done.exit_code, set(json.loads(done.stdout)["modules"])) == (0, {"layers.0.x.to_q"})
    found = hotswap.check_adapters(given, base=folder)
    assert {finding.code for finding in found} == {"HSW112"}  # read, and of no component


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[]", "no JSON object"),
        ("{", "cannot be read"),
        ("{}", "no _class_name"),
        (
            '{"_class_name": "StableDiffusionPipeline", "unet": ["own_code", "Net"]}',
            "code of the pipeline's own",
        ),
        (
            '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}',
            "cannot be built",
        ),
    ],
)
def test_what_is_no_pipeline_is_one_sentence(index: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(HotswapError, match=words):
        read_base(tmp_path)


def test_a_plan_is_told_a_pipeline_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(HotswapError, match="expected the folder of a pipeline"):
        hotswap.plan([tmp_path], base=tmp_path)
