"""plan: the envelope of a fleet, and whether it needs preparation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotswap.adapters.fit import fits
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.modules import ModuleSpec, TokenRows
from hotswap.adapters.plan import SavedTensor, SwapPlan
from hotswap.adapters.planner import plan
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import HotswapError, UnreadableAdapterError
from tests.support.adapter_files import write_adapter
from tests.support.adapter_specs import conv, linear, spec_of, trained

QV = {"q_proj": (32, 16), "v_proj": (32, 8)}


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
