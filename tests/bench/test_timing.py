"""The timing table measures what it says it does."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from hotswap.bench.models import pretrained
from hotswap.bench.timing import BY_PEFT, ROWS, default_backend, measure, median_interval
from hotswap.checks.inputs import default_inputs
from hotswap.cli.verify.demo import write_demo
from hotswap.report.text import timing_table
from tests.support import warm


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return write_demo(tmp_path_factory.mktemp("demo"), layers=1)


@pytest.fixture(scope="module")
def answer(demo: tuple[Path, list[Path]]) -> dict:
    base, adapters = demo
    command = [
        sys.executable,
        "-m",
        "hotswap.bench.timing",
        "--base",
        *map(str, [base, *adapters]),
    ]
    done = warm.run([*command, "--backend", "aot_eager", "--latency"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_standard_output_is_one_json_object_with_every_row(answer: dict) -> None:
    assert answer["backend"] == "aot_eager"
    assert tuple(row["row"] for row in answer["rows"]) == (*ROWS, BY_PEFT)
    assert [row["error"] for row in answer["rows"]] == [None, None, None, None]


def test_every_adapter_is_swapped_in_once(answer: dict) -> None:
    assert [row["swaps"] for row in answer["rows"]] == [4, 4, 4, 4]
    assert all(0 < row["swap"] <= row["slowest_swap"] for row in answer["rows"])
    assert all(row["first_inference"] > 0 for row in answer["rows"])


def test_only_the_unprepared_model_recompiles(answer: dict) -> None:
    plain, unprepared, *prepared = (row["recompiles"] for row in answer["rows"])
    assert plain is None
    assert unprepared > 0
    assert prepared == [0, 0]


def test_single_swaps_are_sampled_beside_pefts_and_a_plain_copy(answer: dict) -> None:
    assert set(answer["samples"]) == {
        "hotswap, swap",
        "hotswap, first forward after it",
        "hotswap, swap from the bank",
        "a plain copy of the bytes",
        "PEFT, swap",
        "PEFT, first forward after it",
    }
    for samples in answer["samples"].values():
        assert len(samples) > 1
        assert all(seconds > 0 for seconds in samples)


def test_a_row_that_fails_says_why_and_the_others_are_measured(
    demo: tuple[Path, list[Path]],
) -> None:
    """PEFT's own swap cannot add target modules; hotswap's can, because it planned for them."""
    base, adapters = demo
    from peft import LoraConfig, get_peft_model

    other = base.parent / "other"
    config = LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False)
    get_peft_model(pretrained(str(base)), config).save_pretrained(str(other))
    paths = [adapters[0], other]
    timing = measure(
        lambda: pretrained(str(base)), default_inputs(pretrained(str(base))), paths, backend="eager"
    )
    plain, unprepared, prepared = (row["error"] for row in timing["rows"])
    assert "unexpected keys" in str(plain)
    assert "unexpected keys" in str(unprepared)
    assert prepared is None
    shown = timing_table(timing)
    assert "no compile: RuntimeError" in shown
    assert "backend eager" in shown


def test_without_a_cpp_compiler_the_backend_is_aot_eager(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert default_backend() == "aot_eager"


def test_with_a_cpp_compiler_the_backend_is_inductor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert default_backend() == "inductor"


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    """Of symmetric draws the median is 0; the interval of 30 of them misses it in at most 5 % of trials."""
    draw = random.Random(0)  # noqa: S311  (no secret)
    trials = [median_interval([draw.gauss(0, 1) for _ in range(30)]) for _ in range(2000)]
    covered = sum(low <= 0 <= high for low, high in trials) / len(trials)
    assert 0.945 < covered < 0.975  # 95.7 % by the binomial distribution


def test_the_interval_of_a_median_is_two_of_the_values() -> None:
    assert median_interval(range(30)) == (
        9,
        20,
    )  # the tenth from either end: tables of order statistics
    assert median_interval([3, 1, 2, 5, 4]) == (1, 5)
