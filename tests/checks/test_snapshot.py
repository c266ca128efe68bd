"""Snapshots name what changed and restore it bit for bit; comparisons know their tolerances."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners._buffer_dict import BufferDict
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch import nn

from hotswap.checks.equivalence import compare, first_difference
from hotswap.checks.snapshot import Snapshot
from hotswap.engine.layout.slots import lora_layers
from tests.support.models import fresh, micro, write_adapter

FIRST = {"r": 2, "lora_alpha": 4, "target_modules": ["first"]}


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return fresh(micro(), write_adapter(tmp_path / "a", micro(), **FIRST))


def layer(model: Any) -> Any:
    return lora_layers(model)["first"]


def weight(model: Any) -> torch.Tensor:
    tensor: torch.Tensor = layer(model).lora_A["default"].weight
    return tensor


def move(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data.clone()


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "value": (
        lambda m: weight(m).data.view(-1)[0].neg_(),
        "lora_A.default.weight changed its values",
    ),
    "base weight": (lambda m: layer(m).base_layer.weight.data.add_(1), "base_layer.weight changed"),
    "address": (lambda m: move(weight(m)), "changed its address"),
    "flag": (lambda m: weight(m).requires_grad_(True), "changed its requires_grad"),
    "scaling": (lambda m: layer(m).set_scale("default", 3), "scaling changed"),
    "rank": (lambda m: layer(m).r.update(default=7), "first.r changed"),
    "config": (
        lambda m: setattr(m.peft_config["default"], "r", 7),
        "peft_config['default'].r changed: 2 to 7",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_kind_of_change_is_named_and_undone(model: Any, kind: str) -> None:
    change, named = CHANGES[kind]
    snapshot = Snapshot.take(model)
    assert snapshot.changes() == []
    change(model)
    assert any(named in found for found in snapshot.changes())
    snapshot.restore()
    assert snapshot.changes() == []


def test_a_parameter_that_peft_replaced_comes_back(model: Any, tmp_path: Path) -> None:
    wide = write_adapter(tmp_path / "wide", micro(), **{**FIRST, "r": 6})
    snapshot, parameter = Snapshot.take(model), weight(model)
    hotswap_adapter(model, str(wide), adapter_name="default")
    assert type(weight(model)) is torch.Tensor
    assert any("changed its type: Parameter to Tensor" in found for found in snapshot.changes())
    snapshot.restore()
    assert weight(model) is parameter
    assert type(parameter) is nn.Parameter
    assert snapshot.changes() == []


def assign(model: Any) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def safe_merge(model: Any) -> None:
    model.merge_adapter(safe_merge=True)
    model.unmerge_adapter()


MOVES: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "cast": (
        lambda m: m.to(torch.bfloat16),
        "first.base_layer.weight changed its address, dtype: torch.float32 to torch.bfloat16",
        "model.to(dtype) or half()",
    ),
    "freeze": (
        lambda m: weight(m).requires_grad_(True),
        "first.lora_A.default.weight changed its requires_grad: False to True",
        "set_adapter()",
    ),
    "assign": (assign, "embed.weight changed its address", "load_state_dict(assign=True)"),
    "safe merge": (safe_merge, "first.base_layer.weight changed its address", "safe_merge=True"),
    "layout": (
        lambda m: setattr(weight(m), "data", weight(m).data.t().contiguous().t()),
        "first.lora_A.default.weight changed its address, stride",
        "use copy_()",
    ),
}


@pytest.mark.parametrize("kind", MOVES)
def test_what_moved_is_said_with_the_call_that_typically_does_it(model: Any, kind: str) -> None:
    move_it, named, usual = MOVES[kind]
    snapshot = Snapshot.take(model)
    move_it(model)
    (found,) = [text for text in snapshot.changes(values=False) if text.startswith(named)]
    assert usual in found


def replace_tensors(model: Any) -> None:
    layer(model).lora_A["default"] = copy.deepcopy(layer(model).lora_A["default"])


def replace_layer(model: Any) -> None:
    model.base_model.model.first = copy.deepcopy(layer(model))


def same_storage(model: Any) -> None:
    lora = layer(model).lora_A["default"]
    lora.weight = nn.Parameter(lora.weight.data, requires_grad=lora.weight.requires_grad)


STRUCTURE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "tensors": (replace_tensors, "first.lora_A.default was replaced by another Linear"),
    "layer": (replace_layer, "first was replaced by another Linear"),
    "parameter": (same_storage, "first.lora_A.default.weight was replaced by another Parameter"),
    "deleted": (lambda m: m.base_model.model.__delattr__("conv"), "conv is gone"),
    "tensor deleted": (lambda m: layer(m).base_layer.__delattr__("bias"), "bias is gone"),
    "buffer": (
        lambda m: layer(m).register_buffer("extra", torch.zeros(1)),
        "first.extra was added",
    ),
}


@pytest.mark.parametrize("kind", STRUCTURE)
def test_another_structure_is_named_and_undone(model: Any, kind: str) -> None:
    change, named = STRUCTURE[kind]
    snapshot = Snapshot.take(model)
    change(model)
    assert any(named in found for found in snapshot.changes(values=False))
    snapshot.restore()
    assert snapshot.changes() == []


def test_values_are_looked_up_in_what_replaced_a_module(model: Any) -> None:
    snapshot = Snapshot.take(model)
    replace_layer(model)
    assert snapshot.changes(storage=False) == []  # equal ones
    weight(model).data.add_(1)
    assert snapshot.changes(storage=False) == ["first.lora_A.default.weight changed its values"]


def test_a_scaling_may_be_any_module_of_tensors(model: Any) -> None:
    scaling = BufferDict({"default": torch.tensor(2.0)})
    del layer(model).scaling
    layer(model).scaling = scaling
    snapshot = Snapshot.take(model)
    assert snapshot.changes() == []
    scaling["default"].fill_(3)
    assert snapshot.changes() == ["first.scaling.default changed its values"]
    snapshot.restore()
    assert scaling["default"] == 2


def test_what_a_deployment_notes_on_its_modules_is_brought_back(model: Any) -> None:
    model.in_place, layer(model).notes = "a", {"rank": 2}
    snapshot, notes = Snapshot.take(model), layer(model).notes
    model.in_place, model.later = "b", 1
    notes["rank"] = 4
    snapshot.restore()
    assert (model.in_place, notes, hasattr(model, "later")) == ("a", {"rank": 2}, False)
    assert layer(model).notes is notes


def test_a_scaling_that_became_a_number_is_said_with_what_does_it(model: Any) -> None:
    prepare_model_for_compiled_hotswap(model, target_rank=4)
    snapshot = Snapshot.take(model)
    layer(model).set_scale("default", 3)
    (found,) = snapshot.changes(values=False)
    assert found.startswith("first.scaling.default is no tensor any more (PEFT's set_scale()")


def test_a_model_between_two_snapshots_is_neither(model: Any) -> None:
    tensors = [t for t in layer(model).parameters() if t.is_floating_point()]
    before = Snapshot.take(model)
    old = [tensor.detach().clone() for tensor in tensors]
    for tensor in tensors:
        tensor.data.add_(1.0)
    is_between = before.between(Snapshot.take(model))
    assert not is_between()
    tensors[0].data.copy_(old[0])
    assert is_between()
    before.restore()
    assert not is_between()


def test_what_does_not_move_storage_is_no_change(model: Any) -> None:
    snapshot = Snapshot.take(model)
    model.train()
    model.eval()
    model.to(torch.float32)
    model.merge_adapter()
    model.unmerge_adapter()
    assert snapshot.changes(values=False) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bits_are_compared_not_numbers(dtype: torch.dtype) -> None:
    module = nn.Linear(2, 1).to(dtype)
    module.weight.data = torch.tensor([[float("nan"), 0.0]], dtype=dtype)
    snapshot = Snapshot.take(module)
    assert snapshot.changes() == []
    module.weight.data[0, 1] = -0.0
    assert snapshot.changes(storage=False) == [".weight changed its values"]


@pytest.mark.parametrize(
    ("dtype", "inside", "outside"),
    [(torch.float32, 1e-5, 1e-3), (torch.bfloat16, 2e-2, 2e-1), (torch.float64, 1e-10, 1e-6)],
)
def test_the_tolerance_is_that_of_the_dtype(
    dtype: torch.dtype, inside: float, outside: float
) -> None:
    one = torch.ones(3, dtype=dtype)
    assert compare(one + inside, one).equal
    assert not compare(one + outside, one).equal


def test_nan_shapes_and_counts_are_never_equal() -> None:
    one = torch.ones(2)
    assert not compare(torch.tensor([1.0, float("nan")]), one).equal
    assert not compare(torch.ones(3), one).equal
    assert not compare((one, one), one).equal
    assert not compare(torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)).equal


def test_the_first_module_that_differs_is_named() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    other.load_state_dict(one.state_dict())
    call: Callable[[nn.Module], Any] = lambda m: m(torch.ones(1, 2))  # noqa: E731
    assert first_difference(other, one, call) is None
    other[1].bias.data.add_(1.0)
    assert first_difference(other, one, call) == "1"
