"""Register the options, the marker and the fixtures; everything heavy is imported on first use.

A project without hot-swap tests pays for this file only: it needs pytest and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import pytest

if TYPE_CHECKING:
    from hotswap import CompileLog
    from pytest_hotswap.contract.deployment import Broken, Deployment
    from pytest_hotswap.ranks.controller import OverRanks
    from pytest_hotswap.subjects.base import Subject

BACKENDS = ("eager", "aot_eager", "inductor")
MARKER = "hotswap"
WATCH = "hotswap_compile_watch"
FORBID = "hotswap_forbid_recompiles"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add each option, and an ini key of the same name that it overrides."""
    base = "base model: a folder or a hub id"
    subject = "deployment under test: module:Class or path/file.py:Class"
    ini = parser.addini
    ini("hotswap_lint_paths", "folders to lint besides those that pytest visits", type="linelist")
    ini("hotswap_base", base)
    ini("hotswap_adapters", "adapter folders, one glob a line", type="linelist")
    ini("hotswap_subject", subject)
    ini("hotswap_backend", f"torch.compile backend: {', '.join(BACKENDS)}")
    ini("hotswap_report", "JSON-lines file for the outcome of every test")
    option = parser.getgroup("hotswap", "hot-swapping LoRA adapters").addoption
    option("--hotswap-base", metavar="PATH", help=base)
    option(
        "--hotswap-adapters",
        metavar="GLOB",
        action="append",
        help="adapter folders to swap between (repeatable)",
    )
    option("--hotswap-subject", metavar="SUBJECT", help=f"{subject} (default: hotswap's own)")
    option(
        "--hotswap-backend",
        choices=BACKENDS,
        help="torch.compile backend (default: the subject's own, which is eager)",
    )
    option(
        "--hotswap-report",
        metavar="FILE",
        help="write the outcome of every test to FILE, one JSON object a line",
    )
    option(
        "--hotswap-lint",
        action="store_true",
        help="check every .py, .ipynb and .md file for misuse of hot-swapping",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, check the ini file, and start the report if one is asked for."""
    config.addinivalue_line(
        "markers",
        "hotswap(max_recompiles=0, any_cause=False): fail the test if swaps recompile more often than "
        "this, or anything does with any_cause=True, or if nothing compiled runs in it",
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
    named = {
        name: config.getoption(f"--hotswap-{name}") or config.getini(f"hotswap_{name}")
        for name in ("subject", "base", "adapters", "backend")
    }
    lines = []
    if named["subject"] or named["base"]:
        told = [
            f"{name} {', '.join(value) if isinstance(value, list) else value}"
            for name, value in named.items()
            if value
        ]
        lines.append(f"hotswap: {'; '.join(told)}")
    if config.getoption("--hotswap-lint"):
        from pytest_hotswap.lint import header

        lines.append(header(config))
    return lines


def pytest_report_collectionfinish(
    config: pytest.Config, items: Sequence[pytest.Item]
) -> list[str]:
    """Name the subject of each contract class, and where it comes from."""
    contract = sys.modules.get("pytest_hotswap.contract.contract")
    if contract is None:
        return []
    from pytest_hotswap.subjects.origin import told

    laws = contract.HotswapContract
    return told(config, [i for i in items if issubclass(getattr(i, "cls", None) or object, laws)])


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a marker that cannot be obeyed into a collection error that names the test."""
    report = yield
    marked = [node for node in report.result if _is_marked(node)] if report.passed else []
    if marked:
        from pytest_hotswap.marker import problems

        if found := [problem for item in marked for problem in problems(item)]:
            report.outcome, report.longrepr, report.result = "failed", "\n".join(found), []
    return report


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the compiles in the setup of a watched test."""
    if not _is_watched(item):
        return (yield)
    from pytest_hotswap.marker import watched_setup

    with watched_setup(item):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the compiles of a watched test; fail a marked one if it recompiles or nothing compiled runs."""
    __tracebackhide__ = True
    if not _is_watched(item):
        return (yield)
    from pytest_hotswap.marker import watched_call

    with watched_call(item):
        return (yield)


@pytest.hookimpl(tryfirst=True, specname="pytest_runtest_setup")
def pytest_runtest_quiet_setup(item: pytest.Item) -> None:
    """Keep torch's trace out of what a failing law prints: the deployment is compiled in the setup."""
    _quieten(item)


@pytest.hookimpl(tryfirst=True, specname="pytest_runtest_call")
def pytest_runtest_quiet_call(item: pytest.Item) -> None:
    """Keep it out of what the test itself logs, too."""
    _quieten(item)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Let the ranks judge a law of a deployment that is over several."""
    __tracebackhide__ = True
    controller = sys.modules.get("pytest_hotswap.ranks.controller")
    deployment = getattr(pyfuncitem, "funcargs", {}).get("deployment")
    if controller is None or not isinstance(deployment, controller.OverRanks):
        return None
    deployment.judge(pyfuncitem)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say what a law or a state machine has found without the frames of it, and put a script beside it."""
    script = getattr(call.excinfo.value, "hotswap_script", None) if call.excinfo else None
    law = False
    if call.excinfo and _is_of_a_contract(item):
        from pytest_hotswap.contract import failure

        law = failure.is_of_the_law(call)
        if law:
            failure.keep_the_sentence(call.excinfo.value)
            script = failure.script(item, call.excinfo.value)
    if script:
        item.user_properties.append(("hotswap.script", script))
        item.add_report_section(call.when, "hotswap script", script)
    report = yield
    if law and report.failed and call.excinfo:
        report.longrepr = call.excinfo.getrepr(style="value")
        report.sections.insert(0, ("what to do", failure.what_to_do(item, call.excinfo.value)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the watched tests compiled, and which laws do not apply."""
    from pytest_hotswap.reporting import compile_table, switched_off

    reports = terminalreporter.stats.values()
    sections = {"what was compiled": compile_table(reports)}
    if "pytest_hotswap.contract.contract" in sys.modules:
        sections["laws that are switched off"] = switched_off(reports)
    for title, lines in sections.items():
        if lines:
            terminalreporter.section(f"hotswap: {title}")
        for line in lines:
            terminalreporter.line(line)


def _quieten(item: pytest.Item) -> None:
    if _is_of_a_contract(item):
        from pytest_hotswap.reporting import drop_trace_capture

        drop_trace_capture()


def _is_of_a_contract(item: pytest.Item) -> bool:
    contract = sys.modules.get("pytest_hotswap.contract.contract")
    cls = getattr(item, "cls", None) or object
    return contract is not None and issubclass(cls, contract.HotswapContract)


def _is_marked(node: object) -> TypeGuard[pytest.Item]:
    return isinstance(node, pytest.Item) and node.get_closest_marker(MARKER) is not None


def _is_watched(item: pytest.Item) -> bool:
    return _is_marked(item) or not {WATCH, FORBID}.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.fixture(name=WATCH)
def _hotswap_compile_watch(request: pytest.FixtureRequest) -> Iterator[CompileLog]:
    """A CompileLog of everything that torch.compile does during the test."""
    from hotswap import watch_compiles
    from pytest_hotswap.marker import LOG

    with watch_compiles() as log:
        request.node.stash[LOG] = log
        yield log


@pytest.fixture(name=FORBID, scope="session")
def _hotswap_forbid_recompiles() -> Callable[..., AbstractContextManager[CompileLog]]:
    """The context manager ``hotswap.forbid_recompiles``: a scope that must not recompile."""
    from hotswap import forbid_recompiles

    return forbid_recompiles


@pytest.fixture(scope="session")
def hotswap_subject(pytestconfig: pytest.Config) -> Subject:
    """The deployment under test, built from ``--hotswap-subject`` or ``--hotswap-base``."""
    from pytest_hotswap.subjects.origin import resolve_subject

    try:
        return resolve_subject(pytestconfig)
    except pytest.UsageError as error:
        problem = str(error)
    pytest.fail(problem, pytrace=False)  # a sentence: the frames are the plugin's


@pytest.fixture(scope="class")
def hotswap_deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment | OverRanks | Broken]:
    """The deployment of a contract class: loaded, prepared, compiled, with its oracle."""
    from pytest_hotswap.fixtures import bring_up

    yield from bring_up(request, tmp_path_factory)


@pytest.fixture(scope="session")
def hotswap_adapter_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make(model, rank=…, alpha=…)``: the folder of a new adapter with random weights."""
    from pytest_hotswap.fixtures import AdapterFactory

    return AdapterFactory(tmp_path_factory.mktemp("hotswap-adapters"))
