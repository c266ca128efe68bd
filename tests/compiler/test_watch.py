"""What a watch counts: first compiles, recompiles, hits, failures, graph breaks; and its verdict."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap.errors import RecompileError
from tests.support.watched import (
    Broken,
    Scaled,
    X,
    warm,
)


def test_first_compiles_hits_and_recompiles_are_told_apart() -> None:
    model = Scaled()
    compiled = torch.compile(model, backend="eager")
    with hotswap.watch_compiles() as log:
        compiled(X)
        assert (len(log.first_compiles), len(log.recompiles), log.total_hits) == (1, 0, 0)
        compiled(X)
        assert log.total_hits == 1
        model.scaling["default"] = 3.0
        compiled(X)
        assert len(log.recompiles) == 1
    assert log.recompiles[0].cause == "swap"
    assert "prepare" in log.recompiles[0].sentence
    assert log.seconds > 0
    counts = log.as_dict()
    assert (counts["first_compiles"], counts["recompiles"], counts["hits"]) == (1, 1, 1)
    assert "recompile: Scaled: the scaling alpha / rank = 2.0" in str(log)


def test_a_scope_that_only_hits_passes_and_says_how_often() -> None:
    _, compiled = warm()
    with hotswap.forbid_recompiles() as log:
        compiled(X)
    assert log.total_hits == 1
    assert str(log.verdict()) == "passed: 1 call(s) ran compiled code in Scaled"


def test_a_scope_in_which_nothing_compiled_ran_is_vacuous() -> None:
    model = Scaled()
    with hotswap.watch_compiles() as log:
        model(X)
    assert log.verdict().outcome == "vacuous"
    with pytest.raises(RecompileError, match="no compiled code ran"), hotswap.forbid_recompiles():
        model(X)


def test_a_recompile_raises_with_its_cause_unless_it_is_allowed() -> None:
    model, compiled = warm()
    model.scaling["default"] = 3.0
    with pytest.raises(RecompileError, match="alpha / rank"), hotswap.forbid_recompiles():
        compiled(X)
    with hotswap.forbid_recompiles(max_recompiles=1):
        model.scaling["default"] = 5.0
        compiled(X)
        compiled(X)


def test_a_first_compile_inside_the_scope_needs_a_permit_and_a_second_call() -> None:
    compiled = torch.compile(Scaled(), backend="eager")
    with pytest.raises(RecompileError, match="warm up"), hotswap.forbid_recompiles():
        compiled(X)
    torch._dynamo.reset()
    once = hotswap.forbid_recompiles(allow_first_compiles=True)
    with pytest.raises(RecompileError, match="vacuous"), once:
        compiled(X)
    with hotswap.forbid_recompiles(allow_first_compiles=True):
        compiled(X)


def test_a_recompile_that_no_swap_caused_is_a_note_beside_hits_and_vacuous_alone() -> None:
    _, compiled = warm()
    with hotswap.watch_compiles() as log:
        compiled(torch.ones(3, 4))
    assert log.verdict().outcome == "vacuous"
    assert log.verdict().reasons[0].startswith("the warm-up does not match this call: Scaled: ")
    with hotswap.forbid_recompiles() as log:
        compiled(torch.ones(1, 4))
        compiled(X)
    (note,) = log.verdict().notes
    assert "from 2 to 1" in note or "0 and 1 are always special" in note
    strict = hotswap.forbid_recompiles(any_cause=True)
    with pytest.raises(RecompileError, match="failed"), torch.no_grad(), strict:
        [compiled(X) for _ in range(2)]


def test_failed_compiles_are_told() -> None:
    def explode(*_: Any) -> Any:
        raise RuntimeError("the backend exploded")

    compiled = torch.compile(Scaled(), backend=explode)
    with hotswap.watch_compiles() as log, pytest.raises(Exception, match="the backend exploded"):
        compiled(X)
    (failed,) = log.failed
    assert failed.region == "Scaled"
    assert "compilation of Scaled failed: " in log.verdict().reasons[0]
    assert "the backend exploded" in log.verdict().reasons[0]


def test_graph_breaks_are_told_and_both_parts_count_to_the_module() -> None:
    model, source = Broken(), Broken.forward.__code__.co_firstlineno
    compiled = torch.compile(model, backend="eager")
    with hotswap.watch_compiles(model) as log:
        compiled(X)
        compiled(X)
    assert log.graph_breaks == [f"Broken: the graph breaks in forward, line {source + 2}"]
    assert (len(log.first_compiles), log.hits) == (2, {"Broken": 2})
    _, whole = warm()
    with hotswap.watch_compiles() as log:
        whole(X)
    assert log.graph_breaks == []


def test_backward_graphs_are_compiled_once_and_not_after_a_prepared_swap() -> None:
    model = Scaled()
    model.scaling = {"default": torch.tensor(2.0)}  # type: ignore[dict-item]
    compiled = torch.compile(model, backend="aot_eager")
    with hotswap.watch_compiles() as log:
        compiled(X).sum().backward()
        model.scaling["default"].fill_(3.0)  # type: ignore[attr-defined]
        compiled(X).sum().backward()
    assert (len(log.first_compiles), len(log.recompiles), log.total_hits) == (1, 0, 1)
    with hotswap.forbid_recompiles() as log:
        compiled(X).sum().backward()
    assert log.backwards == []


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("options", [{"fullgraph": True}, {"dynamic": True}, {"dynamic": False}])
def test_every_backend_and_option_is_counted_alike(backend: str, options: dict[str, Any]) -> None:
    model = Scaled()
    compiled = torch.compile(model, backend=backend, **options)
    compiled(X)
    with hotswap.watch_compiles() as log:
        compiled(X)
        model.linear.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
        model.linear.bias = nn.Parameter(torch.ones(4, dtype=torch.float64))
        compiled(X.double())
    assert (len(log.recompiles), log.hits) == (1, {"Scaled": 1})
    assert log.recompiles[0].cause == "swap"


def test_cuda_graphs_are_counted_by_the_same_callbacks() -> None:
    from torch._dynamo.callback import CallbackTrigger, callback_handler

    _, compiled = warm()
    with hotswap.watch_compiles() as log:
        compiled(X)
        assert log.cudagraph_records == 0
        with callback_handler.install_callbacks(CallbackTrigger.CUDAGRAPH_RECORDING, "0/0"):
            pass
    assert log.cudagraph_records == 1


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_code_of_inductor_is_watched_like_any_other() -> None:
    model = Scaled()
    compiled = torch.compile(model, backend="inductor")
    x = torch.ones(2, 4)
    compiled(x)
    with hotswap.watch_compiles(model) as log:
        before = compiled(x)
        model.scaling["default"] = 4.0
        torch.testing.assert_close(compiled(x), 2 * before)
    assert [event.cause for event in log.recompiles] == ["swap"]
    assert sum(log.hits.values()) == 1
