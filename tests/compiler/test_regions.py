"""Regions: compiled code is named by the module that it belongs to, wherever it is held."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap.compiler.compiled import compiled_parts
from tests.support.watched import (
    CompiledInItsClass,
    Decorated,
    Hiding,
    Scaled,
    Step,
    X,
    regional,
    warm,
)


def test_regions_are_module_paths_whether_or_not_the_model_is_named() -> None:
    model = regional()
    paths = ["layers.0", "layers.1", "layers.2"]
    with torch.no_grad():
        with hotswap.watch_compiles() as log:
            model(X)
        assert list(log.hits) == paths
        with hotswap.watch_compiles(model) as log:
            model(X)
        assert list(log.hits) == paths
        with hotswap.watch_compiles(decoder=model) as log:
            model(X)
        assert list(log.hits) == [f"decoder.{path}" for path in paths]


def test_two_models_of_a_class_have_labels_of_their_own() -> None:
    (_, one), (_, two) = warm(), warm()
    with hotswap.watch_compiles() as log:
        one(X)
        two(X)
        two(X)
    assert log.hits == {"Scaled": 1, "Scaled (2)": 2}
    with hotswap.watch_compiles(first=one, second=two) as log:
        one(X)
        two(X)
    assert log.hits == {"first": 1, "second": 1}


def test_a_watch_on_a_model_leaves_other_models_out_but_no_function() -> None:
    (model, compiled), (_, other) = warm(), warm()

    def step(x: torch.Tensor) -> torch.Tensor:
        return model(x) + 1

    compiled_step = torch.compile(step, backend="eager")
    compiled_step(X)
    with hotswap.watch_compiles(model) as log:
        other(torch.ones(5, 4))
        other(X)
        assert (log.hits, log.recompiles) == ({}, [])
        compiled(X)
        compiled_step(X)
    assert log.hits == {"Scaled": 1, "step (test_regions.py)": 1}


def test_a_module_around_the_model_counts_as_well() -> None:
    inner = Scaled()
    _, compiled = warm(nn.Sequential(inner))
    with hotswap.watch_compiles(inner) as log:
        compiled(X)
        inner.scaling["default"] = 3.0
        compiled(X)
    assert log.hits == {"Sequential": 1}
    assert log.recompiles[0].reasons[0].modules == ("0",)


def test_a_function_that_closes_over_a_model_is_explained_like_the_model() -> None:
    model = Scaled()
    compiled = torch.compile(lambda x: model(x), backend="eager")
    compiled(X)
    with hotswap.watch_compiles() as log:
        model.scaling["default"] = 3.0
        compiled(X)
    (found,) = log.recompiles
    assert found.region.startswith("<lambda> (test_regions.py:")
    assert (found.cause, "alpha / rank" in str(found)) == ("swap", True)


def test_a_log_keeps_no_model_alive() -> None:
    model, compiled = warm()
    with hotswap.watch_compiles(model) as log:
        compiled(X)
    gone = weakref.ref(model)
    del model, compiled
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None
    assert log.hits == {"Scaled": 1}


def _of_two(other: nn.Module, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(other(x))


def _of_many(*args: Any) -> torch.Tensor:
    return args[1](args[0](args[2]))


GLOBAL: list[nn.Module] = []


def _of_a_global(x: torch.Tensor) -> torch.Tensor:
    return GLOBAL[0](x)


def _compiled(function: Any, *first: Any) -> Any:
    return functools.partial(torch.compile(function, backend="eager"), *first)


HELD = {
    "a decorated forward": (lambda m: _compiled(m), "Decorated", ""),
    "a decorated forward in place": (
        lambda m: m.compile(backend="eager") or m,
        "Decorated",
        "",
    ),
    "a method of an object": (lambda m: _compiled(Step(m).run), "run (watched.py)", "self.model"),
    "an object that is called": (lambda m: _compiled(Step(m)), "Step", "Step.model"),
    "a partial of the model": (lambda m: _compiled(functools.partial(m)), "Decorated", ""),
    "a module that hides it": (lambda m: _compiled(Hiding(m)), "Hiding", ""),
    "a function of another model first": (
        lambda m: _compiled(_of_two, nn.Linear(4, 4), m),
        "_of_two (FILE)",
        "model",
    ),
    "a function of any arguments": (
        lambda m: _compiled(_of_many, nn.Linear(4, 4), m),
        "_of_many (FILE)",
        "args[1]",
    ),
    "a function of a global": (
        lambda m: GLOBAL.append(m) or _compiled(_of_a_global),
        "_of_a_global (FILE)",
        "GLOBAL[0]",
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_a_model_is_seen_and_blamed_wherever_compiled_code_holds_it(name: str) -> None:
    hold, label, path = HELD[name]
    label = label.replace("FILE", "test_regions.py")
    GLOBAL.clear()
    model = Decorated()
    call = hold(model)
    with hotswap.watch_compiles(model) as log:
        call(X)
        call(X)
    assert [found.region for found in log.first_compiles] == [label]
    assert (log.hits, log.recompiles) == ({label: 1}, [])
    with hotswap.watch_compiles(model) as log:
        model.scaling["default"] = 3.0
        call(X)
        call(X)
    (found,) = log.recompiles
    assert (found.region, found.cause, log.hits) == (label, "swap", {label: 1})
    assert "the scaling alpha / rank = 2.0 was compiled in" in str(found)
    assert found.reasons[0].modules == ((path,) if path else ())


def test_a_method_that_is_compiled_in_its_class_counts_to_each_module() -> None:
    model = nn.Sequential(CompiledInItsClass(), CompiledInItsClass())
    assert compiled_parts(model) == ["0 has a compiled forward", "1 has a compiled forward"]
    model(X)
    with hotswap.watch_compiles(model) as log:
        model(X)
        model[1].scaling["default"] = 3.0
        model(X)
    assert log.hits == {"0": 2, "1": 1}
    assert [(found.region, found.cause) for found in log.recompiles] == [("1", "swap")]


def test_an_argument_of_a_decorated_forward_is_still_an_input() -> None:
    compiled = torch.compile(Decorated(), backend="eager")
    compiled(torch.ones(2, 4))  # not X, which torch may have marked as dynamic by now
    with hotswap.watch_compiles() as log:
        compiled(torch.ones(3, 4))
    assert [(found.region, found.cause) for found in log.recompiles] == [("Decorated", "input")]


def test_what_a_function_closes_over_is_no_argument() -> None:
    factor = 2.0
    compiled = torch.compile(lambda x: x * factor, backend="eager")
    compiled(X)
    with hotswap.watch_compiles() as log:
        factor = 3.0
        compiled(X)
    (found,) = log.recompiles
    assert found.cause == "swap"
    assert "factor was 2.0 when it was compiled and has changed" in str(found)


def test_past_the_limit_behind_a_graph_break_the_limit_is_named() -> None:
    class Late(Scaled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return x * self.scaling["default"]

    with torch._dynamo.config.patch(recompile_limit=1):
        model, compiled = warm(Late())
        model.scaling["default"] = 3.0
        compiled(X)
        with hotswap.watch_compiles(model) as log:
            compiled(X)
    assert log.eager_misses == {"Late": 1}
    assert "its 1 compiled variants fill recompile_limit=1" in log.verdict().reasons[0]
