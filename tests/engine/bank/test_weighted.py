"""bank.add_weighted: a weighted sum of adapters, exact within the prepared rank, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap.errors import HotswapError, RankTooLargeError, UnknownAdapterError
from tests.support.models import (
    Around,
    Attention,
    Experts,
    Head,
    fresh,
    micro,
    run,
    seeded,
    write_adapter,
    write_fleet,
)

pytestmark = pytest.mark.filterwarnings("ignore")
WEIGHTS = {"style": 0.8, "character": 0.5, "none": 3.0}
SEQUENCE = torch.linspace(-1, 1, 48).reshape(2, 3, 8)
EXPERTS = torch.linspace(-1, 1, 72).reshape(3, 3, 8)


@pytest.fixture(scope="module")
def base() -> Any:
    return micro(groups=2)


@pytest.fixture(scope="module")
def fleet(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    configs: dict[str, dict[str, Any]] = {
        "style": {"r": 2, "lora_alpha": 4, "rank_pattern": {"first": 4}},
        "character": {"r": 4, "lora_alpha": 3, "use_rslora": True},
        "only first": {"r": 2, "lora_alpha": 8, "target_modules": ["first"]},
    }
    return write_fleet(tmp_path_factory.mktemp("fleet"), base, configs)


def filled(model: Any, fleet: dict[str, Path], **options: Any) -> hotswap.AdapterBank:
    bank = hotswap.AdapterBank(model, **options)
    for name, folder in fleet.items():
        bank.add(name, folder)
    bank.add("none", None)
    return bank


def summed(base: Any, fleet: dict[str, Path], weights: dict[str, float]) -> Any:
    """The oracle: the adapters side by side in one model, as PEFT computes them."""
    names = [name for name in weights if name in fleet]
    model = fresh(base, fleet[names[0]])
    for number, name in enumerate(names[1:]):
        model.load_adapter(fleet[name], f"more {number}")
    active = ["default", *(f"more {number}" for number in range(len(names) - 1))]
    model.base_model.set_adapter(active)
    for layer in model.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            for adapter, name in zip(active, names, strict=True):
                if adapter in layer.scaling:
                    layer.scaling[adapter] *= weights[name]
    return model


@pytest.mark.parametrize(
    "weights",
    [
        WEIGHTS,
        {"style": -1.0, "character": 0.25},
        {"only first": 2.0, "style": 1.0},
        {"character": 0.7},
        {"style": 0.0, "character": 0.0},
    ],
    ids=str,
)
def test_a_sum_is_what_the_adapters_compute_side_by_side(
    base: Any, fleet: Any, weights: dict[str, float]
) -> None:
    model = fresh(base, fleet["style"])
    hotswap.prepare(model, target_rank=8)
    bank = filled(model, fleet)
    assert bank.add_weighted("mix", weights) == bank.digest("mix")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    run(compiled)
    expected = run(summed(base, fleet, weights))
    with hotswap.forbid_recompiles(compiled):
        for _ in range(2):
            with bank.using("mix"):
                torch.testing.assert_close(run(compiled), expected)
                assert hotswap.active(model) == "mix"
            with bank.using("style"):
                torch.testing.assert_close(run(compiled), run(fresh(base, fleet["style"])))


def test_one_adapter_by_itself_is_summed_bit_for_bit(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["style"])
    hotswap.prepare(model, target_rank=8)
    bank = filled(model, fleet)
    bank.add_weighted("same", {"character": 1.0})
    with bank.using("character"):
        expected = run(model)
    with bank.using("same"):
        assert torch.equal(run(model), expected)


@pytest.mark.parametrize(
    ("make", "config", "inputs"),
    [
        (Attention, {"target_modules": ["attn", "first"]}, SEQUENCE),
        (lambda: Around(Experts()), {"target_parameters": ["layer.up", "layer.down"]}, EXPERTS),
        (
            lambda: nn.Sequential(nn.Linear(8, 5)),
            {"target_modules": ["0"], "lora_bias": True},
            None,
        ),
    ],
    ids=["attention", "experts", "lora_bias"],
)
def test_layers_of_other_kinds_are_summed(
    make: Callable[[], nn.Module], config: Any, inputs: Any, tmp_path: Path
) -> None:
    base = seeded(make)
    inputs = torch.linspace(-1, 1, 24).reshape(3, 8) if inputs is None else inputs
    configs = {"one": {"r": 2, "lora_alpha": 4}, "two": {"r": 3, "lora_alpha": 9}}
    fleet = write_fleet(tmp_path, base, {name: {**c, **config} for name, c in configs.items()})
    model = fresh(base, fleet["one"])
    hotswap.prepare(model, target_rank=5)
    bank = filled(model, fleet)
    weights = {"one": 0.6, "two": -0.5}
    bank.add_weighted("mix", weights)
    layers = [*model.modules()]
    outputs = {}
    for name in ("one", "two", "mix", "none"):
        with bank.using(name):
            outputs[name] = run(model, inputs)
    with bank.using("mix"):
        model.save_pretrained(tmp_path / "mix")
        assert layers == [*model.modules()]
    torch.testing.assert_close(outputs["mix"], run(fresh(base, tmp_path / "mix"), inputs))
    if isinstance(base, nn.Sequential):  # one linear layer: what is summed can be seen from outside
        parts = (weight * (outputs[name] - outputs["none"]) for name, weight in weights.items())
        torch.testing.assert_close(outputs["mix"] - outputs["none"], sum(parts))


def test_a_sum_is_saved_as_an_adapter_of_its_own_rank(
    base: Any, fleet: Any, tmp_path: Path
) -> None:
    model = fresh(base, fleet["style"])
    hotswap.prepare(model, target_rank=8)
    bank = filled(model, fleet)
    bank.add_weighted("mix", WEIGHTS)
    with bank.using("mix"):
        model.save_pretrained(tmp_path / "mix")
        expected = run(model)
    spec = hotswap.AdapterSpec.read(tmp_path / "mix")
    assert {name: module.rank for name, module in spec.modules.items()} == {
        "conv": 6,
        "embed": 6,
        "first": 8,
        "second": 6,
    }
    torch.testing.assert_close(run(fresh(base, tmp_path / "mix")), expected)
    assert bank.add("read again", tmp_path / "mix") == bank.digest("mix")


def test_a_sum_above_the_prepared_rank_is_refused_with_the_rank_that_it_needs(
    base: Any, fleet: Any
) -> None:
    model = fresh(base, fleet["character"])
    hotswap.prepare(model, target_rank=6)
    bank = filled(model, fleet)
    before = list(bank)
    with pytest.raises(
        RankTooLargeError, match=r"mix::first: has rank 8, the plan allows 6; .*target_rank=8"
    ):
        bank.add_weighted("mix", WEIGHTS)
    assert list(bank) == before


def test_what_is_no_plain_lora_is_refused_by_name(base: Any, fleet: Any, tmp_path: Path) -> None:
    dora = write_adapter(tmp_path / "dora", base, r=2, use_dora=True)
    plan = hotswap.plan([*fleet.values(), dora])
    model = hotswap.load(copy.deepcopy(base), plan, dora)
    bank = filled(model, {**fleet, "dora": dora})
    with pytest.raises(HotswapError, match=r"'dora' has DoRA in embed and 3 more, which cannot"):
        bank.add_weighted("mix", {"style": 1.0, "dora": 0.5})
    assert "mix" not in bank
    bank.add_weighted(
        "mix", {"only first": 1.0, "none": 0.5}
    )  # plain LoRA in a model with room for DoRA
    with bank.using("mix"):
        torch.testing.assert_close(run(model), run(fresh(base, fleet["only first"])))


@pytest.mark.parametrize("trained", ["head", "tokens"])
def test_whole_modules_and_tokens_are_refused_by_name(trained: str, tmp_path: Path) -> None:
    base = seeded(Head)
    more: dict[str, Any] = {
        "head": {"modules_to_save": ["head"]},
        "tokens": {"trainable_token_indices": {"embed": [1, 3]}},
    }[trained]
    configs = {
        "plain": {"r": 2, "target_modules": ["first"]},
        trained: {"r": 2, "target_modules": ["first"], **more},
    }
    fleet = write_fleet(tmp_path, base, configs)
    model = hotswap.load(copy.deepcopy(base), hotswap.plan([*fleet.values()]), fleet["plain"])
    bank = filled(model, fleet)
    with pytest.raises(HotswapError, match=rf"'{trained}' has trained weights in (head|embed)"):
        bank.add_weighted("mix", {"plain": 1.0, trained: 1.0})
    bank.add_weighted("mix", {"plain": 0.5})


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        ({}, ValueError, "there are no weights"),
        ({"style": float("nan")}, ValueError, "the weight of 'style' is nan"),
        ({"style": 1.0, "gone": 1.0}, UnknownAdapterError, "no adapter 'gone'"),
    ],
)
def test_weights_that_make_no_sense_are_refused(
    base: Any, fleet: Any, weights: Any, error: Any, text: str
) -> None:
    model = fresh(base, fleet["style"])
    hotswap.prepare(model, target_rank=8)
    bank = filled(model, fleet)
    with pytest.raises(error, match=text):
        bank.add_weighted("mix", weights)
    assert "mix" not in bank


def test_what_is_on_the_disk_is_read_and_half_precision_is_rounded_once(
    base: Any, fleet: Any
) -> None:
    model = fresh(copy.deepcopy(base).to(torch.bfloat16), fleet["style"]).to(torch.bfloat16)
    hotswap.prepare(model, target_rank=8)
    bank = hotswap.AdapterBank(model)
    for name in ("style", "character"):
        bank.register(name, fleet[name])
    bank.add_weighted("mix", {"style": 0.8, "character": 0.5})
    expected = run(summed(base, fleet, {"style": 0.8, "character": 0.5}))
    with bank.using("mix"):
        torch.testing.assert_close(run(model).float(), expected, rtol=0.05, atol=0.1)
    bank.add_weighted("character", {"character": 2.0})  # in place of what it was made of
    with bank.using("character"):
        assert hotswap.active(model) == "character"


def test_the_components_of_a_pipeline_are_summed_each(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="not run: diffusers is not installed")
    from tests.support.pipelines import outputs, stable_diffusion, write_pipeline_adapter

    files = {
        name: write_pipeline_adapter(
            tmp_path / name, stable_diffusion(tmp_path), seed=seed, parts=parts, r=2, lora_alpha=4
        )
        for seed, (name, parts) in enumerate(
            {"both": ("unet", "text_encoder"), "one": ("unet",)}.items()
        )
    }
    pipeline = stable_diffusion(tmp_path)
    pipeline.load_lora_weights(files["both"], adapter_name="default")
    hotswap.prepare(pipeline, target_rank=4)
    oracle = stable_diffusion(tmp_path)
    for name, file in files.items():
        oracle.load_lora_weights(file, adapter_name=name)
    oracle.set_adapters(["both", "one"], [0.5, 2.0])
    bank = hotswap.AdapterBank(pipeline)
    for name, file in files.items():
        bank.add(name, file)
    bank.add_weighted("mix", {"both": 0.5, "one": 2.0})
    with bank.using("mix"):
        for mine, theirs in zip(outputs(pipeline), outputs(oracle), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
