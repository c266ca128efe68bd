"""Watched tests: what the marker asks of them, and what is noted of each for its report."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hotswap.reporting import PREFIX, drop_trace_capture

if TYPE_CHECKING:
    from hotswap import CompileLog

MARKER = "hotswap"
ARGUMENTS: dict[str, tuple[Any, str]] = {
    "max_recompiles": (int, "a whole number, 0 or more"),
    "any_cause": (bool, "True or False"),
}
LOG: pytest.StashKey[CompileLog] = pytest.StashKey()
"""Where the fixture ``hotswap_compile_watch`` leaves its log for the report."""


def problems(item: pytest.Item) -> list[str]:
    """Say what is wrong with the arguments of the item's ``hotswap`` markers."""
    found = []
    for marker in item.iter_markers(MARKER):
        if marker.args:
            found.append(
                f"@pytest.mark.hotswap takes keyword arguments only, got {marker.args!r}; "
                "write @pytest.mark.hotswap(max_recompiles=N)"
            )
        for name, value in marker.kwargs.items():
            if name not in ARGUMENTS:
                close = difflib.get_close_matches(name, ARGUMENTS)
                known = " and ".join(ARGUMENTS)
                remedy = f"did you mean {close[0]!r}?" if close else f"it takes {known}"
                found.append(f"@pytest.mark.hotswap has no argument {name!r}; {remedy}")
            elif type(value) is not ARGUMENTS[name][0] or value < 0:
                found.append(f"@pytest.mark.hotswap({name}={value!r}) must be {ARGUMENTS[name][1]}")
    return [f"{item.nodeid}: {problem}" for problem in found]


@contextmanager
def watched_setup(item: pytest.Item) -> Iterator[None]:
    """Watch the setup of a test; what it compiles is told apart from what the test does."""
    from hotswap import watch_compiles

    drop_trace_capture()
    with watch_compiles() as log:
        yield
    _record(
        item,
        setup_compiles=len(log.first_compiles) + len(log.recompiles),
        setup_compile_seconds=round(log.seconds, 6),
    )


@contextmanager
def watched_call(item: pytest.Item) -> Iterator[None]:
    """Watch the body of a test; one that is marked fails if it recompiled or nothing compiled ran.

    A body that fails or skips keeps its own outcome. The counts go to ``item.user_properties``.
    """
    __tracebackhide__ = True
    from hotswap import watch_compiles

    if wrong := problems(item):  # a marker that was added after collection
        pytest.fail(wrong[0], pytrace=False)
    marker = item.get_closest_marker(MARKER)
    own = item.stash.get(LOG, None) if marker is None else None
    with nullcontext(own) if own is not None else watch_compiles() as log:
        drop_trace_capture()
        failed = True
        try:
            yield
            failed = False
        finally:
            _record(item, **log.as_dict())
            if failed:
                item.add_report_section("call", "hotswap", str(log))
    if marker is not None:
        asked = {"max_recompiles": 0, **marker.kwargs}
        verdict = log.verdict(**asked, allow_first_compiles=True)
        if verdict.outcome != "passed":
            item.add_report_section("call", "hotswap", str(log))
            told = ", ".join(f"{name}={value}" for name, value in asked.items())
            pytest.fail(
                f"@pytest.mark.hotswap({told}) {verdict.outcome}: " + "; ".join(verdict.reasons),
                pytrace=False,  # the frames are the plugin's, not the test's
            )


def _record(item: pytest.Item, **counts: float) -> None:
    named = {f"{PREFIX}{key}": value for key, value in counts.items()}
    kept = [(key, value) for key, value in item.user_properties if key not in named]
    item.user_properties[:] = [*kept, *named.items()]  # a rerun counts anew
