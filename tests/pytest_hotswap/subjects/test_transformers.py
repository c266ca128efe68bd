"""TransformersSubject: the contract on transformers' own adapter methods, and what it finds in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pytest_hotswap import TransformersSubject
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from tests.support.models import seeded, write_fleet

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        transformers.__version__ not in ("5.23.0", "5.24.0"),
        reason="what the contract finds depends on the version of transformers",
    ),
]

TARGETS = ["q_proj", "v_proj"]
FLEETS: dict[str, dict[str, dict[str, Any]]] = {
    "equal": {
        "one": {"r": 4, "lora_alpha": 8, "target_modules": TARGETS},
        "two": {"r": 4, "lora_alpha": 2, "target_modules": TARGETS},
    },
    "unequal": {
        "small": {"r": 2, "lora_alpha": 2, "target_modules": TARGETS},
        "large": {"r": 4, "lora_alpha": 4, "target_modules": TARGETS},
    },
}


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    return seeded(lambda: transformers.LlamaForCausalLM(config))


class Llama(TransformersSubject):
    companions = "none"  # it swaps between adapters of equal ranks only

    def base_model(self) -> Any:
        return llama()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformers")
    for name, fleet in FLEETS.items():
        write_fleet(folder / name, llama(), fleet)
    return folder


@pytest.fixture(scope="module")
def deployment(folder: Path) -> Iterator[Deployment]:
    torch._dynamo.reset()
    deployment = Deployment(Llama(adapters=[str(folder / "equal" / "*")]), folder / "derived")
    yield deployment
    deployment.close()


OBEYED = ("swap-forgets", "swap-has-effect", "zero-recompiles")
BROKEN = {  # law → what its violations say; all of transformers#45682
    "preparation-covers": [
        "model.layers.0.self_attn.q_proj.scaling is a float",
        "one loaded first: model.layers.0.self_attn.q_proj.scaling is a float",
        "two loaded first: model.layers.0.self_attn.q_proj.scaling is a float",
        "model.layers.0.self_attn.q_proj is of a class of its own, and was skipped",
        "model.layers.0.self_attn.q_proj is below a wrapper, and was skipped",
    ],
    "rank-bound": [  # v_proj has been written when q_proj is refused
        "refused (model.layers.0.self_attn.q_proj alone), but model.layers.0.self_attn.v_proj.lora_A"
    ],
    "swap-equals-load": [  # by the first adapter's alpha, without a word
        "two: output 0 differs",
        "one with another alpha: output 0 differs",
        "one loaded first: two, swapped in then: output 0 differs",
        "two loaded first: one, swapped in then: output 0 differs",
        "two in float64: output 0 differs",
        "two: model.layers.0.self_attn.q_proj does not hold what the file has: scaling",
        "two, written to the folder that one was read from: output 0 differs",
    ],
    "swap-atomic": [
        "refused (wrong shape), but model.layers.0.self_attn.q_proj.lora_A.default.weight changed",
        "an adapter with a missing tensor was accepted",
        "an adapter with a extra tensor was accepted",
        "an adapter with a not a number was accepted",
        "two after a truncated file: output 0 differs",
        "an adapter with a wrong rank in the config was accepted",
        "two after a larger rank: output 0 differs",
        "refused (wrong shape in lora_",
        "after an interrupt at ",
        "one with model.layers.0.self_attn.k_proj, which is not prepared, is taken in part: output 0",
        "after a refusal model.layers.0.self_attn.q_proj.base_layer.weight.requires_grad changed",
        "an adapter with a number that is infinite in the model is accepted",
    ],
    "swap-in-place": [
        "one, swap 1: model.layers.0.self_attn.q_proj.lora_A.default.weight changed its address",
        "two, swap 1: model.layers.0.self_attn.q_proj.lora_A.default.weight changed its address",
        "the first swap to one: model.layers.0.self_attn.q_proj.lora_A.default.weight changed its",
    ],
    "knobs-follow": [
        "the first set_scale() recompiles",
        "two, swapped in after set_scale(0.5) on one: output 0 differs",
    ],
}
"""swap-isolated is in neither list: with PEFT 0.21.2, set_adapter() of transformers 5.24.0 raises."""


@pytest.mark.parametrize("law", OBEYED)
def test_swaps_between_equal_ranks_obey(deployment: Deployment, law: str) -> None:
    assert list(violations(deployment, law)) == []


@pytest.mark.parametrize("law", BROKEN)
def test_swaps_between_equal_ranks_break(deployment: Deployment, law: str) -> None:
    torch.manual_seed(0)  # transformers draws what it does not find in a file
    found = [text for text in violations(deployment, law) if text.raised is None]
    known = [f"{law}: {said}" for said in BROKEN[law]]
    assert [next(filter(text.startswith, known), text) for text in found] == known


def test_another_rank_is_refused_although_the_model_was_prepared_for_it(folder: Path) -> None:
    subject = Llama(adapters=[str(folder / "unequal" / "*")])
    large, small = subject.adapter_paths()
    model = subject.load(subject.base_model(), small)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        subject.swap(model, large)
