"""``hotswap lint`` and ``hotswap explain``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hotswap.cli.main import main
from hotswap.findings import RULES as NAMES
from tests.support.lint_samples import SAMPLES

BAD = str(SAMPLES / "hotswap_without_name.py")
HINT = str(SAMPLES / "swap_on_compiled_of_unknown_history.py")


def test_findings_exit_with_one_and_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", BAD]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("HSW207 hotswap-without-name") == 4
    assert "help: give the name" in shown.out
    assert shown.err == "4 findings\n"


def test_clean_code_exits_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", HINT]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "no findings\n")


def test_rules_are_selected_and_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", HINT, "--select", "HSW201,HSW29"]) == 1
    assert main(["lint", BAD, "--ignore", "hotswap-without-name"]) == 0
    assert main(["lint", BAD, "--select", "HSW999"]) == 2
    assert "no rule matches 'HSW999'" in capsys.readouterr().err


def test_json_and_an_output_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.sarif"
    assert main(["lint", BAD, "--format", "sarif", "--output", str(target)]) == 1
    (run,) = json.loads(target.read_text())["runs"]
    assert len(run["results"]) == 4
    assert "hot swap" in run["tool"]["driver"]["rules"][0]["fullDescription"]["text"]
    assert main(["lint", BAD, "--format", "json"]) == 1
    assert len(json.loads(capsys.readouterr().out)) == 4


def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "no/such/path"]) == 2
    assert main(["lint", BAD, "--format", "xml"]) == 2
    shown = capsys.readouterr().err
    assert "there is no no/such/path" in shown
    assert "choose from text, json, github, sarif" in shown


def test_fix_rewrites_and_lints_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve.py"
    path.write_text(
        "import torch\nfrom peft import AutoPeftModelForCausalLM\n"
        "from peft.utils.hotswap import prepare_model_for_compiled_hotswap\n"
        "model = AutoPeftModelForCausalLM.from_pretrained('a')\n"
        "model = torch.compile(model)\n"
        "prepare_model_for_compiled_hotswap(model, target_rank=8)\n"
    )
    assert main(["lint", str(path)]) == 1
    assert main(["lint", "--fix", str(path)]) == 0
    assert f"fixed {path}" in capsys.readouterr().err
    assert path.read_text().splitlines()[4].startswith("prepare_model")


@pytest.mark.parametrize("name", ["HSW201", "hsw201", "prepare-after-compile"])
def test_explain_shows_bad_and_good(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("HSW201 prepare-after-compile\n")
    assert "Bad:\n" in shown
    assert "Good:\n" in shown


def test_explain_lists_every_code_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)
    assert main(["explain", "HSW999"]) == 2
    assert "there is no rule 'HSW999'" in capsys.readouterr().err


def test_the_pre_commit_hook_is_a_command_that_takes_files() -> None:
    hooks = Path(__file__).parents[2] / ".pre-commit-hooks.yaml"
    if not hooks.is_file():
        pytest.skip("the checkout is not here")
    (hook,) = re.findall(r"(?ms)^- id: hotswap-lint\n(.*?)(?=^- id|\Z)", hooks.read_text())
    entry = re.findall(r"(?m)^  entry: hotswap (.*)$", hook)
    assert "pass_filenames" not in hook
    assert "types_or: [python, jupyter, markdown]" in hook
    assert main([*entry[0].split(), BAD, HINT]) == 1
    assert main([*entry[0].split(), HINT]) == 0
