"""Over every format: the checker accepts what a swap accepts, which then computes what a fresh load does."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import hotswap
from hotswap.engine.parts import parts_of
from hotswap.errors import HotswapError
from tests.support.trainer_files import FORMATS, Tensors

pytestmark = pytest.mark.filterwarnings("ignore")
DAMAGES = ("none", "none", "rank", "half", "width", "elsewhere", "integers")
RANK = 3
Served = dict[str, tuple[Any, Any, hotswap.SwapPlan]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Of each format asked for: the bare pipeline, one that serves, and its plan."""
    return {}


def serving(served: Served, name: str, folder: Path) -> tuple[Any, Any, hotswap.SwapPlan]:
    if name not in served:
        known, files = FORMATS[name], []
        for dora in (False, True):
            file = folder / f"first {dora}.safetensors"
            tensors = known.tensors(rank=RANK, alpha=2.0, seed=1, text=True, dora=dora)
            save_file(tensors, file)
            files.append(file)
        bare, plan = known.pipeline(folder), hotswap.plan(files)
        served[name] = bare, hotswap.load(copy.deepcopy(bare), plan, files[0]), plan
    return served[name]


def damaged(tensors: Tensors, damage: str) -> Tensors:
    first = next(name for name in tensors if "alpha" not in name)
    value = tensors[first]
    if damage == "half":
        return {name: value for name, value in tensors.items() if name != first}
    if damage == "width":
        return {**tensors, first: torch.ones(value.shape[0], value.shape[1] + 1)}
    if damage == "integers":
        return {**tensors, first: value.to(torch.int32)}
    if damage == "elsewhere":
        moved = {name.replace("0", "7"): value.clone() for name, value in tensors.items()}
        return {**tensors, **moved}
    return tensors


def effects(pipeline: Any) -> dict[str, dict[str, torch.Tensor]]:
    """What the adapter in place adds to each layer, scaled, and the magnitude of DoRA."""
    found = {}
    for part in parts_of(pipeline):
        for name, layer in part.model.named_modules():
            if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
                adapter = next(iter(layer.lora_A))
                product = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
                scaling, bias = float(layer.scaling[adapter]), layer.lora_B[adapter].bias
                own = {"weight": product.detach() * scaling}
                if bias is not None:
                    own["bias"] = bias.detach() * scaling
                if adapter in layer.lora_magnitude_vector:
                    own["magnitude"] = layer.lora_magnitude_vector[adapter].weight.detach()
                found[f"{part.key}.{name}"] = own
    return found


def test_magnitudes_of_a_text_encoder_that_a_fresh_load_loses_are_refused(tmp_path: Path) -> None:
    """Under the name that PEFT gives them transformers does not find them, of the longer one it does."""
    known, file = FORMATS["diffusers"], tmp_path / "own.safetensors"
    tensors = known.tensors(rank=2, alpha=None, seed=1, text=True, dora=True)
    short = {re.sub("_vector.weight$", "_vector", name): value for name, value in tensors.items()}
    (saved,) = [v for n, v in tensors.items() if "text" in n and "magnitude" in n]
    for names, kept in ((short, False), (tensors, True)):
        save_file(names, file)
        fresh = known.pipeline(tmp_path)
        fresh.load_lora_weights(str(file))
        (own,) = [v for key, v in effects(fresh).items() if key.startswith("text_encoder")]
        assert torch.equal(own["magnitude"], saved) == kept
        assert [f.code for f in hotswap.check_adapters(file)] == ([] if kept else ["HSW108"])
    pipeline = hotswap.load(known.pipeline(tmp_path), hotswap.plan([file]), file)
    save_file(short, file)
    with pytest.raises(HotswapError, match=r"rename these tensors: \w+ to \w+\.weight"):
        hotswap.swap(pipeline, file)


def judge(served: Served, folder: Path, name: str, damage: str, **drawn: Any) -> bool:
    """Whether checker and swap, which must agree, accept a file; then it is as a fresh load."""
    bare, pipeline, plan = serving(served, name, folder)
    rank = RANK + 1 if damage == "rank" else drawn.pop("rank")
    drawn.pop("rank", None)
    file = folder / "own.safetensors"
    tensors = damaged(FORMATS[name].tensors(rank=rank, **drawn), damage)
    save_file(tensors, file)
    found = [f for f in hotswap.check_adapters(file, plan=plan) if f.severity == "error"]
    before, refusal = effects(pipeline), None
    try:
        hotswap.swap(pipeline, file)
    except HotswapError as error:
        refusal = error
    assert bool(found) == (refusal is not None), (found, refusal)
    if refusal is not None:
        after = effects(pipeline)
        for key, own in before.items():
            assert all(torch.equal(after[key][what], value) for what, value in own.items())
        return False
    fresh = copy.deepcopy(bare)
    fresh.load_lora_weights(str(file))
    expected, now = effects(fresh), effects(pipeline)
    for key, own in expected.items():
        for what, value in own.items():
            torch.testing.assert_close(now[key][what], value)
    assert not any(now[key]["weight"].any() for key in now.keys() - expected.keys())
    return True


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    damage=st.sampled_from(DAMAGES),
    rank=st.integers(1, RANK),
    alpha=st.none() | st.sampled_from([0.5, 1.0, 4.0]),
    text=st.booleans(),
    dora=st.booleans(),
    seed=st.integers(0, 9),
)
@example(name="diffusers", damage="none", rank=2, alpha=None, text=True, dora=True, seed=1)
@example(name="kohya (sd-scripts)", damage="none", rank=2, alpha=1.0, text=True, dora=True, seed=1)
def test_the_checker_accepts_what_a_swap_accepts_as_a_fresh_load(
    served: Served, tmp_path_factory: pytest.TempPathFactory, name: str, damage: str, **drawn: Any
) -> None:
    judge(served, tmp_path_factory.mktemp("formats"), name, damage, **drawn)


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_accepted_and_its_damages_are_not(
    name: str, served: Served, tmp_path: Path
) -> None:
    drawn: dict[str, Any] = {"alpha": 1.0, "text": True, "dora": False, "seed": 3}
    assert judge(served, tmp_path, name, "none", rank=2, **drawn)
    for damage in sorted({*DAMAGES} - {"none"}):
        accepted = judge(served, tmp_path, name, damage, rank=2, **drawn)
        assert not accepted or damage == "integers"  # of which some converters make floats
