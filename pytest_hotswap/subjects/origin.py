"""The subject of a contract class: its own, that of a project's fixture, or that of the options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pytest_hotswap.subjects.base import Subject
from pytest_hotswap.subjects.located import load_class

FIXTURE = "hotswap_subject"
DEFAULT_SUBJECT = "pytest_hotswap.subjects.reference:ReferenceSubject"
_PLUGIN = "pytest_hotswap.plugin"
_BUILT: pytest.StashKey[dict[Any, Any]] = pytest.StashKey()
"""What was built: by the contract class that names it, the fixture that did it, or None for the options."""


def plugin_is_loaded(config: pytest.Config) -> bool:
    """Whether the plugin was loaded, by its entry point or by its module's name."""
    return any(config.pluginmanager.hasplugin(name) for name in ("hotswap", _PLUGIN))


def resolve_subject(config: pytest.Config) -> Subject:
    """Build the deployment that the options or the ini file name, once a session.

    Raises pytest.UsageError when they name neither a subject nor a base model, or when the subject
    cannot be loaded or built.
    """
    subject: Subject = _once(config, None, lambda: _build(config))
    return subject


def subject_at_collection(cls: Any, node: pytest.Item) -> Any:
    """Build the subject of a contract class where no fixture runs yet: its adapters name the tests.

    A project's fixture is called once besides pytest's own call; it may take ``pytestconfig`` and the
    plugin's ``hotswap_subject``. Raises pytest.UsageError for one that takes other fixtures.
    """
    if cls.subject is not None:
        return _once(node.config, cls, _own(cls))
    own = _override(node)
    if own is None:
        return resolve_subject(node.config)
    return _once(node.config, own, lambda: _called(own, node.config))


def subject_at_run(cls: Any, request: pytest.FixtureRequest) -> Any:
    """The subject of a contract class in a test or fixture."""
    if cls.subject is not None:
        return _once(request.config, cls, _own(cls))
    return request.getfixturevalue(FIXTURE)


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
    """Name the subject of each contract class, and the fixtures that were meant to give one and do not.

    ``items`` are tests of contract classes.
    """
    classes: dict[str, Any] = {item.parent.nodeid: item for item in items if item.parent}
    lines = [
        f"hotswap: {nodeid} tests {type(subject_at_collection(item.cls, item)).__name__}, "
        f"from {origin(item.cls, item)}"
        for nodeid, item in classes.items()
    ]
    asking = [item for item in classes.values() if item.cls.subject is None]
    if asking:
        reaching = {inspect.getfile(own.func) for own in map(_override, asking) if own is not None}
        lines += [
            f"hotswap: the fixture {FIXTURE} of {_relative(file, config)} reaches no contract class; "
            f"define it in {config.rootpath / 'conftest.py'}"
            for file in _defining(config)
            if file not in reaching
        ]
    return lines


def _own(cls: Any) -> Callable[[], Any]:
    """What builds the subject that a contract class names; raises pytest.UsageError for a built one."""
    if not callable(cls.subject):
        name = type(cls.subject).__name__
        raise pytest.UsageError(
            f"{cls.__name__}.subject is an instance of {name}; give the class: subject = {name}"
        )
    build: Callable[[], Any] = cls.subject
    return build


def _once(config: pytest.Config, key: Any, build: Callable[[], Any]) -> Any:
    built = config.stash.setdefault(_BUILT, {})
    if key not in built:
        built[key] = build()
    return built[key]


def _build(config: pytest.Config) -> Subject:
    name, place = _setting(config, "subject")
    base, _ = _setting(config, "base")
    if not name and not base:
        raise pytest.UsageError(
            "there is no deployment to test: give --hotswap-base PATH with --hotswap-adapters GLOB,"
            " or --hotswap-subject module:Class, or set hotswap_base or hotswap_subject"
            " in the ini file"
        )
    cls = load_class(name or DEFAULT_SUBJECT, place)
    globs, folder = _setting(config, "adapters")
    backend, _ = _setting(config, "backend")
    found = {"base": base, "adapters": [str(folder / glob) for glob in globs], "backend": backend}
    given: dict[str, Any] = {
        key: value for key, value in found.items() if value
    }  # else the class's
    try:
        inspect.signature(cls).bind(**given)
    except TypeError as error:
        raise pytest.UsageError(
            f"{cls.__name__}({', '.join(f'{key}=…' for key in given)}) cannot be called: {error};"
            " let it take base, adapters and backend as keywords, as Subject does"
        ) from error
    subject: Subject = cls(**given)
    return subject


def _setting(config: pytest.Config, name: str) -> tuple[Any, Path]:
    """The option or else the ini key, and the folder that its relative paths start from."""
    option = config.getoption(f"--hotswap-{name}")
    if option:
        return option, config.invocation_params.dir
    return config.getini(f"hotswap_{name}"), config.rootpath


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
