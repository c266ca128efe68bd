"""What the plugin of ``hotswap verify`` writes down of a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hotswap.cli.verify.command import spoken
from hotswap.cli.verify.handover import Handover
from pytest_hotswap.evidence import Evidence, commit


def test_the_commit_is_the_one_that_is_checked_out(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert commit(tmp_path) == ""
    git("init")
    assert commit(tmp_path) == ""
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    assert commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == f"{git('rev-parse', 'HEAD')}, with changes"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(Path.cwd()) == ""


def test_the_command_that_repeats_a_law_has_what_says_what_is_verified() -> None:
    options = {
        "base": "my base",
        "plan": Path("plan.json"),
        "subject": None,
        "dtype": "bfloat16",
        "tiny": True,
        "demo": False,
        "shard": "1/2",
        "report": Path("out"),
        "time_budget": "9m",
        "compile_mode": "max-autotune",
    }
    assert spoken(["adapters/*"], options) == (
        "hotswap verify 'adapters/*' --base 'my base' --plan plan.json --compile-mode max-autotune "
        "--dtype bfloat16 --tiny"
    )


def test_a_script_adapts_the_subject_as_the_command_does() -> None:
    assert Evidence(Handover(deadline=3.0, refused=("a",)))._adapted() == ""
    given = Handover(dtype="bfloat16", plan="gone/plan.json", plan_file="/plan.json")
    line = Evidence(given)._adapted()
    assert line is not None
    known: dict[str, object] = {}
    exec(line.replace("adapt(subject, ", "found = ("), known)  # noqa: S102  (our own)
    assert known["found"] == Handover(dtype="bfloat16", plan="/plan.json", plan_file="/plan.json")


def test_there_is_no_script_where_the_model_goes_with_the_command() -> None:
    assert Evidence(Handover(temporary=True))._adapted() is None
