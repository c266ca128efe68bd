"""Several changes after one another: which of them recompile, and which hit what is there."""

from __future__ import annotations

from pathlib import Path

import torch

import hotswap
from tests.support.compiled import Lora, mlp
from tests.support.models import fresh
from tests.support.scenarios import (
    second_adapter,
    train_adapter,
)


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
            lora.model.set_adapter(name)  # noqa: HSW212
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
            with lora.model.disable_adapter():  # noqa: HSW212
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
