"""flake8 finds the plugin by its entry point and reports what it says."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from hotswap.lint.flake8 import Plugin
from tests.support.lint_samples import SAMPLES, wanted

SAMPLE = SAMPLES / "hotswap_without_name.py"


def run(text: str) -> list[tuple[int, int, str]]:
    plugin = Plugin(ast.parse(text), "app.py", text.splitlines(keepends=True))
    return [(line, column, message[:6]) for line, column, message, _ in plugin.run()]


def test_the_plugin_reports_the_rules_that_are_on() -> None:
    text = SAMPLE.read_text()
    assert {(line, code) for line, _, code in run(text)} == wanted(SAMPLE)
    assert run((SAMPLES / "swap_on_compiled_of_unknown_history.py").read_text()) == []
    assert run("x = 1\n") == []


def test_columns_start_at_zero() -> None:
    assert run('if pipe:\n    pipe.load_lora_weights("b", hotswap=True)\n') == [(2, 4, "HSW207")]


def test_the_entry_point_names_the_plugin() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'HSW = "hotswap.lint.flake8:Plugin"' in project


def test_flake8_runs_it(tmp_path: Path) -> None:
    pytest.importorskip("flake8")
    entry = importlib.metadata.entry_points(group="flake8.extension")
    config = tmp_path / "setup.cfg"
    local = (
        ""
        if any(e.name == "HSW" for e in entry)
        else ("[flake8:local-plugins]\nextension =\n    HSW = hotswap.lint.flake8:Plugin\n")
    )
    config.write_text(f"[flake8]\nselect = HSW\n{local}")
    command = [sys.executable, "-m", "flake8", "--config", str(config), str(SAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = {(int(line.split(":")[1]), line.split()[1]) for line in done.stdout.splitlines()}
    assert found == wanted(SAMPLE)
