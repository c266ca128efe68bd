"""SwapPlan: its memory, its text and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hotswap.adapters.plan import ALIGNMENT, ModulePlan, SwapPlan
from hotswap.adapters.planner import plan
from hotswap.cli.plan_text import sections
from hotswap.errors import HotswapError
from tests.support.adapter_files import write_adapter
from tests.support.adapter_specs import linear, spec_of

QV = {"q_proj": (32, 16), "v_proj": (32, 8)}


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


def test_a_printed_plan_tells_a_newcomer_what_to_do(tmp_path: Path) -> None:
    a = write_adapter(tmp_path / "french", modules=QV, rank=4)
    b = write_adapter(tmp_path / "german", modules=QV, rank=16, rank_pattern={"v_proj": 8})
    found = plan([a, b])
    text = str(found)
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
    short = found.text(adapters=1)
    assert "  and 1 more\n" in short
    assert "german  " not in short


def test_a_printed_plan_has_no_control_characters_of_names(tmp_path: Path) -> None:
    evil = write_adapter(tmp_path / "evil\x1b[2J\n::error::x", modules=QV, rank=4)
    found = plan([write_adapter(tmp_path / "plain", modules={"q_proj": (32, 16)}, rank=4), evil])
    text = f"{found}\n{sections(found)}"
    assert "evil" in text
    assert "\x1b" not in text
    assert not any(line.startswith("::error") for line in text.splitlines())


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
