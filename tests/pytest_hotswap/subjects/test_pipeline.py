"""PipelineSubject: the contract on hotswap's own verbs for a pipeline, and verify of a pipeline's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

pytest.importorskip("diffusers")

from diffusers import DiffusionPipeline

from hotswap.adapters.planner import plan
from hotswap.report.laws import LAWS
from pytest_hotswap import PipelineSubject
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from tests.support.pipelines import stable_diffusion, write_pipeline_adapter
from tests.support.trainer_files import FORMATS
from tests.support.warm import verify

pytestmark = pytest.mark.filterwarnings("ignore")
FLEET = {"one": ("unet",), "two": ("unet", "text_encoder"), "three": ("unet",)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    stable_diffusion(folder).save_pretrained(folder / "base")
    for number, (name, parts) in enumerate(FLEET.items()):
        write_pipeline_adapter(
            folder / "adapters" / name,
            stable_diffusion(folder),
            seed=number,
            parts=parts,
            r=number + 2,
            lora_alpha=3,
        )
    return folder


@pytest.fixture(scope="module")
def deployment(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    subject = PipelineSubject(base=str(files / "base"), adapters=[str(files / "adapters" / "*")])
    found = Deployment(subject, tmp_path_factory.mktemp("deployment"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def trained(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two files in kohya's names, of the denoiser only, and a plan made from them, which does not name it."""
    paths = []
    for seed, rank in enumerate((2, 4)):
        paths.append(files / "trained" / f"kohya-{rank}.safetensors")
        paths[-1].parent.mkdir(exist_ok=True)
        tensors = FORMATS["kohya (sd-scripts)"].tensors(rank=rank, alpha=3.0, seed=seed)
        save_file(tensors, paths[-1])
    subject = PipelineSubject(base=str(files / "base"), adapters=[str(path) for path in paths])
    subject.plan = plan(paths)
    found = Deployment(subject, tmp_path_factory.mktemp("trained"))
    yield found
    found.close()


def test_the_inputs_are_one_step_to_a_small_image(deployment: Deployment) -> None:
    expected = {"prompt": "a", "num_inference_steps": 1, "height": 64, "width": 64}
    assert deployment.inputs == {**expected, "output_type": "latent"}


def test_a_pipeline_that_diffusers_loads_no_lora_into_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = DiffusionPipeline()
    monkeypatch.setattr("pytest_hotswap.DiffusersSubject.pipeline", lambda _: bare)
    with pytest.raises(
        pytest.UsageError, match="loads no LoRA into a DiffusionPipeline, which has"
    ):
        PipelineSubject().inputs()


@pytest.mark.parametrize("law", LAWS)
def test_hotswap_obeys_every_law_on_a_pipeline(deployment: Deployment, law: str) -> None:
    assert list(violations(deployment, law)) == []


@pytest.mark.parametrize("law", ["rank-bound", "swap-equals-load"])
def test_files_of_trainers_and_a_plan_without_components_are_judged_in_the_deployments_names(
    trained: Deployment, law: str
) -> None:
    assert {name.partition(".")[0] for name in trained.plan.modules} == {"unet"}
    assert list(violations(trained, law)) == []
    assert list(violations(trained, law, controls=True)) == []


def test_verify_takes_the_folder_of_a_pipeline(files: Path) -> None:
    adapters = [files / "adapters" / name for name in FLEET]
    words = ["--base", files / "base", "--no-timing", "--json", "--", "-k", "equals_load or covers"]
    ended = verify(*adapters, *words)
    document = json.loads(ended.stdout)
    assert [a["verdict"] for a in document["adapters"]] == ["passed"] * 3, ended.stdout
    (environment,) = document["environment"]
    assert environment["subject"].endswith("PipelineSubject")
