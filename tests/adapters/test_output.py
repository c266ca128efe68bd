"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import hotswap
from hotswap.adapters.output import write_atomically
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


@pytest.mark.skipif(os.name == "nt", reason="permissions are those of POSIX")
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    usual, kept = tmp_path / "usual", tmp_path / "kept"
    usual.write_text("")
    kept.write_text("")
    kept.chmod(0o600)
    write_atomically(kept, "text")
    write_atomically(tmp_path / "new", b"bytes")
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == ("text", 0o600)
    assert (tmp_path / "new").stat().st_mode == usual.stat().st_mode
