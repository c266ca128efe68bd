"""audit_guards() finds before the first swap what a swap would break; would_recompile() asks of one call."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

import hotswap
from hotswap.errors import NotCompiledError
from hotswap.findings import Finding
from tests.support.compiled import Lora, decoder, llama, mlp


@pytest.fixture
def lora(tmp_path: Path) -> Lora:
    return Lora(mlp, tmp_path)


def codes(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.where, finding.code) for finding in findings]


@pytest.mark.parametrize("style", ["whole", "in place", "forward"])
def test_a_prepared_model_audits_clean(style: str, lora: Lora) -> None:
    plan = hotswap.plan([lora.adapter(4, 8), lora.adapter(8, 64)])
    hotswap.prepare(lora.model, plan=plan)
    lora.warm(style)
    assert hotswap.audit_guards(lora.called, plan) == []
    assert hotswap.audit_guards(lora.called) == []
    lora.swap(8, 64)
    with hotswap.forbid_recompiles(lora.model):
        lora.run()


def test_a_forgotten_preparation_is_found_before_the_first_swap(lora: Lora) -> None:
    plan = hotswap.plan([lora.adapter(4, 8), lora.adapter(8, 16)])
    lora.warm("whole")
    with hotswap.watch_compiles() as log:
        found = hotswap.audit_guards(lora.called, plan)
    assert codes(found) == [
        ("down", "HSW301"),
        ("down", "HSW302"),
        ("up", "HSW301"),
        ("up", "HSW302"),
    ]
    assert "alpha / rank = 2.0 is compiled in as a constant" in found[0].message
    assert found[1].message == "it is compiled for rank 4, and the plan has rank 8"
    assert (log.recompiles, log.hits) == ([], {})  # nothing was run


def test_a_plan_with_a_module_without_a_lora_layer_is_found(lora: Lora) -> None:
    narrow = lora.adapter(4, 8, target_modules=["up"])
    model = hotswap.load(mlp(), hotswap.plan([narrow]), narrow)
    lora.model = lora.called = model
    lora.warm("whole")
    assert hotswap.audit_guards(lora.called, hotswap.plan([narrow])) == []
    wide = hotswap.plan([lora.adapter(4, 8)])
    assert codes(hotswap.audit_guards(lora.called, wide)) == [("down", "HSW303")]


def test_a_model_that_changed_since_it_was_compiled_is_found(lora: Lora) -> None:
    hotswap.prepare(lora.model, target_rank=8)
    lora.warm("whole")
    lora.model.base_model.disable_adapter_layers()  # noqa: HSW212
    (found,) = hotswap.audit_guards(lora.called)
    assert (found.where, found.code) == ("the model", "HSW304")
    assert "adapters were disabled or enabled" in found.message


def test_a_limit_that_is_nearly_reached_is_found(lora: Lora) -> None:
    hotswap.prepare(lora.model, target_rank=8)
    lora.warm("whole")
    assert hotswap.audit_guards(lora.called) == []
    with torch._dynamo.config.patch(recompile_limit=3):
        (found,) = hotswap.audit_guards(lora.called)
    assert found.code == "HSW305"
    assert "1 variants are compiled, and recompile_limit=3" in found.message


def test_layers_that_outnumber_the_limit_are_found_only_if_each_is_compiled_apart() -> None:
    model = llama(layers=12)
    for layer in model.model.layers:
        layer.compile(backend="eager")
    x = torch.ones(2, 5, dtype=torch.long)
    with torch.no_grad():
        model(x, use_cache=False)
        assert hotswap.audit_guards(model) == []
        torch._dynamo.reset()
        with torch._dynamo.config.patch(recompile_limit=2):
            model(x, use_cache=True)
            found = hotswap.audit_guards(model)
    shared = [finding for finding in found if finding.code == "HSW306"]
    assert len(shared) == 1
    assert shared[0].where == "model.layers.0"
    assert "isolate_recompiles=True" in shared[0].remedy


def test_an_ignored_hook_is_found(lora: Lora) -> None:
    hotswap.prepare(lora.model, target_rank=8)
    lora.warm("whole")
    lora.model.base_model.model.up.register_forward_hook(lambda *_: None)
    assert codes(hotswap.audit_guards(lora.called)) == [("up", "HSW307")]


def test_what_is_not_compiled_does_not_audit_clean(lora: Lora) -> None:
    assert codes(hotswap.audit_guards(lora.model)) == [("the model", "HSW308")]
    lora.compile("whole")
    (found,) = hotswap.audit_guards(lora.called)
    assert found.code == "HSW308"
    assert "was not called yet" in found.message


class Broken(nn.Module):
    """Has a constant on each side of a graph break."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.scaling = {"default": 2.0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return x * self.scaling["default"]


