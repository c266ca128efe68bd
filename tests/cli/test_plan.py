"""``hotswap plan``: output, files and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hotswap
from hotswap.adapters.plan import SwapPlan
from hotswap.cli.main import COMMANDS, app, main
from tests.support.adapter_files import write_adapter


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "fleet" / "a", rank=4)
    write_adapter(tmp_path / "fleet" / "b", rank=8)
    (tmp_path / "fleet" / "README.md").write_text("two adapters")
    return tmp_path / "fleet"


def test_a_plan_is_printed(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(fleet / "a"), str(fleet / "b")]) == 0
    out, err = capsys.readouterr()
    assert "Target rank: 8" in out
    assert err == ""


def test_a_pattern_is_expanded_to_folders(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(fleet / "*")]) == 0
    assert "2 adapters" in capsys.readouterr().out


def test_a_pattern_that_matches_nothing_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tmp_path / "none*")]) == 2
    assert "no folder matches" in capsys.readouterr().err


def test_json_is_a_plan(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(fleet / "*"), "--json"]) == 0
    assert SwapPlan.from_dict(json.loads(capsys.readouterr().out)).target_rank == 8


def test_a_plan_is_saved(fleet: Path, tmp_path: Path) -> None:
    assert main(["plan", str(fleet / "*"), "-o", str(tmp_path / "hotswap-plan.json")]) == 0
    assert SwapPlan.read(tmp_path / "hotswap-plan.json").target_rank == 8


def test_a_plan_that_cannot_be_saved_is_one_line(
    fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(fleet / "*"), "-o", str(tmp_path / "none" / "p.json")]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "cannot write" in err


def test_bad_adapters_are_one_line_each(
    fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fleet / "b" / "adapter_model.safetensors").write_bytes(b"short")
    assert main(["plan", str(fleet / "a"), str(fleet / "b"), str(tmp_path / "nowhere")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert ["HSW005" in line for line in err.splitlines()] == [True, False]
    assert ["HSW001" in line for line in err.splitlines()] == [False, True]


def test_conflicts_are_printed_and_nothing_is_saved(
    fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(fleet / "c", modules={"q_proj": (5, 5)})
    assert main(["plan", str(fleet / "*"), "-o", str(tmp_path / "p.json")]) == 1
    out, err = capsys.readouterr()
    assert "HSW107" in out
    assert "not written" in err
    assert not (tmp_path / "p.json").exists()


def test_conflicts_leave_the_json_clean(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter(fleet / "c", modules={"q_proj": (5, 5)})
    assert main(["plan", str(fleet / "*"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert [entry["code"] for entry in json.loads(out)["conflicts"]] == ["HSW107"]
    assert "HSW107" in err


def test_no_arguments_show_the_help_as_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out = capsys.readouterr().out
    assert "plan" in out
    assert "verify" in out


def test_help_and_version_are_good_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["plan", "--help"]) == 0
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hotswap {hotswap.__version__}\n"


@pytest.mark.parametrize("words", [["plan"], ["plan", "--none"], ["none"]])
def test_wrong_words_are_wrong_usage(words: list[str]) -> None:
    assert main(words) == 2


def test_names_outside_of_the_terminals_encoding_are_escaped(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "französisch", modules={"é_proj": (4, 4)})
    write_adapter(tmp_path / "b", modules={"é_proj": (4, 4)}, rank=2)
    done = subprocess.run(
        [sys.executable, "-m", "hotswap.cli.main", "plan", str(folder), str(tmp_path / "b")],
        env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xe9_proj: ranks 2, 8" in done.stdout


@pytest.mark.parametrize("command", ["plan", "verify"])
def test_the_help_has_examples_and_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "-h"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: hotswap {command} ")
    assert f"  Examples:\n    hotswap {command} " in out
    assert "Exit codes: 0, " in out


@pytest.mark.parametrize("words", ["--help", "plan a", "check a"])
def test_the_command_line_starts_without_what_is_heavy(fleet: Path, words: str) -> None:
    heavy = {
        "torch",
        "numpy",
        "peft",
        "rich",
        "huggingface_hub",
        "pydantic",
        "pytest",
        "hypothesis",
    }
    code = (
        "import sys; from hotswap.cli.main import main; code = main(sys.argv[1:]); "
        f"sys.exit(code or bool({heavy} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *words.split()]
    assert subprocess.run(command, cwd=fleet, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_commands_has_the_first_line_of_each(name: str) -> None:
    lines = (app("").commands[name].help, app(name).commands[name].help or "")
    assert lines[0] == lines[1].splitlines()[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(fleet: Path) -> None:
    command = [sys.executable, "-m", "hotswap.cli.main", "plan", str(fleet / "a")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "hotswap: [Errno 28] No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("ending", ["| head -1", ">&-"])
def test_a_plan_is_saved_although_nobody_reads_the_text(
    fleet: Path, tmp_path: Path, ending: str
) -> None:
    saved = tmp_path / "plan.json"
    line = f"'{sys.executable}' -m hotswap plan '{fleet}/*' -o '{saved}' {ending}"
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == f"saved {saved}\n"
    assert SwapPlan.read(saved).target_rank
