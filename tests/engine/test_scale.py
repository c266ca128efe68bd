"""set_scale by module and component: in place, absolute, and all or nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from hotswap.engine import scale as scales
from hotswap.engine.layout.slots import lora_layers
from tests.support.models import bits, fresh, micro, run, same_bits, write_adapter, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base() -> Any:
    return micro(groups=2)


@pytest.fixture(scope="module")
def fleet(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    configs = {"a": {"r": 2, "lora_alpha": 4}, "b": {"r": 4, "lora_alpha": 3, "use_rslora": True}}
    return write_fleet(tmp_path_factory.mktemp("fleet"), base, configs)


@pytest.fixture
def model(base: Any, fleet: Any) -> Any:
    found = fresh(base, fleet["a"])
    hotswap.prepare(found, target_rank=4)
    return found


def scaled(base: Any, folder: Path, factors: dict[str, float]) -> torch.Tensor:
    """The oracle: PEFT's own dict of scalings, multiplied."""
    model = fresh(base, folder)
    for name, layer in lora_layers(model).items():
        layer.scaling["default"] *= factors.get(name, 1.0)
    return run(model)


def test_a_schedule_of_strengths_per_module_does_not_recompile_or_pile_up(
    base: Any, fleet: Any, model: Any
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    run(compiled)
    bank = hotswap.AdapterBank(model)
    for name, folder in fleet.items():
        bank.add(name, folder)
    with hotswap.forbid_recompiles(compiled):
        for name in ("a", "b", "a"):
            with bank.using(name):
                for step in (1.0, 0.6, 0.0, 0.3):
                    hotswap.set_scale(compiled, {"first|second": step, "conv": 1 - step})
                    expected = {"first": step, "second": step, "conv": 1 - step}
                    torch.testing.assert_close(run(compiled), scaled(base, fleet[name], expected))
            hotswap.set_scale(compiled, 1.0)
    with bank.using("b"):
        torch.testing.assert_close(run(compiled), scaled(base, fleet["b"], {}))


def test_the_last_pattern_that_matches_counts_and_others_stay(
    base: Any, fleet: Any, model: Any
) -> None:
    hotswap.set_scale(model, {".*": 0.5, "conv": 0.1})
    expected = {"embed": 0.5, "first": 0.5, "second": 0.5, "conv": 0.1}
    torch.testing.assert_close(run(model), scaled(base, fleet["a"], expected))
    hotswap.set_scale(model, {"embed": 2.0})
    torch.testing.assert_close(run(model), scaled(base, fleet["a"], {**expected, "embed": 2.0}))
    assert hotswap.swap(model, fleet["b"]).scale_reset is not None
    torch.testing.assert_close(run(model), run(fresh(base, fleet["b"])))


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        ({"first": 0.5, "frist": 0.5}, r"'frist' matches no module with an adapter; .* embed"),
        ({"firs": 0.5}, r"'firs' matches no module"),  # words as a whole
        ({"first": 0.5, "(": 0.5}, r"'\(' is no regular expression"),
        ({"first": float("inf")}, r"scale is inf for 'first'; expected a finite number"),
        (float("nan"), r"scale is nan; expected"),
    ],
)
def test_what_is_refused_changes_nothing(model: Any, scale: Any, text: str) -> None:
    before = bits(model)
    with pytest.raises(ValueError, match=text):
        hotswap.set_scale(model, scale)
    assert same_bits(before, bits(model))


def test_words_of_a_name_are_matched_as_a_whole() -> None:
    assert scales._pattern("layers.1").search("model.layers.1.q_proj")
    assert not scales._pattern("layers.1").search("model.layers.10.q_proj")
    assert scales._pattern("q_proj|v_proj").search("model.layers.1.v_proj")
    assert not scales._pattern("a|b").search("model.ab")


def test_dora_layers_are_scaled_by_name_too(base: Any, fleet: Any, tmp_path: Path) -> None:
    dora = write_adapter(tmp_path / "dora", base, r=2, use_dora=True)
    plan = hotswap.plan([dora, *fleet.values()])
    model = hotswap.load(copy.deepcopy(base), plan, dora)
    for name, folder in {"dora": dora, **fleet}.items():
        hotswap.swap(model, folder)
        hotswap.set_scale(model, {"first": 0.3, "conv": 0.0})
        torch.testing.assert_close(
            run(model), scaled(base, folder, {"first": 0.3, "conv": 0.0}), msg=name
        )


def test_the_components_of_a_pipeline_have_scales_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="not run: diffusers is not installed")
    from tests.support.pipelines import outputs, stable_diffusion, write_pipeline_adapter

    file = write_pipeline_adapter(
        tmp_path / "file", stable_diffusion(tmp_path), seed=1, parts=("unet", "text_encoder"), r=2
    )
    pipeline, oracle = stable_diffusion(tmp_path), stable_diffusion(tmp_path)
    for each in (pipeline, oracle):
        each.load_lora_weights(file, adapter_name="default")
    hotswap.prepare(pipeline, target_rank=4)
    hotswap.set_scale(pipeline, {"unet": 0.3, "text_encoder": 0.7, "unet.mid_block": 0.0})
    for name, layer in lora_layers(oracle.unet).items():
        layer.scaling["default"] *= 0.0 if name.startswith("mid_block") else 0.3
    for layer in lora_layers(oracle.text_encoder).values():
        layer.scaling["default"] *= 0.7
    for mine, theirs in zip(outputs(pipeline), outputs(oracle), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"'vae' matches no module .* such as (unet|text_encoder)"):
        hotswap.set_scale(pipeline, {"vae": 0.5})
