"""plan and fits: the envelope of a fleet, and what is outside of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotswap.adapters.fit import fits
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.modules import ModuleSpec, TokenRows
from hotswap.adapters.plan import ALIGNMENT, ModulePlan, SavedTensor, SwapPlan
from hotswap.adapters.planner import plan
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import HotswapError, UnreadableAdapterError
from tests.support.adapter_files import Tensors, write_adapter

QV = {"q_proj": (32, 16), "v_proj": (32, 8)}


def spec_of(name: str = "a", **modules: ModuleSpec) -> AdapterSpec:
    return AdapterSpec(name, {}, modules, 0, ())


def linear(rank: int = 8, alpha: float = 16.0) -> ModuleSpec:
    return ModuleSpec("linear", rank, alpha, alpha / rank, 32, 16, (), 1, "F32", False)


def conv(rank: int, groups: int) -> ModuleSpec:
    return ModuleSpec("conv", rank, 8.0, 8.0 / rank, 6, 12, (3, 3), groups, "F32", False)


def only(found: SwapPlan, spec: AdapterSpec) -> Any:
    (finding,) = fits(found, spec)
    return finding


def test_a_plan_is_the_union_of_modules_with_the_largest_ranks(tmp_path: Path) -> None:
    a = write_adapter(tmp_path / "a", modules=QV, rank=4)
    b = write_adapter(tmp_path / "b", modules={"q_proj": (32, 16)}, rank=16, alpha=8)
    found = plan([a, AdapterSpec.read(b)])
    assert found.ranks == {"q_proj": 16, "v_proj": 4}
    assert found.target_rank == 16
    assert found.conflicts == ()
    assert found.need == "required"
    assert found.reasons == (
        "q_proj: ranks 4, 16",
        "q_proj: scalings 0.5, 4",
        "v_proj: in 1 of 2 adapters",
    )


def test_memory_is_counted_in_the_widest_dtype(tmp_path: Path) -> None:
    a = write_adapter(tmp_path / "a", modules=QV, rank=4, dtype="BF16")
    b = write_adapter(tmp_path / "b", modules={"q_proj": (32, 16)}, rank=16)
    found = plan([a, b])
    assert found.dtype == "F32"
    assert found.padded_bytes == 4 * (16 * 32 + 16 * 16 + 4 * 32 + 8 * 4) + 2 * ALIGNMENT
    assert found.uniform_bytes == 4 * (16 * 32 + 16 * 16 + 16 * 32 + 8 * 16) + 2 * ALIGNMENT
    assert found.unpadded_bytes == 4 * (16 * 32 + 16 * 16)


def test_every_tensor_and_scaling_is_aligned() -> None:
    found = SwapPlan({"q": ModulePlan("linear", 1, 3, 5, bias=True, dora=True)})
    assert (
        found.padded_bytes == 5 * ALIGNMENT
    )  # A, B, bias, magnitude, scaling: all smaller than it


def test_equal_adapters_need_no_preparation() -> None:
    assert plan([spec_of(q=linear()), spec_of(q=linear())]).need == "not needed"


def test_a_single_adapter_needs_no_preparation() -> None:
    assert plan([spec_of(q=linear())]).need == "not needed"


def test_missing_modules_alone_recommend_preparation() -> None:
    found = plan([spec_of(q=linear(), v=linear()), spec_of(q=linear())])
    assert found.need == "recommended"
    assert found.reasons == ("v: in 1 of 2 adapters",)


@pytest.mark.parametrize("other", [linear(rank=4, alpha=8.0), linear(alpha=8.0)])
def test_another_rank_or_scaling_requires_preparation(other: ModuleSpec) -> None:
    assert plan([spec_of(q=linear()), spec_of(q=other)]).need == "required"


def test_reasons_stay_few_in_a_deep_model() -> None:
    names = [f"layers.{i}.{kind}" for i in range(40) for kind in "abcdefgh"]
    fleet = [spec_of(**{name: linear(rank) for name in names}) for rank in (4, 8, 16)]
    found = plan(fleet)
    assert found.reasons[0] == "layers.*.a (40 modules): ranks 4, 8, 16"
    assert len(found.reasons) <= 10
    assert len(str(found).splitlines()) < 40


def test_adapters_of_another_base_model_are_conflicts(tmp_path: Path) -> None:
    a = write_adapter(tmp_path / "a", modules=QV)
    b = write_adapter(tmp_path / "b", modules={**QV, "v_proj": (64, 8)}, rank=64)
    found = plan([a, b])
    assert [(f.code, f.where) for f in found.conflicts] == [("HSW107", f"{b}::v_proj")]
    assert found.modules["v_proj"].rank == 8


def test_an_unsupported_feature_is_a_conflict(tmp_path: Path) -> None:
    found = plan([write_adapter(tmp_path, config={"use_qalora": True})])
    assert [f.code for f in found.conflicts] == ["HSW102"]


def test_every_unreadable_adapter_is_named(tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good")
    with pytest.raises(UnreadableAdapterError) as caught:
        plan([tmp_path / "x", good, tmp_path / "y"])
    assert [f.where for f in caught.value.findings] == [str(tmp_path / "x"), str(tmp_path / "y")]


def test_no_adapters_are_refused() -> None:
    with pytest.raises(HotswapError, match="at least one"):
        plan([])


def test_a_printed_plan_tells_a_newcomer_what_to_do(tmp_path: Path) -> None:
    a = write_adapter(tmp_path / "french", modules=QV, rank=4)
    b = write_adapter(tmp_path / "german", modules=QV, rank=16, rank_pattern={"v_proj": 8})
    text = str(plan([a, b]))
    for words in (
        "2 adapters",
        "german  8 to 16  16     2",
        "Target rank: 16",
        "v_proj: rank 8 is enough",
        "Preparation: required",
        "before torch.compile",
        "prepared with this plan",
        "Conflicts\n  none",
    ):
        assert words in text


def test_an_adapter_inside_the_plan_fits() -> None:
    found = SwapPlan({"q": ModulePlan("linear", 8, 32, 16), "c": plan_conv(4, 2)})
    assert fits(found, spec_of(q=linear(4))) == ()
    assert fits(found, spec_of(q=linear(8), c=conv(2, 2))) == ()


def plan_conv(rank: int, groups: int) -> ModulePlan:
    return ModulePlan("conv", rank, 6, 12, (3, 3), groups)


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


def trained(saved: dict[str, TensorInfo], tokens: dict[str, TokenRows]) -> AdapterSpec:
    config = {"modules_to_save": ["head"]}
    return replace(spec_of(q=linear()), config=config, saved=saved, tokens=tokens)


def test_whole_modules_and_token_rows_are_joined() -> None:
    head = {"head.weight": TensorInfo("F32", (3, 16), 0, 192)}
    one = trained(head, {"embed": TokenRows((5, 1), 16, "F32")})
    two = trained({}, {"embed": TokenRows((2, 1), 16, "F32")})
    found = plan([one, two, spec_of(q=linear())])
    assert found.conflicts == ()
    assert found.saved == {"head.weight": SavedTensor((3, 16), "F32")}
    assert found.tokens["embed"].indices == (1, 2, 5)
    assert found.modules_to_save == ("head",)
    assert found.need == "required"
    assert found.padded_bytes - SwapPlan(found.modules).padded_bytes == 3 * 16 * 4 + 3 * 16 * 4
    assert SwapPlan.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (trained({"head.bias": TensorInfo("F32", (3,), 0, 12)}, {}), "HSW106"),
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
    assert only(found, spec).code == code


def test_adapters_must_target_the_same_parameters() -> None:
    one = replace(linear(), kind="parameter", experts=2, parameters=("down", "up"))
    found = plan([spec_of(**{"x": one, "x.base_layer": one})])
    assert only(found, spec_of(x=one)).code == "HSW107"
    other = replace(one, parameters=("up",))
    assert "targets parameters" in fits(found, spec_of(x=other))[0].message


def test_what_is_wrong_with_the_adapter_itself_is_included(tmp_path: Path) -> None:
    extra: Tensors = {"other.weight": ("F32", (2,))}
    spec = AdapterSpec.read(write_adapter(tmp_path, extra=extra))
    assert only(plan([spec]), spec).code == "HSW108"


MODULES = st.dictionaries(
    st.sampled_from(["q", "v", "layers.0.q"]),
    st.builds(linear, st.integers(1, 64), st.floats(0.5, 64))
    | st.builds(lambda n, g: conv(n * g, g), st.integers(1, 8), st.just(2)),
    min_size=1,
)


@settings(deadline=None)
@given(fleet=st.lists(MODULES, min_size=1, max_size=4))
def test_an_adapter_that_is_no_conflict_fits_the_plan_of_its_fleet(
    fleet: list[dict[str, ModuleSpec]],
) -> None:
    specs = [spec_of(str(i), **modules) for i, modules in enumerate(fleet)]
    found = plan(specs)
    blamed = {finding.where.partition("::")[0] for finding in found.conflicts}
    assert [spec.path for spec in specs if fits(found, spec)] == sorted(blamed)
    assert "0" not in blamed
    assert not any(finding.code == "HSW105" for finding in found.conflicts)
    assert SwapPlan.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_saved_plan_reads_back_equal(tmp_path: Path) -> None:
    bad = write_adapter(tmp_path / "b", modules={"q_proj": (8, 8)})
    found = plan([write_adapter(tmp_path / "a", modules=QV), bad])
    found.save(tmp_path / "hotswap-plan.json")
    assert SwapPlan.read(tmp_path / "hotswap-plan.json") == found


def broken(**changes: Any) -> dict[str, Any]:
    return {**plan([spec_of(q=linear())]).to_dict(), **changes}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "expected a JSON object"),
        ({}, "version"),
        (broken(version=2), "version 2"),
        (broken(modules=3), "broken"),
        (broken(modules={"q": {"kind": "linear"}}), "'rank' is missing"),
        (broken(need="perhaps"), "'perhaps' is not one of"),
        (broken(dtype=[]), "is not one of"),
        (broken(conflicts=[{"where": "", "code": "X", "message": "", "remedy": ""}]), "code 'X'"),
        (broken(adapters=[None]), "broken"),
    ],
)
def test_a_broken_plan_file_says_what_is_wrong(tmp_path: Path, data: Any, words: str) -> None:
    path = tmp_path / "hotswap-plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(HotswapError, match=r"hotswap-plan\.json") as caught:
        SwapPlan.read(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("change", [{"rank": 0}, {"rank": True}, {"kernel": ["x"]}, {"groups": 3}])
def test_a_plan_with_an_impossible_module_is_broken(change: dict[str, Any]) -> None:
    data = broken()
    data["modules"]["q"].update(change)
    with pytest.raises(HotswapError, match="broken"):
        SwapPlan.from_dict(data)


def test_a_plan_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HotswapError, match="cannot be read"):
        SwapPlan.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(HotswapError, match="is not JSON"):
        SwapPlan.read(tmp_path / "bad.json")
