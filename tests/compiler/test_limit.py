"""Layers above the recompile limit run eagerly, and the watch says so."""

from __future__ import annotations

import inspect

import pytest
import torch

import hotswap
from tests.support.compiled import llama


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
