"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

import hotswap
from hotswap.adapters.plan import SwapPlan
from tests.support.adapter_files import write_adapter


def test_a_plan_is_saved_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = hotswap.plan([write_adapter(tmp_path / "a")])
    plan.save(tmp_path / "plan.json")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        hotswap.plan([write_adapter(tmp_path / "b", rank=2)]).save(tmp_path / "plan.json")
    assert SwapPlan.read(tmp_path / "plan.json") == plan
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "plan.json"]
