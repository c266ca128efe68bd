"""hotswap bench: every row is measured, and the growth is that of tensors; no figure is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hotswap.bench import swaps as bench
from hotswap.cli.bench import compared
from hotswap.cli.main import main
from hotswap.cli.verify.demo import write_demo

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = bench._llama
    monkeypatch.setattr(bench, "_llama", lambda layers=1: llama(1))
    monkeypatch.setattr(bench, "HIDDEN", 64)
    monkeypatch.setattr(bench, "INTERMEDIATE", 32)
    monkeypatch.setattr(bench, "default_backend", lambda: "eager")
    monkeypatch.setattr(bench, "PADDING_FACTORS", (1, 4))


def test_growth_sees_a_tensor_that_stays() -> None:
    kept = torch.zeros(1_000_000, dtype=torch.uint8)
    bench._tensor_bytes()  # what other tests left goes with the first collection
    held = bench._tensor_bytes()
    del kept
    assert held - bench._tensor_bytes() == 1_000_000


def test_every_row_is_measured_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["bench", "--runs", "5", "--swaps", "5", "--threads", "1", "--json"]) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in found["rows"]]
    assert len(names) == len(set(names)) == 9
    assert all(row["ours"] > 0 and row["theirs"] > 0 for row in found["rows"])
    for row in found["rows"]:
        low, high = row["interval"]
        assert low <= row["ratio"] <= high
    assert found["held"] == found["planned"]
    assert found["threads"] == 1
    assert found["notes"] == []
    assert found["growth"] == 0
    assert [row["target_rank"] for row in found["padding"]] == [8, 32]
    held = [row["bytes"] for row in found["padding"]]
    assert held == sorted(set(held))
    plain, unprepared, prepared = (row["recompiles"] for row in found["serving"])
    assert (plain, prepared) == (None, 0)
    assert unprepared > 0


OLD = {"name": "swap from a folder", "faster": True, "ratio": 10.0, "interval": [9.0, 11.0]}


class TestCompare:
    def test_a_row_is_slower_when_its_whole_interval_is(self) -> None:
        new = {"rows": [{**OLD, "ratio": 6.0, "interval": [5.5, 6.5]}]}
        lines, slower = compared({"rows": [OLD]}, new, 1.25)  # at least 9 / 6.5 = 1.38
        assert slower == ["swap from a folder"]
        assert "1.67" in lines[0]
        assert "1.38 to 2.00" in lines[0]
        assert compared({"rows": [OLD]}, new, 1.4)[1] == []
        unsure = {"rows": [{**OLD, "ratio": 6.0, "interval": [3.0, 8.0]}]}
        assert compared({"rows": [OLD]}, unsure, 1.25)[1] == []

    def test_a_row_that_says_how_much_longer_it_takes_is_slower_with_a_larger_ratio(self) -> None:
        old = {**OLD, "faster": False, "ratio": 1.0, "interval": [0.9, 1.1]}
        new = {**old, "ratio": 2.0, "interval": [1.8, 2.2]}
        assert compared({"rows": [old]}, {"rows": [new]}, 1.25)[1] == ["swap from a folder"]
        assert compared({"rows": [new]}, {"rows": [old]}, 1.25)[1] == []

    def test_rows_that_came_and_went_are_told(self) -> None:
        lines, slower = compared({"rows": [OLD]}, {"rows": [{**OLD, "name": "another"}]}, 1.25)
        assert slower == []
        assert "new" in lines[0]
        assert "not measured any more" in lines[0]

    @pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"rows": [{}]}'])
    def test_a_file_that_is_no_result_is_refused_before_the_work(
        self, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = tmp_path / "old.json"
        if content is not None:
            old.write_text(content)
        assert main(["bench", "--compare", str(old)]) == 1
        assert capsys.readouterr().err.startswith(f"hotswap: --compare {old}: ")


def test_ones_own_model_needs_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--base", "somewhere"]) == 2
    assert "at least two --adapters" in capsys.readouterr().err


def test_ones_own_model_is_measured_and_compared_with_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapters = write_demo(tmp_path, layers=1)
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"rows": [{**OLD, "ratio": 1e9, "interval": [1e9, 1e9]}]}))
    words = ["--base", str(base), "--adapters", str(adapters[0]), "--adapters", str(adapters[2])]
    words += ["--runs", "5", "--swaps", "2", "--threads", "1", "--no-forward", "--tp", "2"]
    assert main(["bench", *words, "--compare", str(old), "-o", str(tmp_path / "new.json")]) == 1
    out = capsys.readouterr().out
    assert "slower than 1.25 x" in out
    assert "not measured:" not in out
    assert "bar" not in out.partition("\n")[2].partition("\n")[0]
    found = json.loads((tmp_path / "new.json").read_text())
    assert len(found["rows"]) == 5
    assert found["held"] == found["planned"]
    shared = found["tensor_parallel"]
    assert shared["bytes"] == found["planned"] > shared["bytes_per_rank"] > found["planned"] / 2
    each = f"each holds {shared['bytes_per_rank']} of {shared['bytes']} bytes"
    assert f"Cut over 2 ranks, as transformers does, {each}" in out
