"""Which deployment a contract class tests: its own, that of a project's fixture, or that of the options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pytest_hotswap.fixtures import resolve_subject

FIXTURE = "hotswap_subject"
_PLUGIN = "pytest_hotswap.plugin"
_COLLECTED: pytest.StashKey[dict[Any, Any]] = pytest.StashKey()


def plugin_is_loaded(config: pytest.Config) -> bool:
    """Whether the plugin was loaded, by its entry point or by its module's name."""
    return any(config.pluginmanager.hasplugin(name) for name in ("hotswap", _PLUGIN))


def subject_at_collection(cls: Any, node: pytest.Item) -> Any:
    """Build the subject of a contract class where no fixture runs yet: its adapters name the tests.

    A project's fixture is called once besides pytest's own call; it may take ``pytestconfig`` and the
    plugin's ``hotswap_subject``. Raises pytest.UsageError for one that takes other fixtures.
    """
    if cls.subject is not None:
        return cls.subject()
    own = _override(node)
    if own is None:
        return resolve_subject(node.config)
    built = node.config.stash.setdefault(_COLLECTED, {})
    if own not in built:
        built[own] = _called(own, node.config)
    return built[own]


def subject_at_run(cls: Any, request: pytest.FixtureRequest) -> Any:
    """The subject of a contract class in a test or fixture."""
    return cls.subject() if cls.subject is not None else request.getfixturevalue(FIXTURE)


def origin(cls: Any, node: pytest.Item) -> str:
    """Say where the subject of a contract class comes from: a file and a line, or an option."""
    own = cls.subject if cls.subject is not None else getattr(_override(node), "func", None)
    if own is not None:
        return _place(own, node.config)
    for name in ("subject", "base"):
        if value := node.config.getoption(f"--hotswap-{name}"):
            return f"--hotswap-{name} {value}"
        if value := node.config.getini(f"hotswap_{name}"):
            return f"hotswap_{name} = {value} in {node.config.inipath}"
    return "nowhere"


def told(config: pytest.Config, items: Iterable[pytest.Item]) -> list[str]:
    """Name the subject of each contract class, and the fixtures that were meant to give one and do not."""
    classes = {item.parent.nodeid: item for item in items if item.parent and _is_contract(item)}
    lines = []
    for nodeid, item in classes.items():
        cls: Any = item.cls  # type: ignore[attr-defined]
        name = type(subject_at_collection(cls, item)).__name__
        lines.append(f"hotswap: {nodeid} tests {name}, from {origin(cls, item)}")
    asking = [item for item in classes.values() if item.cls.subject is None]  # type: ignore[attr-defined]
    if asking:
        reaching = {inspect.getfile(own.func) for own in map(_override, asking) if own is not None}
        lines += [
            f"hotswap: the fixture {FIXTURE} of {_relative(file, config)} reaches no contract class; "
            f"define it in {config.rootpath / 'conftest.py'}"
            for file in _defining(config)
            if file not in reaching
        ]
    return lines


def _is_contract(item: pytest.Item) -> bool:
    from pytest_hotswap.contract.contract import HotswapContract

    return issubclass(getattr(item, "cls", None) or object, HotswapContract)


def _override(node: pytest.Item) -> Any:
    """The definition of the project's own fixture that reaches a test, or None."""
    manager: Any = node.session._fixturemanager
    by = node if pytest.version_tuple >= (8, 1) else node.nodeid
    found = manager.getfixturedefs(FIXTURE, by) or ()
    return next((d for d in reversed(found) if d.func.__module__ != _PLUGIN), None)


def _called(own: Any, config: pytest.Config) -> Any:
    known: dict[str, Callable[[], Any]] = {
        "pytestconfig": lambda: config,
        FIXTURE: lambda: resolve_subject(config),
    }
    if foreign := sorted(set(own.argnames) - known.keys()):
        raise pytest.UsageError(
            f"the fixture {FIXTURE} of {_place(own.func, config)} takes {', '.join(foreign)}, but the "
            "adapters' names are needed when tests are collected, before fixtures run; let it take "
            f"nothing but {' and '.join(known)}"
        )
    given: dict[str, Any] = {name: known[name]() for name in own.argnames}
    made = own.func(**given)
    return next(made) if inspect.isgenerator(made) else made


def _defining(config: pytest.Config) -> list[str]:
    """The conftest.py files that define the fixture."""
    plugins = config.pluginmanager.get_plugins()
    return sorted(
        plugin.__file__
        for plugin in plugins
        if hasattr(plugin, FIXTURE) and Path(getattr(plugin, "__file__", "")).name == "conftest.py"
    )


def _place(thing: Any, config: pytest.Config) -> str:
    return f"{_relative(inspect.getfile(thing), config)}:{inspect.getsourcelines(thing)[1]}"


def _relative(file: str, config: pytest.Config) -> Path:
    path = Path(file)
    return path.relative_to(config.rootpath) if path.is_relative_to(config.rootpath) else path
