"""fits: what swap() would refuse, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hotswap.adapters.fit import fits
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.modules import TokenRows
from hotswap.adapters.plan import ModulePlan, SavedTensor, SwapPlan
from hotswap.adapters.planner import plan
from hotswap.adapters.spec import AdapterSpec
from tests.support.adapter_files import Tensors, write_adapter
from tests.support.adapter_specs import conv, linear, only, plan_conv, spec_of, trained

HEAD, BIAS = TensorInfo("F32", (3, 16), 0, 192), TensorInfo("F32", (3,), 192, 204)


def test_an_adapter_inside_the_plan_fits() -> None:
    found = SwapPlan({"q": ModulePlan("linear", 8, 32, 16), "c": plan_conv(4, 2)})
    assert fits(found, spec_of(q=linear(4))) == ()
    assert fits(found, spec_of(q=linear(8), c=conv(2, 2))) == ()


def test_a_rank_above_the_plan_is_refused_with_both_ranks() -> None:
    found = SwapPlan({"q": ModulePlan("linear", 8, 32, 16)})
    finding = only(found, spec_of(q=linear(16)))
    assert finding.code == "HSW105"
    assert finding.message == "has rank 16, the plan allows 8"
    assert "target_rank=16" in finding.remedy
    assert "before torch.compile" in finding.remedy


def test_a_module_outside_the_plan_is_refused_with_the_closest_one() -> None:
    found = SwapPlan({"layers.0.q_proj": ModulePlan("linear", 8, 32, 16)})
    finding = only(found, spec_of(**{"layers.0.q_prj": linear()}))
    assert finding.code == "HSW106"
    assert "closest match: layers.*.q_proj" in finding.message
    finding = only(found, spec_of(**{"layers.1.q_proj": linear()}))
    assert "closest match: 1 other layers.*.q_proj" in finding.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "embedding"}, "is of kind linear"),
        ({"in_features": 33}, "in_features 32, the plan has 33"),
        ({"out_features": 17}, "out_features 16, the plan has 17"),
        ({"kernel": (3,)}, "kernel none, the plan has 3"),
        ({"groups": 2}, "groups 1, the plan has 2"),
    ],
)
def test_other_dimensions_mean_another_base_model(change: dict[str, Any], words: str) -> None:
    place = replace(ModulePlan("linear", 8, 32, 16), **change)
    finding = only(SwapPlan({"q": place}), spec_of(q=linear()))
    assert finding.code == "HSW107"
    assert words in finding.message


def test_a_bias_outside_the_plan_is_refused() -> None:
    found = SwapPlan({"q": ModulePlan("linear", 8, 32, 16)})
    biased = replace(linear(), bias=True)
    assert only(found, spec_of(q=biased)).code == "HSW106"
    assert fits(plan([spec_of(q=biased), spec_of(q=linear())]), spec_of(q=biased)) == ()


def test_a_grouped_convolution_needs_a_divisible_rank() -> None:
    found = SwapPlan({"c": plan_conv(5, 2)})
    finding = only(found, spec_of(c=conv(4, 2)))
    assert finding.code == "HSW104"


def test_a_magnitude_outside_the_plan_is_refused() -> None:
    dora = replace(linear(), dora=True)
    assert only(SwapPlan({"q": ModulePlan("linear", 8, 32, 16)}), spec_of(q=dora)).code == "HSW106"
    assert fits(plan([spec_of(q=dora), spec_of(q=linear())]), spec_of(q=linear())) == ()


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (trained({"head.weight": HEAD, "head.bias": BIAS}, {}), "HSW106"),
        (trained({"head.bias": BIAS}, {}), "HSW103"),
        (trained({"head.weight": TensorInfo("F32", (4, 16), 0, 256)}, {}), "HSW107"),
        (trained({}, {"embed": TokenRows((7,), 16, "F32")}), "HSW106"),
        (trained({}, {"other": TokenRows((1,), 16, "F32")}), "HSW106"),
        (trained({}, {"embed": TokenRows((1,), 8, "F32")}), "HSW107"),
    ],
)
def test_what_is_trained_outside_the_plan_is_refused(spec: AdapterSpec, code: str) -> None:
    found = SwapPlan(
        {"q": ModulePlan("linear", 8, 32, 16)},
        saved={"head.weight": SavedTensor((3, 16), "F32")},
        tokens={"embed": TokenRows((1, 5), 16, "F32")},
    )
    assert {finding.code for finding in fits(found, spec)} >= {code}


@pytest.mark.parametrize(
    ("carried", "missing"),
    [
        ({"head.weight": HEAD}, ["head.bias"]),
        ({"head.bias": BIAS}, ["head.weight"]),
        ({}, ["head.bias", "head.weight"]),
        ({"head.weight": HEAD, "head.bias": BIAS}, []),
    ],
)
def test_a_module_that_the_config_names_is_carried_whole(
    carried: dict[str, TensorInfo], missing: list[str]
) -> None:
    saved = {"head.weight": SavedTensor((3, 16), "F32"), "head.bias": SavedTensor((3,), "F32")}
    found = SwapPlan({"q": ModulePlan("linear", 8, 32, 16)}, saved=saved)
    named = replace(trained(carried, {}), config={"modules_to_save": ["head"]})
    findings = fits(found, named)
    assert sorted(one.where.partition("::")[2] for one in findings) == missing
    assert {one.code for one in findings} <= {"HSW103"}


def test_an_adapter_whose_config_names_no_head_needs_none() -> None:
    saved = {"head.weight": SavedTensor((3, 16), "F32")}
    found = SwapPlan({"q": ModulePlan("linear", 8, 32, 16)}, saved=saved)
    assert fits(found, trained({}, {})) == ()


def test_adapters_must_target_the_same_parameters() -> None:
    one = replace(linear(), kind="parameter", experts=2, parameters=("down", "up"))
    found = plan([spec_of(**{"x": one, "x.base_layer": one})])
    assert only(found, spec_of(x=one)).code == "HSW107"
    other = replace(one, parameters=("up",))
    assert "has no weights for a parameter" in only(found, spec_of(x=other)).message
    third = replace(one, parameters=("gate",))
    messages = [finding.message for finding in fits(found, spec_of(x=third))]
    assert any("targets parameters gate" in message for message in messages)


def test_what_is_wrong_with_the_adapter_itself_is_included(tmp_path: Path) -> None:
    extra: Tensors = {"base_model.model.other.weight": ("F32", (2,))}
    spec = AdapterSpec.read(write_adapter(tmp_path, extra=extra))
    assert only(plan([spec]), spec).code == "HSW108"
