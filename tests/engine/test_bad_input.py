"""Bad adapters: one clear sentence from every door, and a loaded model that is as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from torch import nn

import hotswap
from hotswap.checks.snapshot import Snapshot
from hotswap.cli.main import main
from hotswap.cli.verify.suite import Run
from hotswap.report.records import Results
from tests.support.models import micro, run, write_adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def reconfigured(**fields: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **fields}))

    return damage


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def no_json(folder: Path) -> None:
    (folder / CONFIG).write_text("{'r': 8}")


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])


def header_longer_than_the_file(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((len(data) + 1).to_bytes(8, "little") + data[8:])


def of_another_base_model(folder: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 7)

    write_adapter(folder, Other(), r=2, target_modules=["first"])


BAD: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no folder": (no_folder, ("does not exist", "pass a folder")),
    "no config": (no_config, ("no adapter_config.json", "pass a folder")),
    "no JSON": (no_json, ("not valid JSON", "save the adapter again")),
    "no weights": (no_weights, ("no adapter_model.safetensors", "save the adapter")),
    "truncated": (truncated, ("the file", "save or download the file again")),
    "long header": (header_longer_than_the_file, ("truncated", "save or download the file again")),
    "r is 0": (reconfigured(r=0), ("r is 0", "expected a positive integer")),
    "other PEFT type": (reconfigured(peft_type="LOHA"), ("'LOHA', expected 'LORA'", "only LoRA")),
    "other base model": (of_another_base_model, ("in_features", "same base model")),
}


@pytest.fixture(params=BAD)
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    damage, told = BAD[request.param]
    folder = write_adapter(tmp_path / "bad", micro(), r=4, lora_alpha=8)
    damage(folder)
    return folder, told


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "good", micro(), r=4, lora_alpha=8)


def one_sentence(text: str, told: tuple[str, ...]) -> bool:
    return len(text.splitlines()) == 1 and all(words in text for words in told)


def test_plan_says_it_in_one_sentence(
    good: Path, bad: tuple[Path, tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(good), str(bad[0]), "--json"]) == 1
    assert one_sentence(capsys.readouterr().err, bad[1])


def test_verify_says_it_in_one_sentence_and_a_verdict(
    good: Path,
    bad: tuple[Path, tuple[str, ...]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = {"nodeid": "a", "law": "rank-bound", "outcome": "passed"}
    monkeypatch.setattr("hotswap.cli.verify.command.run_suite", lambda *_: Run(Results((line,), 0)))
    (good.parent / "config.json").write_text("{}")
    words = [str(good), str(bad[0]), "--base", str(good.parent), "--no-timing", "--json"]
    assert main(["verify", "--backend", "eager", *words]) == 1
    out, err = capsys.readouterr()
    assert one_sentence(err, bad[1])
    assert json.loads(out)["verdict"]["outcome"] == "not ready"


def test_swap_says_it_and_leaves_the_model_bit_identical(
    good: Path, bad: tuple[Path, tuple[str, ...]]
) -> None:
    refused_and_unchanged(good, *bad)


def test_a_rank_above_the_plan_leaves_the_model_bit_identical(good: Path, tmp_path: Path) -> None:
    wide = write_adapter(tmp_path / "wide", micro(), r=8)
    refused_and_unchanged(good, wide, ("rank 8, the plan allows 4", "target_rank=8"))


def refused_and_unchanged(good: Path, bad: Path, told: tuple[str, ...]) -> None:
    model = PeftModel.from_pretrained(micro(), good).eval()
    hotswap.prepare(model, plan=hotswap.plan([good]))
    snapshot, before = Snapshot.take(model), run(model)
    with pytest.raises(hotswap.HotswapError) as raised:
        hotswap.swap(model, bad)
    for words in told:
        assert words in str(raised.value)
    assert snapshot.changes() == []
    assert run(model).equal(before)
