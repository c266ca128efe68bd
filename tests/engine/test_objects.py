"""A prepared model remains a model: copies, files, devices, dtypes, hooks, optimizers, autograd, exports."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.helpers import DoraCaching, rescale_adapter_scale

import hotswap
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.slots import lora_layers, slots
from hotswap.errors import HotswapError, NotPreparedError
from tests.support.models import (
    TOKENS,
    bits,
    check_swaps,
    fresh,
    micro,
    run,
    same_bits,
    write_fleet,
)

pytestmark = pytest.mark.filterwarnings("ignore")

FLEET: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 4},
    "large": {"r": 8, "lora_alpha": 3},
    "some": {"r": 4, "use_rslora": True, "target_modules": ["first", "conv"]},
}


@pytest.fixture
def base() -> Any:
    return micro()


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    return write_fleet(tmp_path, base, FLEET)


@pytest.fixture
def model(base: Any, fleet: Any) -> Any:
    found = fresh(base, fleet["small"])
    hotswap.prepare(found, target_rank=8)
    return found


def through_torch_save(model: Any, folder: Path) -> Any:
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


COPIES = {
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),  # noqa: S301
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_swaps_by_itself(
    way: str, base: Any, fleet: Any, model: Any, tmp_path: Path
) -> None:
    copied = COPIES[way](model, tmp_path)
    before = bits(model)
    check_swaps(copied, base, fleet)
    assert same_bits(before, bits(model))
    after = bits(copied)
    hotswap.swap(model, fleet["large"])
    assert same_bits(after, bits(copied))


def test_a_copy_is_prepared_into_one_buffer_again(model: Any, fleet: Any) -> None:
    copied = copy.deepcopy(model)
    assert hotswap.swap(copied, fleet["large"]).path == "fallback"
    hotswap.prepare(copied, target_rank=8)
    assert hotswap.swap(copied, fleet["small"]).path == "arena"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_dtype_swaps(base: Any, fleet: Any, dtype: torch.dtype) -> None:
    """The scalings stay exact: float32, or float64 in a float64 model."""
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=8)
    model.to(dtype)
    for name in ("large", "some", "small"):
        hotswap.swap(model, fleet[name])
        oracle = fresh(base, fleet[name]).to(dtype)
        exactly = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {}
        torch.testing.assert_close(run(model), run(oracle), **exactly)
        exact = lora_layers(oracle)["first"].scaling["default"]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert lora_layers(model)["first"].scaling["default"] == torch.tensor(exact, dtype=wide)


def test_a_half_precision_model_keeps_float32_adapters(base: Any, fleet: Any) -> None:
    half = copy.deepcopy(base).to(torch.bfloat16)
    model = PeftModel.from_pretrained(copy.deepcopy(half), fleet["small"]).eval()
    hotswap.prepare(model, target_rank=8)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    check_swaps(model, half, fleet)


def test_a_move_is_noticed_and_the_swap_still_right(base: Any, fleet: Any, model: Any) -> None:
    assert hotswap.swap(model, fleet["large"]).path == "arena"
    model.to("meta")
    with pytest.raises(HotswapError, match="meta device"):
        hotswap.swap(model, fleet["small"])
    again = fresh(base, fleet["small"])
    hotswap.prepare(again, target_rank=8)
    again.to(torch.float64).to(torch.float32)
    assert hotswap.swap(again, fleet["large"]).path == "fallback"
    torch.testing.assert_close(run(again), run(fresh(base, fleet["large"])))


def test_hooks_and_an_optimizer_from_before_prepare_still_work(base: Any, fleet: Any) -> None:
    model = PeftModel.from_pretrained(copy.deepcopy(base), fleet["small"], is_trainable=True)
    seen: list[int] = []
    first = lora_layers(model)["first"]
    first.lora_A["default"].register_forward_hook(lambda *_: seen.append(1))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    hotswap.prepare(model, target_rank=8)
    assert [p for p in model.parameters() if p.requires_grad] == trained or len(trained) == 8
    before = first.lora_B["default"].weight.detach().clone()
    model(TOKENS).sum().backward()
    optimizer.step()
    assert seen == [1]
    assert not torch.equal(first.lora_B["default"].weight, before)
    hotswap.swap(model, fleet["large"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["large"])))


def test_hooks_of_every_kind_on_scalings_are_those_of_one_layer(model: Any) -> None:
    scalings = [layer.scaling for layer in lora_layers(model).values()]
    plain = torch.nn.Module()
    for scaling in scalings:
        assert {name: getattr(scaling, name) for name in vars(plain) if "hook" in name} == {
            name: kept for name, kept in vars(plain).items() if "hook" in name
        }
        with pytest.raises(AttributeError, match="no attribute 'hooks'"):
            _ = scaling.hooks
    called: list[str] = []
    scalings[0].register_state_dict_pre_hook(lambda *_: called.append("state"))
    scalings[0].register_load_state_dict_pre_hook(lambda *_: called.append("load"))
    model.load_state_dict(model.state_dict())
    assert called == ["state", "load"]
    twin = copy.deepcopy(model)
    twin.load_state_dict(twin.state_dict())
    assert called == ["state", "load"] * 2


def test_a_swap_between_forward_and_backward_is_an_error(base: Any, fleet: Any) -> None:
    model = PeftModel.from_pretrained(copy.deepcopy(base), fleet["small"], is_trainable=True)
    hotswap.prepare(model, target_rank=8)
    output = model(TOKENS).sum()
    hotswap.swap(model, fleet["large"])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()
    model(TOKENS).sum().backward()


def test_prepare_and_swap_may_differ_in_inference_mode(base: Any, fleet: Any) -> None:
    for at_prepare in (True, False):
        model = fresh(base, fleet["small"])
        with torch.inference_mode(at_prepare):
            hotswap.prepare(model, target_rank=8)
        for name in ("large", "some", "small"):
            with torch.inference_mode(not at_prepare):
                hotswap.swap(model, fleet[name])
            torch.testing.assert_close(run(model), run(fresh(base, fleet[name])))


def test_a_model_built_under_inference_mode_swaps(base: Any, fleet: Any) -> None:
    with torch.inference_mode():
        model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=8)
    for name in ("large", "some", "small"):
        assert hotswap.swap(model, fleet[name]).path == "arena"
        torch.testing.assert_close(run(model), run(fresh(base, fleet[name])))


def test_low_memory_loading_swaps(base: Any, fleet: Any) -> None:
    model = PeftModel.from_pretrained(
        copy.deepcopy(base), fleet["small"], low_cpu_mem_usage=True
    ).eval()
    hotswap.prepare(model, target_rank=8)
    check_swaps(model, base, fleet, compiled=False)


def test_exported_and_traced_models_follow_a_swap(base: Any, fleet: Any, model: Any) -> None:
    exported = torch.export.export(model, (TOKENS,)).module()
    traced = torch.jit.trace(model, (TOKENS,), check_trace=False)
    for name in ("large", "some"):
        hotswap.swap(model, fleet[name])
        expected = run(fresh(base, fleet[name]))
        torch.testing.assert_close(run(traced), expected)
        torch.testing.assert_close(run(exported), expected)


def test_pefts_scale_functions_speak_of_the_new_adapter(base: Any, fleet: Any, model: Any) -> None:
    hotswap.swap(model, fleet["some"])
    for change in (
        lambda layer: layer.set_scale("default", 0.5),
        lambda layer: layer.scale_layer(3.0),
        lambda layer: layer.unscale_layer(),
        lambda layer: layer.unscale_layer(2),
    ):
        oracle = fresh(base, fleet["some"])
        for layer in [*lora_layers(oracle).values(), *lora_layers(model).values()]:
            change(layer)
        for name, layer in lora_layers(oracle).items():
            mine = lora_layers(model)[name].scaling
            assert isinstance(mine, Scalings)
            assert float(mine["default"]) == pytest.approx(layer.scaling["default"])
        hotswap.swap(model, fleet["some"])


def test_a_users_scale_is_set_back_by_a_swap_which_says_so(fleet: Any, model: Any) -> None:
    for layer in lora_layers(model).values():
        layer.scale_layer(3.0)
    assert hotswap.swap(model, fleet["large"]).scale_reset == pytest.approx(3.0)
    assert hotswap.swap(model, fleet["small"]).scale_reset is None


def test_rescaling_is_temporary(base: Any, fleet: Any, model: Any) -> None:
    hotswap.swap(model, fleet["large"])
    oracle = fresh(base, fleet["large"])
    with rescale_adapter_scale(model, 0.5), rescale_adapter_scale(oracle, 0.5):
        torch.testing.assert_close(run(model), run(oracle))
    torch.testing.assert_close(run(model), run(oracle))
    hotswap.swap(model, fleet["small"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["small"])))


def test_pefts_dora_cache_forgets_the_old_adapter(base: Any, tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path, base, {k: {**FLEET[k], "use_dora": True} for k in FLEET})
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, plan=hotswap.plan([*fleet.values()]))
    with DoraCaching():
        for folder in fleet.values():
            hotswap.swap(model, folder)
            torch.testing.assert_close(run(model), run(fresh(base, folder)))
            torch.testing.assert_close(run(model), run(fresh(base, folder)))


def test_an_adapter_that_was_added_after_prepare_is_refused(
    base: Any, fleet: Any, model: Any
) -> None:
    model.load_adapter(fleet["large"], "late")
    with pytest.raises(NotPreparedError, match=r"not prepared for adapter 'late'.*prepare"):
        hotswap.swap(model, fleet["small"], adapter_name="late")
    hotswap.swap(model, fleet["large"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["large"])))
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, fleet["some"], adapter_name="late")
    model.set_adapter("late")
    torch.testing.assert_close(run(model), run(fresh(base, fleet["some"])))


def test_an_adapter_that_was_deleted_and_added_again_is_refused(
    base: Any, fleet: Any, model: Any
) -> None:
    model.load_adapter(fleet["large"], "other")
    model.set_adapter("other")
    model.delete_adapter("default")
    model.load_adapter(fleet["small"], "default")
    with pytest.raises(NotPreparedError, match="'default'"):
        hotswap.swap(model, fleet["large"])
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, fleet["some"])
    model.set_adapter("default")
    torch.testing.assert_close(run(model), run(fresh(base, fleet["some"])))


def test_an_adapter_that_was_loaded_over_the_prepared_one_swaps_right(
    base: Any, fleet: Any, model: Any
) -> None:
    model.load_adapter(fleet["small"], "default")
    hotswap.swap(model, fleet["some"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["some"])))


@pytest.mark.parametrize("way", ["linear", "cat", "svd", "ties", "magnitude_prune"])
def test_weighted_adapters_are_those_of_an_unprepared_model(
    way: str, base: Any, fleet: Any
) -> None:
    options = {"density": 0.5} if way in ("ties", "magnitude_prune") else {}
    outputs = []
    for prepares in (False, True):
        model = fresh(base, fleet["small"])
        model.load_adapter(fleet["small"], "other")
        if prepares:
            hotswap.prepare(model, target_rank=8)
        model.add_weighted_adapter(
            ["default", "other"], [0.5, 0.25], "mix", combination_type=way, **options
        )
        model.set_adapter("mix")
        outputs.append(run(model))
    torch.testing.assert_close(outputs[1], outputs[0])


def test_the_bytes_held_are_those_of_the_plan(base: Any, tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path, base, {**FLEET, "dora": {"r": 3, "use_dora": True}})
    plan = hotswap.plan([*fleet.values()])
    model = hotswap.load(copy.deepcopy(base), plan, fleet["small"])
    assert hotswap.prepare(model, plan=plan).bytes == plan.padded_bytes
    placement = placement_of(model, "default")
    assert placement.arena is not None
    assert sum(b.numel() for b in placement.arena.buffers.values()) == plan.padded_bytes
    assert {
        name: slots(la, "default")[0].rank for name, la in lora_layers(model).items()
    } == plan.ranks
