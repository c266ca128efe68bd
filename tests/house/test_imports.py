"""Who may import whom, and which modules load no torch: the table of the architecture."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hotswap
import pytest_hotswap

ROOMS: dict[str, set[str]] = {
    "errors": {"findings"},
    "findings": {"errors"},
    "adapters": {"errors", "findings"},
    "compiler": {"errors", "findings", "adapters"},
    "engine": {"errors", "findings", "adapters", "compiler"},
    "checks": {"errors", "findings", "adapters", "compiler", "engine"},
    "bench": {"errors", "findings", "adapters", "compiler", "engine", "checks"},
    "report": {"errors", "findings"},
    "lint": {"errors", "findings"},
    "cli": {
        "errors",
        "findings",
        "adapters",
        "compiler",
        "engine",
        "checks",
        "bench",
        "report",
        "lint",
    },
}
HEAVY = ("torch", "peft", "transformers")
TORCH_FREE = (
    "hotswap",
    "hotswap.errors",
    "hotswap.findings",
    "hotswap.adapters",
    "hotswap.report",
    "hotswap.lint",
    "hotswap.cli",
    "pytest_hotswap",
    "pytest_hotswap.plugin",
    "pytest_hotswap.fixtures",
)


def modules(package: object) -> list[str]:
    name, path = package.__name__, package.__path__  # type: ignore[attr-defined]
    return [name, *(m.name for m in pkgutil.walk_packages(path, f"{name}."))]


def torch_free_modules() -> list[str]:
    everything = modules(hotswap) + modules(pytest_hotswap)
    rooms = tuple(f"{name}." for name in TORCH_FREE if name.count(".") == 1)
    return [m for m in everything if m in TORCH_FREE or m.startswith(rooms)]


def imports_of(source: str, module: str) -> Iterator[str]:
    """Every hotswap or pytest_hotswap module that the source imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module if node.level else ""
            base = importlib.util.resolve_name(
                "." * node.level + (node.module or ""), package or None
            )
            names = [base]
        yield from (n for n in names if n.split(".")[0] in {"hotswap", "pytest_hotswap"})


def violations(module: str, source: str) -> list[str]:
    parts = module.split(".")
    if len(parts) < 2 or parts[0] != "hotswap":
        return []
    allowed = ROOMS[parts[1]] | {parts[1]}
    found = []
    for name in imports_of(source, module):
        target = name.split(".")
        if target[0] == "pytest_hotswap" or (len(target) > 1 and target[1] not in allowed):
            found.append(f"{module} imports {name}")
    return found


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", modules(hotswap))
def test_a_room_imports_only_what_stands_to_its_left(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    assert violations(module, Path(spec.origin).read_text()) == []


def test_a_wrong_import_is_seen() -> None:
    assert violations("hotswap.adapters.plan", "from hotswap.engine.swap import swap") == [
        "hotswap.adapters.plan imports hotswap.engine.swap"
    ]
    assert violations("hotswap.report.text", "def f():\n    import pytest_hotswap")


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
