"""On a torch that has changed the watch says what it cannot observe, and never passes."""

from __future__ import annotations

from typing import Any

import pytest

import hotswap
from hotswap.compiler import private
from hotswap.errors import CannotObserveError
from tests.support.watched import (
    X,
    warm,
)


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        ("torch._C._dynamo.eval_frame", "set_guard_complete_hook", "cannot observe cache hits"),
        ("torch._dynamo.eval_frame", "_callback_from_stance", "cannot observe calls of compiled"),
        ("torch._dynamo.utils", "get_compilation_metrics", "cannot observe compiles"),
        ("torch._dynamo.callback", "callback_handler", "cannot observe resets"),
    ],
)
def test_a_missing_signal_fails_the_scope_and_leaves_nothing_installed(
    module: str, name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    monkeypatch.delattr(importlib.import_module(module), name)
    with pytest.raises(CannotObserveError, match=says), hotswap.watch_compiles():
        pass
    monkeypatch.undo()
    assert private.set_guard_hook(None) is None


def test_a_missing_detail_is_a_problem_that_fails_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, compiled = warm()
    monkeypatch.setattr(private, "guards", _changed)
    with hotswap.watch_compiles() as log:
        model.scaling["default"] = 3.0
        compiled(X)
    assert len(log.recompiles) == 1  # torch's own record is still read
    assert log.recompiles[0].cause == "swap"
    assert log.problems == ["cannot observe guards"]
    assert log.verdict(max_recompiles=1).outcome == "failed"


def _changed(*_: Any) -> Any:
    raise CannotObserveError("cannot observe guards")
