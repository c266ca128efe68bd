"""The compile watch: each thing it sees has a test that it is seen, and one that it stays silent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import hotswap
from hotswap.compiler import private
from hotswap.compiler.compiled import compiled_parts
from hotswap.errors import RecompileError


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scaling = {"default": 2.0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scaling["default"]


X = torch.ones(2, 4)


def warm() -> tuple[Scaled, nn.Module]:
    model = Scaled()
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    compiled(X)
    return model, compiled


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


def test_a_scope_that_only_hits_passes_and_says_how_often() -> None:
    _, compiled = warm()
    with hotswap.forbid_recompiles() as log:
        compiled(X)
    assert log.total_hits == 1


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


def test_eager_runs_past_the_recompile_limit_are_seen() -> None:
    model, compiled = warm()
    with torch._dynamo.config.patch(recompile_limit=1):
        with hotswap.watch_compiles() as log:
            model.scaling["default"] = 3.0
            compiled(X)
            compiled(X)
        assert log.eager_misses
        verdict = log.verdict()
    assert verdict.outcome == "failed"
    assert "ran eagerly" in verdict.reasons[-1]


def test_a_reset_inside_the_scope_is_seen() -> None:
    _, compiled = warm()
    with hotswap.watch_compiles() as log:
        torch._dynamo.reset()
        compiled(X)
        compiled(X)
    assert log.resets == 1
    assert log.verdict(allow_first_compiles=True).outcome == "failed"


def test_the_body_keeps_its_own_exception() -> None:
    with pytest.raises(KeyError, match="mine"), hotswap.forbid_recompiles():
        raise KeyError("mine")


def test_watches_nest_and_leave_nothing_installed() -> None:
    callbacks = list(private.start_callbacks())
    _, compiled = warm()
    heard = []

    def mine(hit: bool) -> bool:
        heard.append(hit)
        return hit

    before = private.set_guard_hook(mine)
    try:
        with hotswap.watch_compiles() as outer:
            compiled(X)
            with hotswap.watch_compiles() as inner:
                compiled(X)
        inner.verdict()
        assert (outer.total_hits, inner.total_hits) == (2, 1)
        assert heard == [True, True]
        assert private.set_guard_hook(mine) is mine
    finally:
        private.set_guard_hook(before)
    assert list(private.start_callbacks()) == callbacks


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda m: m.to(torch.float64), "swap"),
        (lambda m: m.linear.weight.requires_grad_(False), "swap"),
    ],
)
def test_a_changed_weight_is_attributed_to_the_swap(change: object, cause: str) -> None:
    model, compiled = warm()
    change(model)  # type: ignore[operator]
    with hotswap.watch_compiles() as log:
        compiled(X.to(model.linear.weight.dtype))
    assert [found.cause for found in log.recompiles] in ([cause], ["input"])


def test_inputs_and_environment_are_not_blamed_on_the_swap() -> None:
    _, compiled = warm()
    with hotswap.watch_compiles() as log:
        compiled(torch.ones(3, 4))
        with torch.no_grad():
            compiled(X)
    assert [found.cause for found in log.recompiles] == ["input", "environment"]


def test_every_style_of_compiling_is_found_and_a_plain_model_is_not() -> None:
    assert compiled_parts(nn.Sequential(Scaled())) == []
    wrapper = torch.compile(Scaled())
    assert compiled_parts(wrapper) == ["the model is wrapped by torch.compile"]
    model = Scaled()
    model.compile()
    assert compiled_parts(model) == ["the model was compiled in place by .compile()"]
    model = Scaled()
    model.linear = torch.compile(model.linear)
    assert compiled_parts(model) == ["linear is wrapped by torch.compile"]
    model = Scaled()
    model.linear.forward = torch.compile(model.linear.forward)
    assert compiled_parts(model) == ["linear has a compiled forward"]
