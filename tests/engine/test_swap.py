"""hotswap.engine: prepare, swap and load on every supported kind of layer."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

import hotswap
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.slots import lora_layers, slots
from hotswap.errors import (
    AdapterError,
    AlreadyCompiledError,
    NoAdapterError,
    NotPreparedError,
    RankTooLargeError,
)
from tests.support.models import TARGETS, Around, fresh, micro, run, seeded, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=[1, 2], ids=["groups1", "groups2"])
def base(request: pytest.FixtureRequest) -> Any:
    return micro(groups=request.param)


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    configs: dict[str, dict[str, Any]] = {
        "small": {"r": 2, "lora_alpha": 4},
        "large": {"r": 8, "lora_alpha": 3},
        "patterned": {
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"first": 6},
            "alpha_pattern": {"second": 1},
        },
        "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
        "subset": {"r": 4, "lora_alpha": 8, "target_modules": ["first", "conv"]},
    }
    return {
        name: write_adapter(tmp_path / name, base, seed=seed, **config)
        for seed, (name, config) in enumerate(configs.items())
    }


def prepared(base: Any, folder: Path, **options: Any) -> Any:
    model = fresh(base, folder)
    hotswap.prepare(model, **(options or {"target_rank": 8}))
    return model


def bits(model: Any) -> list[torch.Tensor]:
    values = [*model.parameters(), *model.buffers()]
    return [value.detach().clone() for value in values]


def same_bits(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_prepare_keeps_the_output_and_the_parameter_objects(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    before, parameters = run(model), {id(p) for p in model.parameters()}
    report = hotswap.prepare(model, target_rank=8)
    assert report.padded == 8
    assert set(report.ranks.values()) == {8}
    assert {id(p) for p in model.parameters()} == parameters
    torch.testing.assert_close(run(model), before)
    assert all(isinstance(layer.scaling, Scalings) for layer in lora_layers(model).values())


def test_preparing_twice_changes_nothing_more(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet["small"])
    before = bits(model)
    assert hotswap.prepare(model, target_rank=8).padded == 0
    assert same_bits(before, bits(model))


def test_preparing_again_with_a_larger_rank_widens(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet["small"], target_rank=4)
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, fleet["large"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["large"])))


def test_every_swap_equals_a_fresh_load(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet["small"])
    for one, other in itertools.permutations(fleet, 2):
        hotswap.swap(model, fleet[one])
        hotswap.swap(model, fleet[other])
        torch.testing.assert_close(run(model), run(fresh(base, fleet[other])))


def test_swapping_there_and_back_leaves_no_trace(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet["small"])
    hotswap.swap(model, fleet["subset"])
    before = bits(model)
    hotswap.swap(model, fleet["large"])
    assert not same_bits(before, bits(model))
    hotswap.swap(model, fleet["subset"])
    assert same_bits(before, bits(model))


def test_swapping_in_none_gives_the_base_model(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet["large"])
    hotswap.swap(model, None)
    assert torch.equal(run(model), run(base))
    assert hotswap.active(model) is None


def test_a_compiled_model_swaps_without_a_recompile(base: Any, fleet: Any) -> None:
    torch._dynamo.reset()
    model = prepared(base, fleet["small"])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    run(compiled)
    with hotswap.forbid_recompiles(compiled) as log:
        for folder in fleet.values():
            hotswap.swap(compiled, folder)
            torch.testing.assert_close(run(compiled), run(fresh(base, folder)))
        hotswap.swap(compiled, None)
        run(compiled)
    assert log.total_hits == len(fleet) + 1


def test_scale_follows_the_new_adapter_without_a_recompile(base: Any, fleet: Any) -> None:
    torch._dynamo.reset()
    model = prepared(base, fleet["small"])
    compiled = torch.compile(model, backend="eager")
    run(compiled)
    with hotswap.forbid_recompiles(compiled):
        for name in ("large", "rslora", "patterned"):
            hotswap.swap(compiled, fleet[name])
            oracle = fresh(base, fleet[name])
            for layer in lora_layers(oracle).values():
                layer.set_scale("default", 0.5)
            hotswap.set_scale(compiled, 0.5)
            torch.testing.assert_close(run(compiled), run(oracle))
            hotswap.set_scale(compiled, 1.0)
            for layer in lora_layers(model).values():
                layer.set_scale("default", 0.5)  # PEFT's own, on the prepared model
            torch.testing.assert_close(run(compiled), run(oracle))


def test_a_saved_adapter_reloads_at_its_own_rank(base: Any, fleet: Any, tmp_path: Path) -> None:
    model = prepared(base, fleet["small"])
    for name, folder in fleet.items():
        hotswap.swap(model, folder)
        model.save_pretrained(tmp_path / "saved" / name)
        saved = hotswap.AdapterSpec.read(tmp_path / "saved" / name)
        original = hotswap.AdapterSpec.read(folder)
        assert saved.modules == original.modules
        torch.testing.assert_close(
            run(fresh(base, tmp_path / "saved" / name)), run(fresh(base, folder))
        )


def test_a_state_dict_round_trip_pads_again(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet["subset"] if base.conv.groups == 9 else fleet["small"])
    hotswap.swap(model, fleet["subset"])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = run(model)
    model.load_state_dict(state, strict=True)
    assert torch.equal(run(model), before)


OTHERS = ("default_2", "adefault", "first", "0", "weight", "lora", "embed")


def test_other_adapters_are_untouched_whatever_their_names(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    for other in OTHERS:
        model.load_adapter(fleet["large"], other)
    hotswap.prepare(model, target_rank=8)
    layers = lora_layers(model)
    others = [
        slot.tensor for layer in layers.values() for name in OTHERS for slot in slots(layer, name)
    ]
    before = [value.detach().clone() for value in others]
    hotswap.swap(model, fleet["subset"])
    assert same_bits(before, others)
    model.set_adapter("default_2")
    torch.testing.assert_close(run(model), run(fresh(base, fleet["large"])))


def test_a_rank_above_the_prepared_one_is_refused_before_anything_changes(
    base: Any, fleet: Any, tmp_path: Path
) -> None:
    model = prepared(base, fleet["small"])
    before = bits(model)
    wide = write_adapter(tmp_path / "wide", base, r=10)
    with pytest.raises(RankTooLargeError, match=r"10.*8.*prepare"):
        hotswap.swap(model, wide)
    assert same_bits(before, bits(model))


def test_an_adapter_for_another_base_is_refused(base: Any, fleet: Any, tmp_path: Path) -> None:
    model = prepared(base, fleet["small"])
    other = micro()
    other.first = torch.nn.Linear(8, 13)
    wrong = write_adapter(tmp_path / "wrong", other, r=4, target_modules=["first"])
    with pytest.raises(AdapterError, match="first") as caught:
        hotswap.swap(model, wrong)
    assert [f.code for f in caught.value.findings] == ["HSW107"]


def test_nan_is_refused_and_named(base: Any, fleet: Any) -> None:
    model = prepared(base, fleet["small"])
    before = bits(model)
    good = fresh(base, fleet["large"])
    state = {k: v.clone() for k, v in get_peft_model_state_dict(good).items()}
    name = next(k for k in state if "first.lora_B" in k)
    state[name][0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"first\.lora_B.*NaN"):
        hotswap.swap(model, state, config=good.peft_config["default"])
    assert same_bits(before, bits(model))
    state[name][0, 0] = 0.0
    hotswap.swap(model, state, config=good.peft_config["default"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_found_in_the_last_value_of_every_tensor(
    dtype: torch.dtype, base: Any, fleet: Any
) -> None:
    model = hotswap.load(
        copy.deepcopy(base).to(dtype), hotswap.plan([*fleet.values()]), fleet["small"]
    )
    for part in lora_layers(model)["second"].lora_A.values():
        part.to(torch.float32)  # another dtype in the midst
    hotswap.prepare(model, plan=hotswap.plan([*fleet.values()]))
    for name in ("large", "subset"):
        loaded = fresh(base, fleet[name])
        good, config = get_peft_model_state_dict(loaded), loaded.peft_config["default"]
        hotswap.swap(model, good, config=config)
        before = bits(model)
        for key, value in good.items():
            broken = value.clone()
            broken.view(-1)[-1] = float("nan")
            with pytest.raises(AdapterError, match="holds NaN") as refused:
                hotswap.swap(model, {**good, key: broken}, config=config)
            assert len(refused.value.findings) == 1
        assert same_bits(before, bits(model))
        hotswap.swap(model, good, config=config)
        assert same_bits(before, bits(model))


def test_an_unprepared_model_and_an_unknown_adapter_name_are_refused(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    with pytest.raises(NotPreparedError, match="prepare"):
        hotswap.swap(model, fleet["large"])
    hotswap.prepare(model, target_rank=8)
    with pytest.raises(NoAdapterError, match="default"):
        hotswap.swap(model, fleet["large"], adapter_name="other")
    with pytest.raises(NoAdapterError):
        hotswap.prepare(base)


def test_prepare_after_compile_is_refused_and_can_be_a_warning(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    with pytest.raises(AlreadyCompiledError, match=r"before torch\.compile"):
        hotswap.prepare(torch.compile(model), target_rank=8)
    assert not isinstance(lora_layers(model)["first"].scaling, Scalings)
    with pytest.warns(UserWarning, match=r"before torch\.compile"):
        hotswap.prepare(torch.compile(model), target_rank=8, check_compiled="warn")


def test_load_takes_adapters_with_different_targets(base: Any, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", base, r=4, lora_alpha=8, target_modules=["first"])
    two = write_adapter(tmp_path / "two", base, r=2, lora_alpha=5, target_modules=["embed", "conv"])
    model = hotswap.load(copy.deepcopy(base), hotswap.plan([one, two]), one)
    for folder in (one, two, one):
        hotswap.swap(model, folder)
        torch.testing.assert_close(run(model), run(fresh(base, folder)))
    assert isinstance(model, PeftModel)
    assert {name: s[0].rank for name, s in _slots(model).items()} == {
        "embed": 2,
        "first": 4,
        "conv": 2,
    }


def _slots(model: Any) -> dict[str, Any]:
    return {name: slots(layer, "default") for name, layer in lora_layers(model).items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scalings_survive_a_change_of_dtype_and_a_deep_copy(
    base: Any, fleet: Any, dtype: torch.dtype
) -> None:
    model = prepared(base, fleet["large"])
    copied = copy.deepcopy(model).to(dtype)
    scaling = lora_layers(copied)["first"].scaling
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert scaling["default"].dtype == wide
    assert float(scaling["default"]) == 0.375
    hotswap.swap(copied, fleet["small"])
    assert float(lora_layers(model)["first"].scaling["default"]) == 0.375
    assert float(scaling["default"]) == 2.0


def test_a_lora_bias_is_swapped_and_forgotten(base: Any, tmp_path: Path) -> None:
    targets = [t for t in TARGETS if t != "embed"]
    with_bias = write_adapter(tmp_path / "b", base, r=4, lora_bias=True, target_modules=targets)
    without = write_adapter(tmp_path / "w", base, r=4, target_modules=targets, seed=3)
    model = prepared(base, with_bias, target_rank=8)
    for folder in (without, with_bias):
        hotswap.swap(model, folder)
        torch.testing.assert_close(run(model), run(fresh(base, folder)))


def packed(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file whose tensors lie where they may, whatever their dtypes are aligned to."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16"}
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        data += raw
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "adapter_model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + data
    )


def test_a_file_packed_tighter_than_its_dtypes_is_read_anew_every_time(tmp_path: Path) -> None:
    base = seeded(lambda: Around(torch.nn.Linear(3, 5)))
    folders = []
    for name in ("one", "two"):
        folders.append(write_adapter(tmp_path / name, base, r=1, target_modules=["layer"]))
        tensors = load_file(folders[-1] / "adapter_model.safetensors")
        first = next(key for key in tensors if "lora_A" in key)  # (1, 3) in bfloat16: 6 bytes
        other = next(key for key in tensors if "lora_B" in key)
        values = {first: tensors[first].bfloat16(), other: torch.randn(5, 1)}
        packed(folders[-1], values)
    inputs = torch.randn(2, 3)
    model = hotswap.load(copy.deepcopy(base), hotswap.plan(folders), folders[0])
    for _ in range(2):
        for folder in folders:
            hotswap.swap(model, folder)
            torch.testing.assert_close(run(model, inputs), run(fresh(base, folder), inputs))
