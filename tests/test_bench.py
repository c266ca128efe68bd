"""hotswap bench: every row is measured, and the growth is that of tensors; no figure is judged."""

from __future__ import annotations

import json

import pytest
import torch

from hotswap.checks import bench
from hotswap.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = bench._llama
    monkeypatch.setattr(bench, "_llama", lambda layers=1: llama(1))
    monkeypatch.setattr(bench, "HIDDEN", 64)
    monkeypatch.setattr(bench, "INTERMEDIATE", 32)
    monkeypatch.setattr(bench, "default_backend", lambda: "aot_eager")


def test_every_row_is_measured_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["bench", "--runs", "5", "--swaps", "5", "--threads", "1", "--json"]) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in found["rows"]]
    assert len(names) == len(set(names)) == 8
    assert all(row["ours"] > 0 and row["theirs"] > 0 for row in found["rows"])
    assert found["held"] == found["planned"]
    assert found["threads"] == 1


def test_growth_sees_a_tensor_that_stays() -> None:
    before = bench._tensor_bytes()
    kept = torch.zeros(1_000_000, dtype=torch.uint8)
    assert bench._tensor_bytes() - before == kept.untyped_storage().nbytes()
