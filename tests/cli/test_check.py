"""``hotswap check``: exit codes, formats, settings and the table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hotswap
from hotswap.cli.main import main
from hotswap.findings import RULES
from tests.support.adapter_files import write_adapter
from tests.support.adapter_samples import SAMPLES, WEIGHTS, adapter

CODES = [code for code in RULES if code.startswith(("HSW0", "HSW1"))]


@pytest.mark.parametrize("code", CODES)
def test_explain_prints_why_a_bad_and_a_good_example(
    code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", code]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{code} {RULES[code]}\n")
    assert "\nBad:\n    " in out
    assert "\nGood:\n    " in out


def test_errors_exit_with_one_and_warnings_with_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAMPLES["HSW111"].write(tmp_path)
    assert main(["check", str(tmp_path / "a")]) == 0
    out, err = capsys.readouterr()
    assert "HSW111 pattern-matches-nothing (warning)" in out
    assert err == "1 adapter, no errors, 1 warning\n"
    assert main(["check", str(tmp_path / "a"), "--strict"]) == 1
    assert main(["check", str(tmp_path / "a"), "--strict", "--ignore", "HSW111"]) == 0
    assert main(["check", str(tmp_path / "none")]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "xml"],
        ["--select", "HSW999"],
        ["--plan", "nowhere.json"],
        ["-j", "-1"],
        ["--base", "nowhere"],
        ["--base", "./nowhere"],
    ],
)
def test_wrong_usage_exits_with_two(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write_adapter(tmp_path / "a")
    assert main(["check", str(folder), *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_table_names_every_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(rank=4)(tmp_path)
    write_adapter(tmp_path / "b", config={"r": 3})
    assert main(["check", str(tmp_path / "*")]) == 1
    out = capsys.readouterr().out
    assert re.search(r"a +4 +1 +768 bytes +fits\n", out)
    assert re.search(r"b +- +- +1.5 KiB +HSW104\n", out)


@pytest.mark.parametrize("form", ["json", "github", "sarif"])
def test_formats_carry_the_severity(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAMPLES["HSW111"].write(tmp_path)
    assert main(["check", str(tmp_path / "a"), "--format", form]) == 0
    out = capsys.readouterr().out
    if form == "json":
        assert json.loads(out)[0]["severity"] == "warning"
    elif form == "github":
        assert out.startswith("::warning file=")
    else:
        assert json.loads(out)["runs"][0]["results"][0]["level"] == "warning"


def test_settings_come_from_pyproject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter()(tmp_path)
    hotswap.plan([write_adapter(tmp_path / "small", rank=2)]).save(tmp_path / "plan.json")
    (tmp_path / "pyproject.toml").write_text('[tool.hotswap]\nplan = "plan.json"\n')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert main(["check", "../a", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["code"] == "HSW105"
    (tmp_path / "pyproject.toml").write_text(
        '[tool.hotswap]\nplan = "plan.json"\nignore = ["rank-above-plan"]\n'
        '[tool.hotswap.lint]\nignore = ["HSW201"]\n'  # is the linter's
    )
    assert main(["check", "../a"]) == 0
    for wrong in ("ignroe = []", "ignore = 1", "plan = 1"):
        (tmp_path / "pyproject.toml").write_text(f"[tool.hotswap]\n{wrong}\n")
        assert main(["check", "../a"]) == 2


def test_checking_loads_no_torch(tmp_path: Path) -> None:
    adapter()(tmp_path)
    code = (
        "import sys; from hotswap.cli.main import main\n"
        f"main(['check', {str(tmp_path / 'a')!r}, '--weights'])\n"
        "sys.exit(bool({'torch', 'peft', 'transformers', 'huggingface_hub', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_files_of_a_folder_are_one_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter()(tmp_path)
    files = [str(path) for path in sorted((tmp_path / "a").iterdir())]
    assert len(files) == 2  # as pre-commit passes them
    assert main(["check", *files]) == 0
    assert capsys.readouterr().err == "1 adapter, no errors\n"
    monkeypatch.chdir(tmp_path / "a")
    assert main(["check", WEIGHTS]) == 0
