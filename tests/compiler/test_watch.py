"""The compile watch: each thing it sees has a test that it is seen, and one that it stays silent."""

from __future__ import annotations

import functools
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap.compiler import private
from hotswap.compiler.compiled import compiled_parts
from hotswap.errors import CannotObserveError, RecompileError


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


class Stack(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Scaled() for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2


def decorated(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return wrapper


class Decorated(Scaled):
    """As the layers of transformers 4 are."""

    forward = decorated(Scaled.forward)


class CompiledInItsClass(Scaled):
    forward = torch.compile(Scaled.forward, backend="eager")


class Step:
    """Holds a model without being a module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class Hiding(nn.Module):
    """Holds a model where ``modules()`` does not look."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.hidden = [model]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden[0](x)


X = torch.ones(2, 4)


def warm(model: nn.Module | None = None, **options: Any) -> tuple[Any, nn.Module]:
    model = model or Scaled()
    compiled = torch.compile(model, backend="eager", **options)
    compiled(X)
    compiled(X)
    return model, compiled


def regional(layers: int = 3) -> Stack:
    model = Stack(layers)
    for layer in model.layers:
        layer.compile(backend="eager")
    with torch.no_grad():
        model(X)
    return model


# ---- counts ----------------------------------------------------------------------------------


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


# ---- regions ---------------------------------------------------------------------------------


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
    assert log.hits == {"Scaled": 1, "step (test_watch.py)": 1}


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
    assert found.region.startswith("<lambda> (test_watch.py:")
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
    "a method of an object": (lambda m: _compiled(Step(m).run), "run (FILE)", "self.model"),
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
    label = label.replace("FILE", "test_watch.py")
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


# ---- scopes ----------------------------------------------------------------------------------


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


def test_watches_may_overlap() -> None:
    _, compiled = warm()
    one, two = hotswap.watch_compiles(), hotswap.watch_compiles()
    first = one.__enter__()
    compiled(X)
    second = two.__enter__()
    compiled(X)
    one.__exit__(None, None, None)
    compiled(X)
    two.__exit__(None, None, None)
    assert (first.total_hits, second.total_hits) == (2, 2)


def test_nothing_of_the_users_is_touched() -> None:
    from torch._dynamo.utils import counters

    _, compiled = warm()
    config, stance = torch._dynamo.config.get_config_copy(), private.stance()
    counted = {name: dict(counter) for name, counter in counters.items()}
    with hotswap.watch_compiles() as log:
        compiled(X)
        assert (torch._dynamo.config.get_config_copy(), private.stance()) == (config, stance)
    assert {name: dict(counter) for name, counter in counters.items()} == counted
    assert log.total_hits == 1


def test_threads_are_counted_exactly_and_an_eager_miss_of_a_finished_one_is_kept() -> None:
    model, compiled = warm()

    def work() -> None:
        for _ in range(50):
            compiled(X)

    def miss() -> None:
        with torch._dynamo.config.patch(recompile_limit=1):  # a patch holds in its own thread
            model.scaling["default"] = 3.0
            compiled(X)

    def run(*targets: Any) -> None:
        threads = [threading.Thread(target=target) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with hotswap.watch_compiles(model) as log:
        run(work, work, work, work)
        run(miss)
        assert log.eager_misses == {"Scaled": 1}
    assert (log.hits, log.eager_misses) == ({"Scaled": 200}, {"Scaled": 1})


def test_a_reset_inside_the_scope_is_seen() -> None:
    _, compiled = warm()
    with hotswap.watch_compiles() as log:
        torch._dynamo.reset()
        compiled(X)
        compiled(X)
    assert log.resets == 1
    assert log.verdict(allow_first_compiles=True).outcome == "failed"


def test_a_guard_hook_that_replaces_ours_is_told_and_stays() -> None:
    _, compiled = warm()

    def theirs(hit: bool) -> bool:
        return hit

    try:
        with hotswap.watch_compiles() as log:
            compiled(X)
            private.set_guard_hook(theirs)
        assert "another guard hook was installed" in log.verdict().reasons[0]
        assert private.set_guard_hook(None) is theirs
    finally:
        private.set_guard_hook(None)


def test_a_hook_that_calls_ours_is_told_and_a_later_watch_counts_once() -> None:
    _, compiled = warm()
    try:
        with hotswap.watch_compiles() as first:
            ours = private.set_guard_hook(None)
            private.set_guard_hook(lambda hit: ours is None or ours(hit))
        with hotswap.watch_compiles() as second:
            compiled(X)
        assert (len(first.problems), second.hits, second.problems) == (1, {"Scaled": 1}, [])
    finally:
        private.set_guard_hook(None)


# ---- a torch that has changed ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        ("torch._C._dynamo.eval_frame", "set_guard_complete_hook", "cannot observe cache hits"),
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


# ---- what is compiled ------------------------------------------------------------------------


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
