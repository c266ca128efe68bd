"""Which modules load no torch, and that every public name loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hotswap
import pytest_hotswap
from tests.support.source import modules

KNOWN = modules(hotswap) | modules(pytest_hotswap)
HEAVY = ("torch", "peft", "transformers")
TORCH_FREE = (
    "hotswap",
    "hotswap.documents",
    "hotswap.errors",
    "hotswap.findings",
    "hotswap.pyproject",
    "hotswap.adapters",
    "hotswap.report",
    "hotswap.lint",
    "hotswap.cli",
    "pytest_hotswap",
    "pytest_hotswap.plugin",
    "pytest_hotswap.fixtures",
    "pytest_hotswap.marker",
    "pytest_hotswap.reporting",
)


def torch_free_modules() -> list[str]:
    rooms = tuple(f"{name}." for name in TORCH_FREE if name.count(".") == 1)
    return [m for m in KNOWN if m in TORCH_FREE or m.startswith(rooms)]


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.wheel
@pytest.mark.parametrize("module", torch_free_modules())
def test_a_torch_free_module_loads_no_torch(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


@pytest.mark.wheel
def test_loading_torch_is_seen() -> None:
    assert "torch" in loaded_by("import hotswap; hotswap.swap")


def test_every_public_name_can_be_loaded() -> None:
    for name in hotswap.__all__:
        assert getattr(hotswap, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        hotswap.nonsense  # noqa: B018
