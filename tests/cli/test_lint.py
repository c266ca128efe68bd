"""``hotswap lint`` and ``hotswap explain``."""

from __future__ import annotations

import io
import json
import os
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
    path.write_text(LATE)
    assert main(["lint", str(path)]) == 1
    assert main(["lint", "--fix", str(path)]) == 0
    assert f"fixed {path}" in capsys.readouterr().err
    assert path.read_text().splitlines()[4].startswith("prepare_model")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "serve.py").write_text(LATE)
    return tmp_path


LATE = (
    "import torch\nfrom peft import AutoPeftModelForCausalLM\n"
    "from peft.utils.hotswap import prepare_model_for_compiled_hotswap\n"
    "model = AutoPeftModelForCausalLM.from_pretrained('a')\n"
    "model = torch.compile(model)\n"
    "prepare_model_for_compiled_hotswap(model, target_rank=8)\n"
)


def test_without_a_path_the_current_folder_is_read(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint"]) == 1
    assert capsys.readouterr().out.startswith("serve.py:6:1: HSW201")


def test_standard_input_is_read_as_its_name_says(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lint(data: str, *words: str) -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
        assert main(["lint", *words]) == 1
        return capsys.readouterr().out

    assert lint(LATE, "-").startswith("<stdin>:6:1: HSW201")
    page = f"# x\n```python\n{LATE}```\n"
    for words in (["-", "--stdin-filename", "docs/a.md"], ["--stdin-filename", "docs/a.md"]):
        assert lint(page, *words).startswith("docs/a.md:8:1: HSW201")


def test_a_diff_changes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--diff"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["--- serve.py", "+++ serve.py"]
    assert "+prepare_model_for_compiled_hotswap(model, target_rank=8)" in shown
    assert (project / "serve.py").read_text() == LATE
    assert main(["lint", "--fix"]) == 0
    assert main(["lint", "--diff"]) == 0


def test_warnings_fail_only_if_that_is_wanted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "serve.py").write_text("import hotswap\nhotswap.swap(\n")
    assert main(["lint"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("serve.py:2:13: HSW200 not-analysed (warning)")
    assert shown.err == "no findings, 1 warning\n"
    assert main(["lint", "--strict"]) == 1
    for form in ("json", "github", "sarif"):
        assert main(["lint", "--format", form]) == 0
        assert "HSW200" in capsys.readouterr().out


def test_statistics_quiet_and_exit_zero(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--statistics", "--exit-zero", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("    1  HSW201  prepare-after-compile\n", "")


def test_the_project_and_the_command_line_say_what_applies(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.hotswap.lint]\nignore = ["HSW201"]\n')
    assert main(["lint"]) == 0
    assert main(["lint", "--ignore", "HSW202"]) == 1
    assert main(["lint", "--ignore", "HSW202", "--exclude", "serve.*"]) == 0
    (project / "pyproject.toml").write_text("[tool.hotswap.lint]\nshade = 1\n")
    assert main(["lint"]) == 2


@pytest.mark.parametrize(
    ("variables", "colored"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_color_is_as_the_environment_says(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    colored: bool,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["lint"]) == 1
    assert ("\033[" in capsys.readouterr().out) == colored


def test_sarif_describes_rules_and_names_files_from_here(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", str(project), "--format", "sarif"]) == 1
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    (rule,) = run["tool"]["driver"]["rules"]
    assert rule["defaultConfiguration"] == {"level": "error"}
    assert rule["helpUri"].endswith("#hsw201")
    assert "```python\nmodel = PeftModel" in rule["help"]["markdown"]
    (location,) = run["results"][0]["locations"]
    assert location["physicalLocation"]["artifactLocation"] == {"uri": "serve.py"}


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


def test_the_pre_commit_hook_is_a_command_that_takes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = Path(__file__).parents[2] / ".pre-commit-hooks.yaml"
    if not hooks.is_file():
        pytest.skip("the checkout is not here")
    (hook,) = re.findall(r"(?ms)^- id: hotswap-lint\n(.*?)(?=^- id|\Z)", hooks.read_text())
    entry = re.findall(r"(?m)^  entry: hotswap (.*)$", hook)
    assert "pass_filenames" not in hook
    assert "types_or: [python, jupyter, markdown]" in hook
    monkeypatch.chdir(tmp_path)  # out of reach of this project's settings
    assert main([*entry[0].split(), BAD, HINT]) == 1
    assert main([*entry[0].split(), HINT]) == 0


def test_named_files_are_left_out_if_that_is_wanted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", "serve.py", "--exclude", "doc.*,serve.*"]) == 1
    assert main(["lint", "serve.py", "--exclude", "doc.*,serve.*", "--force-exclude"]) == 0
    assert main(["lint", "--exclude", "doc.*,serve.*"]) == 0
    assert "no file to read in ." in capsys.readouterr().err


def test_a_folder_without_a_file_to_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("hotswap")
    assert main(["lint", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"hotswap lint: no file to read in {tmp_path}\n")
    assert main(["lint", "--strict", str(tmp_path)]) == 1
    (tmp_path / "notes.py").write_text("import hotswap")
    assert main(["lint", "--strict", str(tmp_path)]) == 0


def test_what_cannot_be_read_or_written_is_wrong_usage(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(project / "pipe.py")
    assert main(["lint", "--strict", "--exit-zero", "."]) == 0
    for arguments, told in {
        "pipe.py": "pipe.py is a pipe, not a file",
        "serve.py -o missing/x": "--output missing/x cannot be written: No such file",
        "- serve.py": "standard input is read on its own",
        "- --fix": "standard input is read on its own",
    }.items():
        assert main(["lint", *arguments.split()]) == 2
        assert told in capsys.readouterr().err
