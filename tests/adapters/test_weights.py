"""The values of weights: digests, and a file that shrinks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import hotswap
from hotswap.adapters import weights as weights_module
from hotswap.adapters.inspect import Inspector
from tests.support.adapter_files import write_adapter
from tests.support.adapter_samples import WEIGHTS, adapter


def test_a_file_that_shrinks_below_its_data_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter()(tmp_path)
    file = tmp_path / "a" / WEIGHTS
    whole = weights_module.value_findings

    def shrink_first(*arguments: Any) -> Any:
        os.truncate(file, file.stat().st_size - 8)
        return whole(*arguments)

    monkeypatch.setattr("hotswap.adapters.inspect.value_findings", shrink_first)
    found = Inspector(weights=True)(str(tmp_path / "a"))
    assert [finding.code for finding in found.findings] == ["HSW009"]


def test_digests_depend_on_the_bytes(tmp_path: Path) -> None:
    adapter()(tmp_path)
    write_adapter(tmp_path / "b")  # the same header and size, other bytes
    assert hotswap.check_adapters([tmp_path / "a", tmp_path / "b"]) == []
