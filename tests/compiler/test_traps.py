"""Where torch's own tools say nothing, the watch speaks: each trap shows both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import hotswap
from hotswap.errors import RecompileError
from tests.support.compiled import Lora, mlp


@pytest.fixture
def lora(tmp_path: Path) -> Lora:
    return Lora(mlp, tmp_path)


def test_past_the_recompile_limit_every_call_runs_eagerly(lora: Lora) -> None:
    counter = CompileCounter()
    lora.called = torch.compile(lora.model, backend=counter, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=1):
        lora.run()
        lora.swap(4, 16)
        lora.run()  # the call that hits the limit
        lora.swap(4, 32)
        for loud in (
            torch._dynamo.config.patch(error_on_recompile=True),
            torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
            torch.compiler.set_stance("fail_on_recompile"),
        ):
            with loud:
                lora.run()  # torch: no error
        assert counter.frame_count == 1  # torch: one compile, as if nothing had happened
        with pytest.raises(RecompileError) as raised, hotswap.forbid_recompiles(lora.model):
            lora.run()
    text = str(raised.value)
    assert "1 call(s) to PeftModel found no compiled code that fits and ran eagerly" in text
    assert "its 1 compiled variants fill recompile_limit=1" in text
    assert "down, up: the scaling alpha / rank = 2.0 was compiled in as a constant" in text


def test_a_model_that_was_never_compiled_passes_every_counter(lora: Lora) -> None:
    with torch.compiler.set_stance("fail_on_recompile"), hotswap.watch_compiles() as log:
        lora.run()  # torch: no compile, no error
    assert (log.first_compiles, log.recompiles, log.hits) == ([], [], {})
    verdict = log.verdict()
    assert verdict.outcome == "vacuous"
    with pytest.raises(RecompileError, match="vacuous"), hotswap.forbid_recompiles(lora.model):
        lora.run()


def test_a_recompile_for_two_reasons_names_only_the_first(lora: Lora) -> None:
    lora.warm("whole")
    with hotswap.watch_compiles(lora.model) as log:
        lora.swap(4, 16)
        lora.run(lora.inputs(batch=3))
    (found,) = log.recompiles
    assert "size mismatch" in found.raw  # torch: the input, and nothing of the swap
    assert "scaling" not in found.raw.splitlines()[0]
    assert [reason.cause for reason in found.reasons] == ["swap", "input"]
    assert found.reasons[0].modules == ("down", "up")


def test_a_larger_rank_is_reported_as_another_type(lora: Lora) -> None:
    lora.warm("whole")
    with hotswap.watch_compiles(lora.model) as log:
        lora.swap(8, 16)
        lora.run()
    (found,) = log.recompiles
    assert "but found <class 'torch.Tensor'>" in found.raw  # torch: no word of a rank
    assert "the rank changed from 4 to 8" in str(found)


def test_a_reset_clears_the_callbacks_that_count_compiles(lora: Lora) -> None:
    lora.warm("whole")
    started: list[Any] = []
    torch._dynamo.callback.on_compile_start(started.append)
    with hotswap.watch_compiles(lora.model) as log:
        torch._dynamo.reset()
        lora.run()
    assert started == []  # torch: no compile
    assert (len(log.first_compiles), log.resets) == (1, 1)
    assert "reset() was called" in str(log.verdict(allow_first_compiles=True))


def test_a_hook_that_is_added_after_the_compile_is_never_called(lora: Lora) -> None:
    lora.warm("whole")
    called: list[Any] = []
    up = lora.model.base_model.model.up
    with torch.compiler.set_stance("fail_on_recompile"), hotswap.watch_compiles(lora.model) as log:
        handle = up.register_forward_hook(lambda *_: called.append(1))
        lora.run()
    assert (
        called == []
    )  # torch: no recompile, no warning, and another result than without compiling
    assert log.problems == [
        "up: a forward hook was added after torch.compile, and compiled code never calls it; "
        "add it before torch.compile"
    ]
    handle.remove()
    with hotswap.forbid_recompiles(lora.model):
        lora.run()


def test_a_hook_that_is_there_when_it_is_compiled_is_no_problem(lora: Lora) -> None:
    lora.model.base_model.model.up.register_forward_hook(lambda module, args, output: output * 2)
    lora.warm("whole")
    with hotswap.forbid_recompiles(lora.model):
        lora.run()


def test_a_hook_on_what_is_compiled_does_not_hide_its_compiled_code(lora: Lora) -> None:
    lora.model.register_forward_hook(lambda *_: None)
    lora.warm("whole")
    with hotswap.forbid_recompiles(lora.model) as log:
        lora.run()
    assert log.hits == {"PeftModel": 1}


def test_a_hook_that_breaks_the_graph_is_called_and_no_problem(lora: Lora) -> None:
    called: list[Any] = []
    up = lora.model.base_model.model.up
    up.register_forward_hook(torch.compiler.disable(lambda *_: called.append(1)))
    lora.warm("whole")
    called.clear()
    with hotswap.forbid_recompiles(lora.model) as log:
        lora.run()
    assert called == [1]
    assert log.hits == {"PeftModel": 2, "up": 1}


def test_a_hook_that_is_added_to_a_module_without_weights_is_found(lora: Lora) -> None:
    lora.warm("whole")
    act = next(m for m in lora.model.modules() if isinstance(m, nn.Tanh | nn.ReLU | nn.Identity))
    with hotswap.watch_compiles(lora.model) as log:
        act.register_forward_hook(lambda *_: None)
        lora.run()
    assert "a forward hook was added after torch.compile" in log.problems[0]


def test_under_force_eager_every_call_of_compiled_code_is_counted(lora: Lora) -> None:
    lora.warm("whole")
    with torch.compiler.set_stance("force_eager"), hotswap.watch_compiles(lora.model) as log:
        lora.run()  # torch: no compile, no error
        verdict = log.verdict()
    assert log.eager_misses == {"PeftModel": 1}
    assert verdict.outcome == "failed"
    assert "set_stance('force_eager') is in force" in verdict.reasons[0]


def test_under_eager_on_recompile_misses_are_silent(lora: Lora) -> None:
    lora.warm("whole")
    with torch.compiler.set_stance("eager_on_recompile"), hotswap.watch_compiles(lora.model) as log:
        lora.swap(4, 16)
        lora.run()  # torch: no compile, no error
    assert log.eager_misses == {"PeftModel": 1}
    (reason,) = log.verdict().reasons
    assert "set_stance('eager_on_recompile') is in force, and none fits: down, up: " in reason
