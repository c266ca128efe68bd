"""DiffusersSubject: the contract on a model and on a pipeline with a text encoder, and what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import FluxPipeline

from hotswap.checks.equivalence import compare
from hotswap.checks.snapshot import Snapshot
from pytest_hotswap import DiffusersSubject
from pytest_hotswap.adapters.derived import DEFECTS, break_adapter, rescale_adapter
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from tests.support.pipelines import flux, outputs, stable_diffusion, write_pipeline_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

FLEET: dict[str, dict[str, Any]] = {
    "one": {"r": 2, "lora_alpha": 3},
    "two": {"r": 4, "lora_alpha": 2},
    "unequal": {"r": 2, "lora_alpha": 4, "rank_pattern": {"to_q": 4}},
}


class Encoded(FluxPipeline):
    """A pipeline whose call returns what its text encoder and its transformer compute."""

    def __call__(self, *, generator: torch.Generator, return_dict: bool) -> tuple[Any]:
        return (outputs(self),)


class Pipeline(DiffusersSubject):
    def __init__(self, folder: Path) -> None:
        super().__init__(adapters=[str(folder / type(self).__name__ / "*")])
        self.folder = folder

    def pipeline(self) -> Any:
        made = flux(self.folder)
        made.__class__ = Encoded
        return made

    def inputs(self) -> dict[str, Any]:
        return {}

    def compile(self, model: Any) -> Any:
        """One small layer: these laws break before the rest matters."""
        model.whole.transformer.x_embedder.compile(backend="eager")
        return model


class Model(Pipeline):
    def pipeline(self) -> Any:
        return flux(self.folder).transformer

    def inputs(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(3)
        return {
            "hidden_states": torch.randn(1, 16, 4, generator=generator),
            "encoder_hidden_states": torch.randn(1, 8, 16, generator=generator),
            "pooled_projections": torch.randn(1, 16, generator=generator),
            "timestep": torch.tensor([1.0]),
            "img_ids": torch.randn(16, 3, generator=generator),
            "txt_ids": torch.zeros(8, 3),
        }

    def compile(self, model: Any) -> Any:
        """One block, as in regional compilation."""
        components = model.get_base_model() if hasattr(model, "get_base_model") else model
        components.whole.single_transformer_blocks[0].compile(backend="eager")
        return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers")
    for seed, (name, config) in enumerate(FLEET.items(), start=1):
        for subject, parts in (("Model", ("transformer",)), ("Pipeline", PARTS)):
            path = folder / subject / name
            write_pipeline_adapter(path, flux(folder), seed=seed, parts=parts, **config)
    return folder


PARTS = ("transformer", "text_encoder")


def deployed(cls: type[Pipeline], folder: Path) -> Iterator[Deployment]:
    torch._dynamo.reset()
    deployment = Deployment(cls(folder), folder / f"derived-{cls.__name__}")
    yield deployment
    deployment.close()


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Deployment]:
    yield from deployed(Model, folder)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Iterator[Deployment]:
    yield from deployed(Pipeline, folder)


OBEYED = (
    "preparation-covers",
    "swap-forgets",
    "swap-has-effect",
    "swap-in-place",
    "zero-recompiles",
)


@pytest.mark.parametrize("law", OBEYED)
def test_a_model_of_diffusers_obeys(model: Deployment, law: str) -> None:
    assert list(violations(model, law)) == []


BROKEN = {  # law → what its violations say, one after the other
    "rank-bound": [
        "an adapter above the target rank was swapped in: transformer.",
        "weights above the target rank, whose config says the target, were swapped in",
        "rank 4 in transformer.single_transformer_blocks.0.attn.to_k, which takes just that",
    ],
    "swap-equals-load": [  # peft#3738
        "unequal: output 0 differs",
        "ValueError: Configs are incompatible: for use_rslora",
        "unequal in float64: output 0 differs",
        "unequal: transformer.transformer_blocks.0.attn.to_q does not hold what the file has",
    ],
    "swap-isolated": [
        "one: transformer.transformer_blocks.0.attn.to_q.lora_A.default2",
        "while another adapter is active: transformer.",
    ],  # peft#3780
    "swap-atomic": [
        *(f"an adapter with a {d} was accepted" for d in DEFECTS if d != "truncated file"),
        "two with a wrong shape in lora_A.weight",
        "interrupted at ",
        "refused (transformer.time_text_embed.timestep_embedder.linear_1 is not prepared), but",
        "an adapter with a number that is infinite in the model is accepted",
    ],
    "knobs-follow": ["the first set_scale() recompiles", "two", "two"],  # diffusers#11408
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_model_of_diffusers_breaks(model: Deployment, law: str) -> None:
    found = list(violations(model, law))
    assert len(found) == len(BROKEN[law])
    for text, said in zip(found, BROKEN[law], strict=True):
        assert text.startswith(f"{law}: {said}")


def test_a_refused_swap_deletes_the_adapter_that_was_serving(model: Deployment) -> None:
    deployed = model.prepared()
    before = Snapshot.take(deployed)
    pattern = rescale_adapter(model.first, model.new_folder(), 2.0)
    config = (pattern / "adapter_config.json").read_text()
    config = config.replace('"alpha_pattern": {}', '"alpha_pattern": {"to_k": 7}')
    (pattern / "adapter_config.json").write_text(config)  # which PEFT refuses
    with pytest.raises(ValueError, match="Configs are incompatible"):
        model.subject.swap(deployed, pattern)
    assert any("is gone" in change for change in before.changes())
    assert compare(model.run(deployed), model.expected(None)).equal
    with pytest.raises(ValueError, match="no existing adapter by that name"):
        model.subject.swap(deployed, model.paths[1])
    before.restore()
    assert compare(model.run(deployed), model.expected(model.first)).equal
    model.subject.swap(deployed, model.paths[1])


def test_the_text_encoder_of_a_pipeline_is_not_prepared(pipeline: Deployment) -> None:
    found, *_ = violations(pipeline, "preparation-covers")  # and with each adapter loaded first
    assert "text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight has rank 2, pl" in found
    assert "transformer." not in found


def test_a_swap_with_a_text_encoder_is_refused_when_the_denoiser_has_been_swapped(
    pipeline: Deployment,
) -> None:
    found = list(violations(pipeline, "swap-equals-load"))
    assert (
        len(found) == 3 * len(FLEET) + 3
    )  # alike, in float64, as placed, rewritten, and by other names
    assert all("hotswapping is not supported for text encoders" in text for text in found)
    pipeline.snapshot.restore()
    with pytest.raises(ValueError, match="text encoders"):
        pipeline.subject.swap(pipeline.compiled, pipeline.paths[1])
    changes = pipeline.snapshot.changes()
    assert any(c.startswith("transformer.") and "changed its values" in c for c in changes)
    assert not any(c.startswith("text_encoder.") for c in changes)


@pytest.mark.parametrize("cls", [Model, Pipeline])
def test_diffusers_and_peft_load_the_same_adapter(
    cls: type[Pipeline], request: pytest.FixtureRequest
) -> None:
    deployment: Deployment = request.getfixturevalue(cls.__name__.lower())
    for path in deployment.paths:
        for adapter in (path, rescale_adapter(path, deployment.new_folder(), 3.0)):
            model = deployment.subject.base_model()
            model.load(adapter, adapter_name="default")
            found = compare(deployment.run(model), deployment.expected(adapter))
            assert found.equal, found.detail
    saved = deployment.new_folder()
    deployment.subject.save(model, saved)
    assert compare(deployment.run(deployment.fresh(saved)), deployment.expected(adapter)).equal


def test_what_is_compiled_is_the_denoiser(pipeline: Deployment) -> None:
    components = DiffusersSubject().compile(pipeline.subject.base_model())
    compiled = {n for n, part in components.named_children() if part._compiled_call_impl}
    assert compiled == {"transformer"}


def test_a_truncated_file_reaches_diffusers_as_it_is(model: Deployment) -> None:
    bad = break_adapter(model.first, model.new_folder(), "truncated file")
    with pytest.raises(Exception, match="incomplete metadata"):
        model.subject.base_model().load(bad)


def test_the_pipeline_is_read_from_the_base(tmp_path: Path) -> None:
    stable_diffusion(tmp_path).save_pretrained(tmp_path / "base")
    components = DiffusersSubject(base=str(tmp_path / "base")).base_model()
    assert [name for name, _ in components.named_children()] == ["unet", "text_encoder"]
    with torch.no_grad():
        one, other = (components(**DiffusersSubject().inputs()) for _ in range(2))
    assert torch.equal(one, other)
    with pytest.raises(pytest.UsageError, match=r"no pipeline; define pipeline\(\) or give"):
        DiffusersSubject().pipeline()
