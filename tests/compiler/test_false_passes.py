"""A watch must not pass where the model did not run compiled code: ways to make it, each a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap.compiler import private
from hotswap.errors import RecompileError
from tests.support.watched import Scaled, X, regional, warm


def unrelated() -> Callable[[torch.Tensor], torch.Tensor]:
    compiled: Any = torch.compile(lambda x: x + 1, backend="eager")
    compiled(X)
    return compiled  # type: ignore[no-any-return]


class TestAHitThatIsNotTheModels:
    def test_an_unrelated_function_is_no_evidence_for_a_model(self) -> None:
        model, function = Scaled(), unrelated()
        forbid = hotswap.forbid_recompiles(model)
        with pytest.raises(RecompileError, match=r"vacuous(.|\n)*calls none of the models"), forbid:
            model(function(X))

    def test_a_function_that_calls_the_model_is(self) -> None:
        model = Scaled()
        compiled = torch.compile(lambda x: model(x), backend="eager")
        compiled(X)
        with hotswap.forbid_recompiles(model):
            compiled(X)

    def test_a_function_is_for_the_model_that_it_is_given(self) -> None:
        one, two = Scaled(), Scaled()

        def step(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return model(x)

        compiled = torch.compile(step, backend="eager")
        for model in (one, two):
            compiled(model, X)
            compiled(model, X)
        with hotswap.forbid_recompiles(one):
            compiled(one, X)
        with pytest.raises(RecompileError, match="vacuous"), hotswap.forbid_recompiles(two):
            compiled(one, X)

    def test_a_function_that_calls_the_model_behind_a_graph_break_is(self) -> None:
        model = Scaled()

        def step(x: torch.Tensor) -> torch.Tensor:
            x = x + 1
            torch._dynamo.graph_break()
            return model(x)

        compiled = torch.compile(step, backend="eager")
        compiled(X)
        with hotswap.forbid_recompiles(model):
            compiled(X)

    def test_without_models_every_hit_counts(self) -> None:
        function = unrelated()
        with hotswap.forbid_recompiles():
            function(X)


class TestCompiledCodeWithoutAGraph:
    def test_a_forward_that_is_disabled_runs_no_graph(self) -> None:
        class Disabled(Scaled):
            @torch.compiler.disable
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x)

        ran: list[int] = []

        def backend(graph: Any, _: Any) -> Any:
            ran.append(1)
            return graph

        compiled = torch.compile(Disabled(), backend=backend)
        compiled(X)
        with pytest.raises(RecompileError), hotswap.forbid_recompiles():
            compiled(X)
        assert ran == []

    def test_a_forward_that_breaks_at_once_and_for_good_runs_no_graph(self) -> None:
        @torch.compiler.disable
        def eager(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        class Breaking(nn.Module):
            def forward(self, x: torch.Tensor) -> Any:
                return eager(x)

        compiled = torch.compile(Breaking(), backend="eager")
        compiled(X)
        with hotswap.watch_compiles() as log:
            compiled(X)
        assert (log.hits, log.verdict().outcome) == ({}, "vacuous")
        assert "holds no graph" in log.verdict().reasons[0]

    def test_a_graph_behind_the_break_is_one(self) -> None:
        class Late(Scaled):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                torch._dynamo.graph_break()
                return super().forward(x)

        _, compiled = warm(Late())
        with hotswap.forbid_recompiles():
            compiled(X)


class TestCallsThatTorchDoesNotLookAt:
    def test_calls_under_force_eager_after_a_hit_are_counted(self) -> None:
        model, compiled = warm()
        with hotswap.watch_compiles(model) as log:
            compiled(X)
            with torch.compiler.set_stance("force_eager"):
                compiled(X)
                compiled(X)
        assert (log.hits, log.eager_misses) == ({"Scaled": 1}, {"Scaled": 2})
        assert log.verdict().outcome == "failed"
        assert "set_stance('force_eager') is in force" in log.verdict().reasons[0]

    def test_a_stance_that_is_set_before_the_scope_is_seen(self) -> None:
        model, compiled = warm()
        with torch.compiler.set_stance("force_eager"), hotswap.watch_compiles(model) as log:
            compiled(X)
        assert log.eager_misses == {"Scaled": 1}

    def test_a_model_that_is_called_past_its_compiled_code_is_counted(self) -> None:
        model, compiled = warm()
        with hotswap.watch_compiles(model) as log:
            compiled(X)
            torch.compiler.disable(compiled)(X)
        assert log.eager_misses == {"Scaled": 1}
        assert "torch.compiler.disable" in log.verdict().reasons[0]

    def test_a_first_compile_after_a_reset_is_no_miss(self) -> None:
        model, compiled = warm()
        with hotswap.watch_compiles(model) as log:
            torch._dynamo.reset()
            compiled(X)
            compiled(X)
        assert (log.hits, log.eager_misses) == ({"Scaled": 1}, {})
        assert [found.region for found in log.first_compiles] == ["Scaled"]

    def test_a_disabled_method_that_compiled_code_calls_is_no_miss(self) -> None:
        class Logging(Scaled):
            @torch.compiler.disable
            def log(self, x: torch.Tensor) -> None:
                pass

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.log(x)
                return super().forward(x)

        model, compiled = warm(Logging())
        with hotswap.forbid_recompiles(model) as log:
            compiled(X)
        assert log.eager_misses == {}

    def test_a_region_that_failed_to_compile_before_the_scope_is_eager_for_ever(self) -> None:
        model = regional(layers=2)

        def explode(*_: Any) -> Any:
            raise RuntimeError("the backend exploded")

        torch._dynamo.reset()
        model.layers[0].compile(backend="eager", isolate_recompiles=True)
        model.layers[1].compile(backend=explode, isolate_recompiles=True)
        with torch._dynamo.config.patch(suppress_errors=True), torch.no_grad():
            model(X)
            model(X)
            with hotswap.watch_compiles(model) as log:
                model(X)
        assert log.hits.keys() <= {"layers.0"}
        assert "layers.1" in log.eager_misses
        assert log.verdict().outcome == "failed"

    def test_the_guard_hook_taken_out_for_a_moment_is_seen(self) -> None:
        model, compiled = warm()
        with hotswap.watch_compiles(model) as log:
            compiled(X)
            ours = private.set_guard_hook(None)
            model.scaling["default"] = 9.0
            with torch._dynamo.config.patch(recompile_limit=1):
                compiled(X)
            private.set_guard_hook(ours)
        assert log.verdict().outcome == "failed"

    def test_a_compiled_function_without_a_tensor_is_none_of_torchs_business(self) -> None:
        _, compiled = warm()
        spoken = torch.compile(lambda text: text.upper(), backend="eager")
        spoken("a")
        with hotswap.forbid_recompiles() as log:
            spoken("a")
            compiled(X)
        assert log.eager_misses == {}

    def test_config_disable_after_a_hit_is_seen(self) -> None:
        model, compiled = warm()
        with hotswap.watch_compiles(model) as log, torch._dynamo.config.patch(disable=True):
            compiled(X)
            model.scaling["default"] = 5.0
            compiled(X)
        assert log.verdict().outcome == "failed"

    def test_a_resume_function_past_the_limit_is_counted(self) -> None:
        class Late(Scaled):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = x + 1
                torch._dynamo.graph_break()
                return super().forward(x)

        model, compiled = warm(Late())
        with torch._dynamo.config.patch(recompile_limit=1), hotswap.watch_compiles(model) as log:
            compiled(X)
            model.scaling["default"] = 3.0
            compiled(X)
        assert log.eager_misses == {"Late": 1}

    def test_past_the_accumulated_limit_that_limit_is_named(self) -> None:
        model, compiled = warm()
        with torch._dynamo.config.patch(accumulated_recompile_limit=1):
            model.scaling["default"] = 3.0
            with hotswap.watch_compiles(model) as log:
                compiled(X)
        assert log.eager_misses == {"Scaled": 1}
        assert "accumulated_recompile_limit=1" in log.verdict().reasons[0]


class TestRecompilesThatAreEasilyMissed:
    def test_one_inside_a_custom_op_that_the_model_calls_is_counted(self) -> None:
        helper = Scaled()
        inside = torch.compile(helper, backend="eager")

        @torch.library.custom_op("hotswap_tests::helped", mutates_args=())
        def helped(x: torch.Tensor) -> torch.Tensor:
            return inside(x).clone()  # type: ignore[no-any-return]

        @helped.register_fake
        def _(x: torch.Tensor) -> torch.Tensor:
            return torch.empty_like(x)

        class Caller(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return helped(x) * 2

        with torch.no_grad():
            model, compiled = warm(Caller())
            with hotswap.watch_compiles(model) as log:
                compiled(X)
                helper.scaling["default"] = 7.0
                compiled(X)
        assert len(log.recompiles) == 1
        assert log.verdict().outcome == "failed"

    def test_compilation_metrics_that_were_cleared_are_missed(self) -> None:
        from torch._dynamo.utils import clear_compilation_metrics

        model, compiled = warm()
        with hotswap.watch_compiles(model) as log:
            compiled(X)
            model.scaling["default"] = 3.0
            compiled(X)
            clear_compilation_metrics()
        assert log.verdict().outcome == "failed"

    def test_compilation_metrics_that_are_switched_off_are_missed(self) -> None:
        from torch._dynamo import utils

        limit = utils._compilation_metrics.maxlen
        model, compiled = warm()
        utils.set_compilation_metrics_limit(0)
        try:
            with hotswap.watch_compiles(model) as log:
                compiled(X)
                model.scaling["default"] = 3.0
                compiled(X)
        finally:
            utils.set_compilation_metrics_limit(limit)
        assert log.verdict().outcome == "failed"
        assert "kept no record" in str(log.verdict())

    @pytest.mark.parametrize("begun", ["before the scope", "in the scope"])
    def test_one_in_another_thread_that_has_not_ended(self, begun: str) -> None:
        with _slow_recompile(begun) as (model, verdict):
            pass
        assert verdict().outcome == "failed"
        assert "another thread was compiling it when the scope ended" in str(verdict())
        assert model is not None


@contextmanager
def _slow_recompile(begun: str) -> Iterator[tuple[nn.Module, Callable[[], Any]]]:
    """A watch that ends while a thread recompiles the model, after a hit of this thread."""
    started, go_on = threading.Event(), threading.Event()
    slow = False

    def backend(graph: Any, _: Any) -> Any:
        if slow:
            started.set()
            go_on.wait(20)
        return graph

    model = Scaled()
    compiled = torch.compile(model, backend=backend)
    compiled(X)
    compiled(X)
    slow = True
    thread = threading.Thread(target=lambda: compiled(torch.ones(7, 4)))
    if begun == "before the scope":
        thread.start()
        started.wait(20)
    with hotswap.watch_compiles(model) as log:
        compiled(X)
        if begun == "in the scope":
            thread.start()
            started.wait(20)
        yield model, log.verdict
    go_on.set()
    thread.join()


def test_a_short_watch_in_another_thread_makes_no_eager_miss_of_a_recompile() -> None:
    """Between a miss and its compile another watch begins and ends."""
    model, compiled = warm()
    begun, ended = threading.Event(), threading.Event()

    def short() -> None:
        begun.wait(20)
        with hotswap.watch_compiles():
            pass
        ended.set()

    thread = threading.Thread(target=short)
    thread.start()

    def wait(_: Any) -> None:
        begun.set()
        ended.wait(20)

    with hotswap.watch_compiles(model) as log:
        private.start_callbacks().insert(0, wait)  # before the watch hears of it
        model.scaling["default"] = 3.0
        compiled(X)
        private.start_callbacks().remove(wait)
    thread.join()
    assert (len(log.recompiles), log.eager_misses) == (1, {})


class TestWhatLooksLikeAFalsePassAndIsNone:
    def test_a_thread_that_was_started_before_the_scope_is_counted(self) -> None:
        model, compiled = warm()
        go, done = threading.Event(), threading.Event()

        def work() -> None:
            go.wait(20)
            model.scaling["default"] = 3.0
            compiled(X)
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.01)
        with hotswap.watch_compiles(model) as log:
            go.set()
            done.wait(20)
        thread.join()
        assert len(log.recompiles) == 1

    def test_dynamic_shapes_hit_and_do_not_hide_a_swap(self) -> None:
        model = Scaled()
        compiled = torch.compile(model, backend="eager", dynamic=True)
        compiled(X)
        with hotswap.forbid_recompiles(model):
            compiled(torch.ones(5, 4))
        with hotswap.watch_compiles(model) as log:
            model.linear = nn.Linear(4, 4, bias=False)
            compiled(torch.ones(6, 4))
        assert log.verdict().outcome == "failed"

    def test_an_exported_module_inside_of_a_compiled_one_is_traced_like_any(self) -> None:
        exported = torch.export.export(nn.Linear(4, 4).eval(), (X,)).module()

        class Around(Scaled):
            def __init__(self) -> None:
                super().__init__()
                self.exported = exported

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(self.exported(x))

        model, compiled = warm(Around())
        with hotswap.watch_compiles(model) as log:
            compiled(X)
            model.scaling["default"] = 3.0
            compiled(X)
        assert (log.total_hits, len(log.recompiles)) == (1, 1)

    def test_compiled_autograd_does_not_hide_a_swap(self) -> None:
        model = Scaled()
        compiled = torch.compile(model, backend="aot_eager")
        with torch._dynamo.config.patch(compiled_autograd=True):
            for _ in range(2):
                compiled(X).sum().backward()
            with hotswap.watch_compiles(model) as log:
                compiled(X).sum().backward()
                model.scaling["default"] = 3.0
                compiled(X).sum().backward()
        assert log.verdict().outcome == "failed"
        assert any(found.region == "Scaled" for found in log.recompiles)

    @torch.no_grad()
    def test_what_comes_out_of_saved_artifacts_is_compiled_and_hides_no_swap(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "one"))
        torch.compile(Scaled())(X)
        saved = torch.compiler.save_cache_artifacts()
        assert saved is not None
        torch._dynamo.reset()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "other"))
        torch.compiler.load_cache_artifacts(saved[0])
        model = Scaled()
        compiled = torch.compile(model)
        with hotswap.watch_compiles(model) as log:
            compiled(X)
        assert (len(log.first_compiles), log.total_hits) == (1, 0)
        with hotswap.forbid_recompiles(model):
            compiled(X)
        with hotswap.watch_compiles(model) as log:
            model.scaling["default"] = 3.0
            compiled(X)
        assert len(log.recompiles) == 1
