"""What ``hotswap plan`` says beside the envelope: first adapter, gaps, memory, curve, plot, code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig

import hotswap
from hotswap.cli.curve import bank_bytes, curve
from hotswap.cli.main import main
from hotswap.cli.plan_text import sections
from tests.support.adapter_files import write_adapter

TWO = {"q_proj": (32, 16), "layers.0.v_proj": (32, 16), "layers.1.v_proj": (32, 16)}

CUT = {
    "model.layers.0.self_attn.q_proj": (32, 32),
    "model.layers.0.mlp.down_proj": (48, 32),
    "lm_head": (32, 8),
}


@pytest.fixture
def fleet(tmp_path: Path) -> list[Path]:
    return [
        write_adapter(tmp_path / "narrow", rank=4),
        write_adapter(tmp_path / "whole", modules=TWO, rank=8),
        write_adapter(tmp_path / "wide", rank=32),
    ]


def test_the_adapter_with_every_module_comes_first(fleet: list[Path]) -> None:
    plan = hotswap.plan(fleet)
    assert plan.first is not None
    assert plan.first.name == "whole"
    assert "Load first: whole, which has every module" in sections(plan)
    lacking = ("layers.*.v_proj (2 modules)",)
    assert [adapter.lacks for adapter in plan.adapters] == [lacking, (), lacking]
    assert hotswap.SwapPlan.from_dict(plan.to_dict()) == plan


def test_without_one_that_has_every_module_load_is_named(tmp_path: Path) -> None:
    plan = hotswap.plan(
        [
            write_adapter(tmp_path / "a", modules={"q_proj": (4, 4)}),
            write_adapter(tmp_path / "b", modules={"v_proj": (4, 4)}, rank=2),
        ]
    )
    assert "no adapter has every module, so use hotswap.load" in sections(plan)


def test_the_curve_says_what_a_rank_costs_and_admits(fleet: list[Path]) -> None:
    plan = hotswap.plan(fleet)
    points = curve(plan)
    assert [(p.target_rank, p.admitted) for p in points] == [(4, 1), (8, 2), (32, 3)]
    assert points[-1].uniform == plan.uniform_bytes
    assert points[-1].fitted == plan.padded_bytes < plan.uniform_bytes
    # three modules of (rank, 32) and (16, rank) float32, and 64 bytes for each scaling
    assert points[0].uniform == 3 * (4 * 32 * 4 + 16 * 4 * 4 + 64)


def test_an_adapter_of_another_base_model_is_admitted_at_no_rank(tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", modules={"q_proj": (8, 4)}, rank=2)
    plan = hotswap.plan([write_adapter(tmp_path / "a", modules={"q_proj": (4, 4)}, rank=4), other])
    assert [finding.code for finding in plan.conflicts] == ["HSW107"]
    assert [(p.target_rank, p.admitted) for p in curve(plan)] == [(2, 0), (4, 1)]


def test_a_bank_holds_one_image_for_each_adapter_beside_the_models(fleet: list[Path]) -> None:
    plan = hotswap.plan(fleet)
    assert bank_bytes(plan, 3) == 4 * plan.padded_bytes
    assert bank_bytes(plan, 3, uniform=True) == 4 * plan.uniform_bytes


def test_memory_is_compared_with_the_adapters_as_saved(tmp_path: Path) -> None:
    modules = {"q_proj": (16, 16)}
    fleet = [write_adapter(tmp_path / f"r{r}", modules=modules, rank=r) for r in (4, 2)]
    lines = [" ".join(line.split()) for line in sections(hotswap.plan(fleet)).splitlines()]
    # 512 and 256 bytes as saved; prepared each takes 512, and 64 for its scaling
    assert "1 1.0 KiB 1.1 KiB (+128 bytes) 1.1 KiB (+128 bytes)" in lines
    assert "2 1.2 KiB 1.7 KiB (+448 bytes) 1.7 KiB (+448 bytes)" in lines


def test_the_code_names_the_target_rank_and_a_rank_that_vllm_takes(tmp_path: Path) -> None:
    text = sections(hotswap.plan([write_adapter(tmp_path / "a", rank=12)]))
    for line in (
        "prepare_model_for_compiled_hotswap(model, target_rank=12)",
        "enable_peft_hotswap(target_rank=12)",
        "enable_lora_hotswap(target_rank=12)",
        "--max-lora-rank 16",
    ):
        assert line in text


@pytest.mark.parametrize(("name", "start"), [("p.svg", b"<?xml"), ("p.png", b"\x89PNG")])
def test_the_curve_is_drawn(name: str, start: bytes, fleet: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = [str(path) for path in fleet]
    assert main(["plan", *words, "--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


def test_another_kind_of_picture_is_wrong_usage(fleet: list[Path], tmp_path: Path) -> None:
    assert main(["plan", str(fleet[0]), "--plot", str(tmp_path / "p.gif")]) == 2


def test_without_matplotlib_the_extra_is_named(
    fleet: list[Path], tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plan", str(fleet[0]), "--plot", str(tmp_path / "p.svg")]) == 2
    assert "pytest-hotswap[report]" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_one_line(fleet: list[Path]) -> None:
    command = [sys.executable, "-m", "hotswap.cli.main", "plan", str(fleet[0]), "-o", "/dev/full"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_adapter(folder / "a", modules=CUT, rank=4)
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    config.intermediate_size, config.num_hidden_layers, config.vocab_size = 48, 1, 8
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder / "base")
    GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=8).save_pretrained(folder / "gpt2")
    return folder


class TestSeveralDevices:
    def test_what_each_holds_is_told(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["plan", str(folder / "a"), "--base", str(folder / "base"), "--tp", "2"]
        assert main(command) == 0
        out = capsys.readouterr().out
        assert "Memory per rank (2 ranks)\n  2.4 KiB of 3.1 KiB\n" in out
        assert "lora_B is cut: model.layers.*.self_attn.q_proj" in out
        assert "lora_A is cut: model.layers.*.mlp.down_proj" in out
        assert "each rank has it whole: lm_head" in out
        assert main([*command, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        # in bytes, with a scaling of 64 for each: lora_A and lora_B of q_proj, down_proj, lm_head
        assert found["tensor_parallel"]["bytes"] == 512 + 512 + 768 + 512 + 512 + 128 + 3 * 64
        assert found["tensor_parallel"]["bytes_per_rank"] == (
            512 + 256 + 384 + 512 + 512 + 128 + 3 * 64
        )

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--tp", "2"], "give its folder with --base"),
            (["--base", "base", "--tp", "3"], "q_proj has 32 outputs, which 3 does not divide"),
            (["--base", "gpt2", "--tp", "2"], "has no parallel plan for a GPT2"),
        ],
    )
    def test_what_cannot_be_told_is_one_line(
        self, folder: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [str(folder / word) if (folder / word).exists() else word for word in words]
        assert main(["plan", str(folder / "a"), *words]) == 2
        err = capsys.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1

    def test_bench_needs_the_model_that_is_cut(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "--tp", "2"]) == 2
        assert "--tp 2: give the model that is cut with --base" in capsys.readouterr().err
