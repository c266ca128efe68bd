"""Who may import whom, without a circle, and which modules load no torch: the table of the architecture."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hotswap
import pytest_hotswap
from tests.support.source import circles, imports, modules

LIBRARY, PLUGIN = modules(hotswap), modules(pytest_hotswap)
KNOWN = LIBRARY | PLUGIN
ROOMS: dict[str, set[str]] = {
    "errors": {"findings"},
    "findings": {"errors"},
    "pyproject": {"errors"},
    "adapters": {"errors", "findings"},
    "compiler": {"errors", "findings", "adapters"},
    "engine": {"errors", "findings", "adapters", "compiler"},
    "checks": {"errors", "findings", "adapters", "compiler", "engine"},
    "bench": {"errors", "findings", "adapters", "compiler", "engine", "checks"},
    "report": {"errors", "findings"},
    "lint": {"errors", "findings", "pyproject"},
    "cli": {
        "errors",
        "findings",
        "pyproject",
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


def violations(module: str, source: str) -> list[str]:
    package, _, rest = module.partition(".")
    if package != "hotswap" or not rest:
        return []
    room = rest.partition(".")[0]
    allowed = {f"hotswap.{name}" for name in ROOMS[room] | {room}} | {"hotswap"}
    return [
        f"{module} imports {name}"
        for name in sorted(imports(module, source, KNOWN))
        if ".".join(name.split(".")[:2]) not in allowed
    ]


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIBRARY)
def test_a_room_imports_only_what_stands_to_its_left(module: str) -> None:
    assert violations(module, LIBRARY[module].read_text()) == []


def test_a_wrong_import_is_seen() -> None:
    assert violations("hotswap.adapters.plan", "from hotswap.engine.swap import swap") == [
        "hotswap.adapters.plan imports hotswap.engine.swap"
    ]
    assert violations("hotswap.report.text", "from hotswap import engine")
    assert violations("hotswap.report.text", "from .. import engine")
    assert violations("hotswap.report.text", "def f():\n    import pytest_hotswap")


def test_imports_form_no_circle() -> None:
    graph = {name: imports(name, file.read_text(), KNOWN) for name, file in KNOWN.items()}
    found = circles(graph)
    assert not found, "\n".join(found)


def test_a_circle_is_seen_wherever_the_import_stands() -> None:
    sources = {
        "a": "def f():\n    import b",
        "b": "import typing\nif typing.TYPE_CHECKING:\n    from c import x",
        "c": "import a, d",
        "d": "from e import f",
        "e": "import d",
        "f": "import a",
    }
    graph = {name: imports(name, source, sources) for name, source in sources.items()}
    assert [set(circle.split(" → ")) for circle in circles(graph)] == [{"a", "b", "c"}, {"d", "e"}]
    assert circles(graph | {"b": set(), "e": set()}) == []


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
