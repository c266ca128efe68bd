"""Register the options, the marker and the fixtures; everything heavy is imported on first use.

A project without hot-swap tests pays for this file only: it needs pytest and nothing else.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from hotswap.compiler.watch import CompileLog
    from pytest_hotswap.contract.deployment import Deployment
    from pytest_hotswap.subjects.base import Subject

BACKENDS = ("eager", "aot_eager", "inductor")
MARKER = "hotswap"
WATCH = "hotswap_compile_watch"
FORBID = "hotswap_forbid_recompiles"
MARKER_ARGUMENTS = ("max_recompiles",)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add each option, and an ini key of the same name that it overrides."""
    group = parser.getgroup("hotswap", "hot-swapping LoRA adapters")
    group.addoption("--hotswap-base", metavar="PATH", help="base model: a folder or a hub id")
    group.addoption(
        "--hotswap-adapters",
        metavar="GLOB",
        action="append",
        help="adapter folders to swap between (repeatable)",
    )
    group.addoption(
        "--hotswap-subject",
        metavar="SUBJECT",
        help="deployment under test: module:Class or path/file.py:Class (default: hotswap's own)",
    )
    group.addoption(
        "--hotswap-backend",
        choices=BACKENDS,
        help="torch.compile backend (default: the subject's own, which is eager)",
    )
    group.addoption(
        "--hotswap-report",
        metavar="FILE",
        help="write the outcome of every test to FILE, one JSON object a line",
    )
    group.addoption(
        "--hotswap-lint",
        action="store_true",
        help="check every .py, .ipynb and .md file for misuse of hot-swapping",
    )
    parser.addini(
        "hotswap_lint_paths", "folders to lint besides those that pytest visits", type="linelist"
    )
    parser.addini("hotswap_base", "base model: a folder or a hub id")
    parser.addini("hotswap_adapters", "adapter folders, one glob a line", type="linelist")
    parser.addini("hotswap_subject", "deployment under test: module:Class or path/file.py:Class")
    parser.addini("hotswap_backend", f"torch.compile backend: {', '.join(BACKENDS)}")
    parser.addini("hotswap_report", "JSON-lines file for the outcome of every test")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, check the ini file, and start the report if one is asked for."""
    config.addinivalue_line(
        "markers",
        "hotswap(max_recompiles=0): fail the test if it recompiles more often than this, "
        "or if nothing compiled runs in it",
    )
    backend = config.getini("hotswap_backend")
    if backend and backend not in BACKENDS:
        raise pytest.UsageError(
            f"hotswap_backend is {backend!r} in the ini file; choose from {', '.join(BACKENDS)}"
        )
    report = config.getoption("--hotswap-report") or config.getini("hotswap_report")
    if report and not hasattr(config, "workerinput"):
        from pytest_hotswap.reporting import Report

        from_option = bool(config.getoption("--hotswap-report"))
        folder = config.invocation_params.dir if from_option else config.rootpath
        config.pluginmanager.register(Report(folder / report), "hotswap-report")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Lint the file too, if that is asked for."""
    if not parent.config.getoption("--hotswap-lint"):
        return None
    from pytest_hotswap.lint import collect_file

    return collect_file(file_path, parent)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the files below ``hotswap_lint_paths``."""
    if session.config.getoption("--hotswap-lint"):
        from pytest_hotswap.lint import add_items

        add_items(session, items)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name the deployment under test, if one is configured, and what is linted."""
    lines = [line for line in (_deployment(config),) if line]
    if config.getoption("--hotswap-lint"):
        from pytest_hotswap.lint import header

        lines.append(header(config))
    return lines


def pytest_report_collectionfinish(
    config: pytest.Config, items: Sequence[pytest.Item]
) -> list[str]:
    """Name the subject of each contract class, and where it comes from."""
    if "pytest_hotswap.contract.contract" not in sys.modules:
        return []
    from pytest_hotswap.subjects.origin import told

    return told(config, items)


