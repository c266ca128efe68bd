"""The contracts of import-linter, which ``make lint`` checks, can each be broken."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
ROOMS = ("adapters", "bench", "checks", "cli", "compiler", "engine", "lint", "report")
ENGINE = (
    "asking",
    "saving",
    "bank",
    "export",
    "incoming",
    "layout",
    "load",
    "manifest",
    "package",
    "parts",
    "peft",
)
ENGINE += ("mesh", "preparable", "prepare", "scale", "state", "swap", "transaction")
PLUGIN_ROOMS = ("adapters", "contract", "machine", "ranks", "subjects", "suite")
MODULES = ("evidence", "fixtures", "lint", "marker", "plugin", "reporting", "strategies")
SOUND = {
    "hotswap/__init__.py": "if False:\n    import hotswap.findings\n",  # an exception speaks of it
    "hotswap/errors.py": "",
    "hotswap/documents.py": "",
    "hotswap/pyproject.py": "",
    "hotswap/findings.py": "",
    "hotswap/adapters/plan.py": "",
    "hotswap/adapters/formats/__init__.py": "",
    "hotswap/adapters/formats/conversion.py": "def f():\n    import torch\n",  # another exception
    "hotswap/adapters/pickles.py": "def f():\n    import torch\n",  # and one more
    **{f"hotswap/{room}/__init__.py": "" for room in ROOMS},
    **{f"hotswap/engine/{module}/__init__.py": "" for module in ENGINE},
    "pytest_hotswap/__init__.py": "",
    **{f"pytest_hotswap/{room}/__init__.py": "" for room in PLUGIN_ROOMS},
    **{f"pytest_hotswap/{module}.py": "" for module in MODULES},
}
"""A house of empty rooms, in which every contract is kept."""
WRONG = {
    "a room imports only rooms that stand below it": (
        "hotswap/adapters/plan.py",
        "def f():\n    import hotswap.engine\n",
    ),
    "the linter and the reports know errors and findings only": (
        "hotswap/report/text.py",
        "import hotswap.adapters.plan\n",
    ),
    "what reads files and source code imports no torch, at no depth": (
        "hotswap/lint/check.py",
        "def f():\n    import torch\n",
    ),
    "the engine: verbs, transaction, what comes in, parts, layout": (
        "hotswap/engine/layout/arena.py",
        "from hotswap.engine import transaction\n",
    ),
    "a room of the plugin imports only what stands below it": (
        "pytest_hotswap/subjects/base.py",
        "import pytest_hotswap.contract\n",
    ),
    "no circles": (
        "hotswap/adapters/fit.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hotswap.adapters.spec\n",
    ),
}
MORE = {"no circles": {"hotswap/adapters/spec.py": "import hotswap.adapters.fit\n"}}


def broken(folder: Path, files: dict[str, str]) -> set[str]:
    """The names of the contracts that a house of these files breaks."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo", PROJECT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    lines = [line.partition(" BROKEN") for line in done.stdout.splitlines()]
    return {name for name, word, _ in lines if word}


def test_every_contract_has_a_control() -> None:
    contracts = tomllib.loads(PROJECT.read_text())["tool"]["importlinter"]["contracts"]
    assert [contract["name"] for contract in contracts] == list(WRONG)


def test_a_sound_house_breaks_none(tmp_path: Path) -> None:
    assert broken(tmp_path, SOUND) == set()


@pytest.mark.parametrize("contract", WRONG)
def test_a_contract_is_broken_by_a_wrong_import(tmp_path: Path, contract: str) -> None:
    file, text = WRONG[contract]
    assert broken(tmp_path, SOUND | {file: text} | MORE.get(contract, {})) == {contract}
