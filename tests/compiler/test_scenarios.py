"""What a deployment may do to a compiled model: how often it recompiles, whose fault it is, the sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.hotswap import prepare_model_for_compiled_hotswap

import hotswap
from hotswap.compiler.watch import CompileLog
from tests.support.compiled import Lora, decoder, llama, mlp
from tests.support.models import fresh

Act = Callable[[Lora], Any]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Scenario:
    """An action between warm-up and check; ``recompiles`` per compiled region, and what is said of it."""

    act: Act
    recompiles: int
    cause: str = ""
    says: str = ""
    remedy: str = ""
    before: Act = lambda lora: None
    call: Act = lambda lora: lora.run()


def layers(lora: Lora) -> list[LoraLayer]:
    return [module for module in lora.model.modules() if isinstance(module, LoraLayer)]


def prepare(rank: int) -> Act:
    return lambda lora: hotswap.prepare(lora.model, target_rank=rank)


def peft_prepare(lora: Lora) -> None:
    prepare_model_for_compiled_hotswap(lora.model, target_rank=8, check_compiled="ignore")


def second_adapter(lora: Lora) -> None:
    lora.model.add_adapter("two", LoraConfig(r=4, lora_alpha=8, target_modules=lora.targets))


def set_scale(lora: Lora) -> None:
    for layer in layers(lora):
        layer.set_scale("default", 3.0)


def cast_adapter(lora: Lora) -> None:
    for layer in layers(lora):
        layer.lora_A.to(torch.bfloat16)
        layer.lora_B.to(torch.bfloat16)


def unfreeze(lora: Lora) -> None:
    for parameter in lora.model.parameters():
        parameter.requires_grad_(True)


def train_adapter(lora: Lora) -> None:
    for name, parameter in lora.model.named_parameters():
        parameter.requires_grad_("lora_" in name and ".default." in name)


def transpose_storage(lora: Lora) -> None:
    for layer in layers(lora):
        weight = layer.lora_A["default"].weight
        weight.data = weight.data.t().contiguous().t()


def new_objects(lora: Lora) -> None:
    for layer in layers(lora):
        down = layer.lora_A["default"]
        down.weight = torch.nn.Parameter(down.weight.data.clone(), requires_grad=False)


def with_dropout(lora: Lora) -> None:
    for layer in layers(lora):
        layer.lora_dropout["default"] = torch.nn.Dropout(0.1).eval()


def inference_weights(lora: Lora) -> None:
    """What a swap under inference mode does that replaces a weight instead of copying into it."""
    with torch.inference_mode():
        for layer in layers(lora):
            down = layer.lora_A["default"]
            down.weight = torch.nn.Parameter(down.weight.clone(), requires_grad=False)


def call_with_inference_tensor(lora: Lora) -> None:
    with torch.inference_mode():
        x = lora.inputs()
    lora.run(x)


def under(mode: Any) -> Act:
    def call(lora: Lora) -> None:
        x = lora.inputs()
        with mode():
            lora.called(x)

    return call


def batch(size: int) -> Act:
    return lambda lora: lora.run(lora.inputs(batch=size))


PREPARE = "call hotswap.prepare(model, target_rank="
WARM = "warm up"
nothing: Act = lambda lora: None  # noqa: E731

SCENARIOS = {
    "the same rank and alpha": Scenario(lambda m: m.swap(4, 8), 0),
    "a larger rank": Scenario(
        lambda m: m.swap(8, 16), 1, "swap", "the rank changed from 4 to 8", PREPARE + "8)"
    ),
    "a smaller rank, which PEFT pads": Scenario(lambda m: m.swap(2, 4), 0),
    "another alpha": Scenario(
        lambda m: m.swap(4, 16), 1, "swap", "alpha / rank = 2.0 was compiled in", PREPARE
    ),
    "prepared, a larger rank and another alpha": Scenario(
        lambda m: m.swap(8, 64), 0, before=prepare(16)
    ),
    "prepared for too small a rank": Scenario(
        lambda m: m.swap(16, 32),
        1,
        "swap",
        "the rank changed from 8 to 16",
        PREPARE + "16)",
        before=prepare(8),
    ),
    "prepared after torch.compile": Scenario(
        peft_prepare, 1, "swap", "alpha / rank = 2.0 was compiled in", PREPARE
    ),
    "set_scale() on hotswap's preparation": Scenario(set_scale, 0, before=prepare(8)),
    "PEFT's set_scale() on PEFT's preparation": Scenario(
        set_scale,
        1,
        "swap",
        "the scaling was a tensor and is a Python number now",
        "hotswap.set_scale(model, scale)",
        before=peft_prepare,
    ),
    "the adapter cast": Scenario(
        cast_adapter,
        1,
        "swap",
        "the adapter's dtype changed from torch.float32 to torch.bfloat16",
        "cast the adapter's weights before the swap",
    ),
    "the model cast": Scenario(
        lambda m: m.model.to(torch.bfloat16),
        1,
        "swap",
        "a weight's dtype changed from torch.float32 to torch.bfloat16",
        "model.to(dtype)",
        call=lambda lora: lora.run(lora.inputs().bfloat16()),
    ),
    "a weight replaced under inference mode": Scenario(
        inference_weights,
        1,
        "swap",
        "a weight was replaced by a tensor that was made inside torch.inference_mode()",
        "weight.copy_(new)",
    ),
    "train() with dropout": Scenario(
        lambda m: m.model.train(),
        1,
        "environment",
        "train() or eval() was called",
        "model.eval()",
        before=with_dropout,
    ),
    "gradients on": Scenario(
        nothing,
        1,
        "environment",
        "gradients were on in one call and off in the other",
        "with torch.no_grad()",
        call=under(torch.enable_grad),
    ),
    "inference mode": Scenario(
        nothing,
        1,
        "environment",
        "one call ran under torch.inference_mode(), the other did not",
        "with torch.inference_mode()",
        call=under(torch.inference_mode),
    ),
    "autocast": Scenario(
        nothing,
        1,
        "environment",
        "one call ran under torch.autocast(), the other did not",
        "with torch.autocast(...)",
        call=under(lambda: torch.autocast("cpu")),
    ),
    "another number of threads": Scenario(
        lambda m: torch.set_num_threads(torch.get_num_threads() + 1),
        1,
        "environment",
        "the number of threads changed",
        "torch.set_num_threads()",
    ),
    "deterministic algorithms": Scenario(
        lambda m: torch.use_deterministic_algorithms(True),
        1,
        "environment",
        "a global setting of torch changed (deterministic_algorithms)",
        "set it before the warm-up",
    ),
    "another batch": Scenario(
        nothing,
        1,
        "input",
        "an input's shape changed in dimension 0 from 2 to 3",
        "torch._dynamo.mark_dynamic(input, 0)",
        call=batch(3),
    ),
    "a batch of one": Scenario(
        nothing,
        1,
        "input",
        "an input's shape changed in dimension 0 from 2 to 1",
        WARM,
        call=batch(1),
    ),
    "a second adapter added": Scenario(
        second_adapter, 1, "swap", "an adapter was added or removed", "hotswap.swap(model, adapter)"
    ),
    "set_adapter() to a loaded one": Scenario(
        lambda m: m.model.set_adapter("two"),
        1,
        "swap",
        "the active adapter changed, as by set_adapter()",
        "hotswap.swap(model, adapter)",
        before=second_adapter,
    ),
    "adapters disabled": Scenario(
        lambda m: m.model.base_model.disable_adapter_layers(),
        1,
        "swap",
        "adapters were disabled or enabled",
        "hotswap.swap(model, None)",
    ),
    "merged": Scenario(
        lambda m: m.model.merge_adapter(),
        1,
        "swap",
        "an adapter was merged or unmerged",
        "do not merge a compiled model",
    ),
    "unfrozen": Scenario(
        unfreeze, 1, "swap", "a weight was frozen or unfrozen", "requires_grad_() before"
    ),
    "the adapter unfrozen": Scenario(
        train_adapter, 1, "swap", "an adapter was frozen or unfrozen", "requires_grad_() before"
    ),
    "another memory layout": Scenario(
        transpose_storage, 1, "swap", "memory layout (strides) changed", "copy_"
    ),
    "new parameters that look the same": Scenario(new_objects, 0),
    "an unprepared swap and another batch together": Scenario(
        lambda m: m.swap(4, 16),
        1,
        "swap",
        "alpha / rank = 2.0 was compiled in",
        "also an input's shape changed in dimension 0 from 2 to 3",
        call=batch(3),
    ),
    "a prepared swap and another batch together": Scenario(
        lambda m: m.swap(8, 64),
        1,
        "input",
        "an input's shape changed in dimension 0 from 2 to 3",
        WARM,
        before=prepare(16),
        call=batch(3),
    ),
}

MLP_ONLY = {
    "train() without dropout": Scenario(lambda m: m.model.train(), 0),
    "an input made under inference mode": Scenario(
        nothing,
        1,
        "input",
        "a tensor was made inside torch.inference_mode() in one call",
        "make the inputs of warm-up and check in the same way",
        call=call_with_inference_tensor,
    ),
}

LLAMA_ONLY = {
    "train() after eval()": Scenario(
        lambda m: m.model.train(), 1, "environment", "train() or eval() was called", "model.eval()"
    ),
    "another length": Scenario(
        nothing,
        1,
        "input",
        "an input's shape changed in dimension 1 from 5 to 9",
        "mark_dynamic",
        call=lambda lora: lora.run(lora.inputs(length=9)),
    ),
}

# a real decoder is slow to compile; every scenario runs on a small one
LLAMA_PER_LAYER = {
    name: (SCENARIOS | LLAMA_ONLY)[name]
    for name in ("another length", "an unprepared swap and another batch together")
}


def check(scenario: Scenario, lora: Lora, style: str, regions: int) -> CompileLog:
    scenario.before(lora)
    lora.warm(style)
    with hotswap.watch_compiles(lora.model) as log:
        scenario.act(lora)
        scenario.call(lora)
    assert len(log.recompiles) == scenario.recompiles * regions
    assert log.first_compiles == []
    assert log.eager_misses == {}
    for found in log.recompiles:
        assert found.cause == scenario.cause, str(found)
        assert scenario.says in str(found)
        assert scenario.remedy in str(found)
        assert all(reason.cause != "unknown" for reason in found.reasons), str(found)
    outcome = {"": "passed", "swap": "failed"}.get(scenario.cause, "vacuous")
    assert log.verdict().outcome == outcome
    if scenario.recompiles == 0:
        assert log.total_hits == regions
    elif outcome == "vacuous":
        assert "the warm-up does not match this call" in log.verdict().reasons[0]
    return log


@pytest.mark.parametrize("name", SCENARIOS | MLP_ONLY)
def test_a_model_compiled_as_a_whole(name: str, tmp_path: Path) -> None:
    check((SCENARIOS | MLP_ONLY)[name], Lora(mlp, tmp_path, ["up"]), "whole", 1)


@pytest.mark.parametrize("style", ["in place", "forward"])
def test_every_other_style_of_compiling_is_explained_alike(style: str, tmp_path: Path) -> None:
    log = check(SCENARIOS["a larger rank"], Lora(mlp, tmp_path), style, 1)
    assert log.recompiles[0].reasons[0].modules == ("down", "up")


@pytest.mark.parametrize("name", LLAMA_ONLY)
def test_a_language_model_compiled_as_a_whole(name: str, tmp_path: Path) -> None:
    check(LLAMA_ONLY[name], Lora(llama, tmp_path, ["q_proj"]), "whole", 1)


@pytest.mark.parametrize("name", SCENARIOS)
def test_layers_compiled_one_by_one(name: str, tmp_path: Path) -> None:
    check_layers(SCENARIOS[name], Lora(decoder, tmp_path), "layers.{}", "")


@pytest.mark.parametrize("name", LLAMA_PER_LAYER)
def test_layers_of_a_language_model_compiled_one_by_one(name: str, tmp_path: Path) -> None:
    check_layers(LLAMA_PER_LAYER[name], Lora(llama, tmp_path), "model.layers.{}", "self_attn.")


def check_layers(scenario: Scenario, lora: Lora, layer: str, inside: str) -> None:
    log = check(scenario, lora, "layer", 2)
    regions = [found.region for found in log.recompiles] or list(log.hits)
    assert regions == [layer.format(0), layer.format(1)]
    for found in log.recompiles:
        for module in found.reasons[0].modules:
            assert module.startswith(f"{found.region}.{inside}")


def test_every_change_of_the_grad_mode_is_told_in_both_directions(tmp_path: Path) -> None:
    lora = Lora(mlp, tmp_path)
    lora.compile("whole")
    x, said = lora.inputs(), []
    for mode in (torch.inference_mode, torch.enable_grad, torch.no_grad):
        with hotswap.watch_compiles(lora.model) as log, mode():
            lora.called(x)
        said += [str(found) for found in log.recompiles if found.cause == "environment"]
    assert len(said) == 2
    assert "one call ran under torch.inference_mode(), the other did not" in said[0]
    assert "gradients were on in one call and off in the other" in said[1]


def test_after_a_prepared_swap_and_a_new_batch_the_old_batch_hits(tmp_path: Path) -> None:
    lora = Lora(mlp, tmp_path)
    hotswap.prepare(lora.model, target_rank=16)
    lora.warm("whole")
    with hotswap.watch_compiles(lora.model) as log:
        lora.swap(8, 64)
        lora.run(lora.inputs(batch=3))
        lora.run()
    assert [found.cause for found in log.recompiles] == ["input"]
    assert log.total_hits == 1


def test_going_back_and_forth_between_adapters_recompiles_twice(tmp_path: Path) -> None:
    lora = Lora(mlp, tmp_path)
    second_adapter(lora)
    train_adapter(lora)
    lora.warm("whole")
    causes = []
    with hotswap.watch_compiles(lora.model) as log:
        for name in ("two", "default", "two"):
            lora.model.set_adapter(name)
            lora.run()
            causes.append([found.cause for found in log.recompiles])
    assert causes == [["swap"], ["swap"] * 2, ["swap"] * 2]
    assert log.total_hits == 1
    assert all("as by set_adapter()" in str(found) for found in log.recompiles)


def test_disabling_and_merging_cost_one_compile_each_and_then_hit(tmp_path: Path) -> None:
    lora = Lora(mlp, tmp_path)
    train_adapter(lora)
    lora.warm("whole")
    with hotswap.watch_compiles(lora.model) as log:
        for _ in range(2):
            with lora.model.disable_adapter():
                lora.run()
            lora.run()
        lora.model.merge_adapter()
        lora.run()
        lora.model.unmerge_adapter()
        lora.run()
    assert (len(log.recompiles), log.total_hits) == (2, 4)
    assert "disabled or enabled" in str(log.recompiles[0])
    assert "merged or unmerged" in str(log.recompiles[1])


def test_batches_become_dynamic_and_only_one_stays_special(tmp_path: Path) -> None:
    lora = Lora(mlp, tmp_path)
    lora.warm("whole")
    with hotswap.watch_compiles(lora.model) as log:
        for size in (3, 4, 7, 1):
            lora.run(lora.inputs(batch=size))
    assert [found.cause for found in log.recompiles] == ["input", "input"]
    assert "from 2 to 3" in str(log.recompiles[0])
    assert log.total_hits == 2
    assert log.verdict().outcome == "passed"
    assert len(log.verdict().notes) == 2
    assert log.verdict(any_cause=True).outcome == "failed"


def test_twelve_layers_with_a_cache_fill_the_limit_and_four_run_eagerly() -> None:
    model = llama(layers=12)
    for layer in model.model.layers:
        layer.compile(backend="eager")
    x = torch.ones(2, 5, dtype=torch.long)
    with torch.no_grad(), hotswap.watch_compiles(model) as log:
        model(x, use_cache=True)
        assert (len(log.first_compiles), len(log.recompiles)) == (1, 7)
        assert {found.cause for found in log.recompiles} == {"other model"}
        assert all("layer_idx" in str(found) for found in log.recompiles)
        model(x, use_cache=True)
    assert log.hits == {f"model.layers.{n}": 1 for n in range(8)}
    # in transformers 4 the attention inside shares its decorator's code, and so the limit, with the layer
    misses = {name: n for name, n in log.eager_misses.items() if not name.endswith(".self_attn")}
    assert misses == {f"model.layers.{n}": 2 for n in range(8, 12)}
    verdict = log.verdict(allow_first_compiles=True)
    assert verdict.outcome == "failed"
    reason = next(
        text for text in verdict.reasons if text.startswith("8 call(s) to model.layers.8")
    )
    assert (
        "found no compiled code that fits and ran eagerly: its 8 compiled variants fill " in reason
    )
    assert "recompile_limit=8, and none fits: " in reason
    assert "use_cache=False), or layer.compile(isolate_recompiles=True)" in reason


@pytest.mark.parametrize(("isolated", "firsts"), [(True, 3), (False, 1)])
def test_layers_above_the_limit_are_well_when_isolated_or_without_a_cache(
    isolated: bool, firsts: int
) -> None:
    if isolated and "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        pytest.skip("this torch has no torch.compile(isolate_recompiles=)")
    model = llama(layers=3)
    for layer in model.model.layers:
        layer.compile(backend="eager", **({"isolate_recompiles": True} if isolated else {}))
    x = torch.ones(2, 5, dtype=torch.long)
    limit = torch._dynamo.config.patch(recompile_limit=2)
    with torch.no_grad(), limit, hotswap.watch_compiles(model) as log:
        model(x, use_cache=isolated)
        model(x, use_cache=isolated)
    assert (len(log.first_compiles), log.recompiles, log.eager_misses) == (firsts, [], {})
    assert log.total_hits == 6 - firsts


def test_a_model_that_moves_is_not_taken_for_another_one(tmp_path: Path) -> None:
    lora = Lora(mlp, tmp_path)
    with hotswap.watch_compiles():
        lora.warm("whole")
    with hotswap.watch_compiles(lora.model) as log:
        lora.model.to("meta")  # every parameter is a new object
        lora.run(lora.inputs().to("meta"))
    (found,) = log.recompiles
    assert found.cause == "swap"
    assert "a weight moved from cpu to meta; move the model before torch.compile" in str(found)


def test_another_model_of_the_class_is_not_blamed_on_a_swap(tmp_path: Path) -> None:
    lora = Lora(mlp, tmp_path)
    lora.warm("whole")
    other = fresh(mlp(), lora.adapter(8, 32))
    with hotswap.watch_compiles(first=lora.model, other=other) as log:
        with torch.no_grad():
            torch.compile(other, backend="eager")(lora.inputs())
        lora.run()
    (found,) = log.recompiles
    assert (found.region, found.cause) == ("other", "other model")
    assert "the first call of this PeftModel, which shares its code with another one" in str(found)
    assert "isolate_recompiles=True" in str(found)
    assert log.hits == {"first": 1}