def _deployment(config: pytest.Config) -> str | None:
    named = [
        (name, config.getoption(f"--hotswap-{name}") or config.getini(f"hotswap_{name}"))
        for name in ("subject", "base", "adapters", "backend")
    ]
    if not any(value for name, value in named if name in ("subject", "base")):
        return None
    texts = [
        f"{name} {', '.join(value) if isinstance(value, list) else value}"
        for name, value in named
        if value
    ]
    return f"hotswap: {'; '.join(texts)}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a marker that cannot be obeyed into a collection error that names the test."""
    report = yield
    if report.passed:
        problems = [
            f"{node.nodeid}: {problem}"
            for node in report.result
            if isinstance(node, pytest.Item)
            for problem in marker_problems(node)
        ]
        if problems:
            report.outcome = "failed"
            report.longrepr = "\n".join(problems)
            report.result = []
    return report


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the compiles in the setup of a watched test."""
    if not _is_watched(item):
        return (yield)
    from pytest_hotswap.fixtures import watched_setup

    with watched_setup(item):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the compiles of a marked test; fail it if it recompiles or nothing compiled runs."""
    __tracebackhide__ = True
    if not _is_watched(item):
        return (yield)
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        from pytest_hotswap.fixtures import observed_call

        with observed_call(item):
            return (yield)
    problems = marker_problems(item)
    if problems:  # a marker that was added after collection
        pytest.fail(f"{item.nodeid}: {problems[0]}", pytrace=False)
    from pytest_hotswap.fixtures import watched_call

    with watched_call(item, **marker.kwargs):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the script that reproduces a failure of a state machine into the report."""
    script = getattr(call.excinfo.value, "hotswap_script", None) if call.excinfo else None
    if script:
        item.user_properties.append(("hotswap.script", script))
        item.add_report_section(call.when, "hotswap script", script)
    return (yield)


def _is_watched(item: pytest.Item) -> bool:
    marked = item.get_closest_marker(MARKER) is not None
    return marked or not {WATCH, FORBID}.isdisjoint(getattr(item, "fixturenames", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the watched tests compiled."""
    from pytest_hotswap.reporting import compile_table

    lines = compile_table(terminalreporter.stats.values())
    if lines:
        terminalreporter.section("hotswap: what was compiled")
        for line in lines:
            terminalreporter.line(line)


def marker_problems(item: pytest.Item) -> list[str]:
    """Say what is wrong with the arguments of the item's ``hotswap`` markers."""
    problems = []
    for marker in item.iter_markers(MARKER):
        if marker.args:
            problems.append(
                f"@pytest.mark.hotswap takes keyword arguments only, got {marker.args!r}; "
                "write @pytest.mark.hotswap(max_recompiles=N)"
            )
        for name, value in marker.kwargs.items():
            if name not in MARKER_ARGUMENTS:
                close = difflib.get_close_matches(name, MARKER_ARGUMENTS)
                remedy = f"did you mean {close[0]!r}?" if close else "it takes max_recompiles only"
                problems.append(f"@pytest.mark.hotswap has no argument {name!r}; {remedy}")
            elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
                problems.append(
                    f"@pytest.mark.hotswap({name}={value!r}) must be a whole number, 0 or more"
                )
    return problems


@pytest.fixture(name=WATCH)
def _hotswap_compile_watch(request: pytest.FixtureRequest) -> Iterator[CompileLog]:
    """A CompileLog of everything that torch.compile does during the test."""
    from hotswap.compiler.watch import watch_compiles
    from pytest_hotswap.fixtures import LOG

    with watch_compiles() as log:
        request.node.stash[LOG] = log
        yield log


@pytest.fixture(name=FORBID, scope="session")
def _hotswap_forbid_recompiles() -> Callable[..., AbstractContextManager[CompileLog]]:
    """The context manager ``hotswap.forbid_recompiles``: a scope that must not recompile."""
    from hotswap.compiler.watch import forbid_recompiles

    return forbid_recompiles


@pytest.fixture(scope="session")
def hotswap_subject(pytestconfig: pytest.Config) -> Subject:
    """The deployment under test, built from ``--hotswap-subject`` or ``--hotswap-base``."""
    from pytest_hotswap.fixtures import resolve_subject

    return resolve_subject(pytestconfig)


@pytest.fixture(scope="class")
def hotswap_deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """The deployment of a contract class: loaded, prepared, compiled, with its oracle."""
    from pytest_hotswap.contract.deployment import bring_up

    yield from bring_up(request, tmp_path_factory)


@pytest.fixture(scope="session")
def hotswap_adapter_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make(model, rank=…, alpha=…)``: the folder of a new adapter with random weights."""
    from pytest_hotswap.fixtures import AdapterFactory

    return AdapterFactory(tmp_path_factory.mktemp("hotswap-adapters"))