def test_code_behind_a_graph_break_is_audited() -> None:
    model = torch.compile(Broken(), backend="eager")
    model(torch.ones(2, 4))
    assert [found.code for found in hotswap.audit_guards(model)] == ["HSW301"]


def test_a_decorated_forward_is_audited_and_asked_like_any_other() -> None:
    class Decorated(Broken):
        @functools.wraps(Broken.forward)
        def forward(*args: torch.Tensor) -> torch.Tensor:
            return args[0].first(args[1]) * args[0].scaling["default"]

    model = Decorated()
    compiled = torch.compile(model, backend="eager")
    compiled(torch.ones(2, 4))
    assert [found.code for found in hotswap.audit_guards(compiled)] == ["HSW301"]
    assert hotswap.would_recompile(compiled, torch.ones(2, 4)) == ()
    model.scaling["default"] = 3.0
    assert [found.code for found in hotswap.audit_guards(compiled)] == ["HSW304"]
    assert hotswap.would_recompile(compiled, torch.ones(2, 4))[0].cause == "swap"


def test_a_layer_of_torch_itself_can_be_audited_and_asked() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(4, 4)), backend="eager")
    model(torch.ones(2, 4))
    assert hotswap.audit_guards(model) == []
    assert hotswap.would_recompile(model, torch.ones(2, 4)) == ()
    assert hotswap.would_recompile(model, torch.ones(3, 4))[0].cause == "input"


@pytest.mark.parametrize("style", ["whole", "in place", "forward"])
def test_a_call_can_be_asked_about_without_running_it(style: str, lora: Lora) -> None:
    lora.warm(style)
    with hotswap.watch_compiles() as log, torch.no_grad():
        assert hotswap.would_recompile(lora.called, lora.inputs()) == ()
        (reason,) = hotswap.would_recompile(lora.called, lora.inputs(batch=3))
        assert (reason.cause, "from 2 to 3" in reason.message) == ("input", True)
        with torch.enable_grad():
            (reason,) = hotswap.would_recompile(lora.called, lora.inputs())
        assert reason.cause == "environment"
        lora.swap(8, 16)
        (reason,) = hotswap.would_recompile(lora.called, lora.inputs())
    assert (reason.cause, reason.modules) == ("swap", ("down", "up"))
    assert (log.recompiles, log.hits) == ([], {})
    with hotswap.watch_compiles(lora.model) as log:
        lora.run()
    assert len(log.recompiles) == 1  # as predicted


def test_one_part_and_a_compiled_function_can_be_asked() -> None:
    model, x = decoder(), torch.ones(2, 8)
    layer = model.layers[0]
    layer.compile(backend="eager")
    step = torch.compile(lambda x: model.layers[1](x), backend="eager")
    for asked in (layer, step):
        asked(x)
        assert hotswap.would_recompile(asked, x) == ()
        (reason,) = hotswap.would_recompile(asked, x[:1])
        assert reason.cause == "input"
    model.layers[1].v_proj.to(torch.float64)
    assert hotswap.would_recompile(layer, x) == ()
    (reason,) = hotswap.would_recompile(step, x)
    assert (reason.cause, reason.modules) == ("swap", ("model.layers.1.v_proj",))


def test_a_model_compiled_layer_by_layer_answers_without_compiling(tmp_path: Path) -> None:
    lora = Lora(decoder, tmp_path)
    lora.warm("layer")
    lora.swap(4, 16)
    dry = torch.compiler.set_stance("eager_on_recompile")
    with dry, hotswap.watch_compiles(lora.model) as log:
        lora.run()
    assert (log.recompiles, log.eager_misses) == ([], {"layers.0": 1, "layers.1": 1})
    assert "the scaling alpha / rank = 2.0 was compiled in as a constant" in str(log.verdict())


def test_a_question_without_an_answer_is_refused(lora: Lora) -> None:
    with pytest.raises(NotCompiledError, match="the model is not compiled"):
        hotswap.would_recompile(lora.model, lora.inputs())
    lora.compile("whole")
    with pytest.raises(NotCompiledError, match="nothing was compiled for the model yet"):
        hotswap.would_recompile(lora.called, lora.inputs())
    model = mlp()
    model.up.compile(backend="eager")
    with pytest.raises(NotCompiledError, match=r"only parts of the model are compiled \(up\)"):
        hotswap.would_recompile(model, torch.ones(2, 8))
