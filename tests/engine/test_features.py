"""hotswap.engine on every feature of PEFT's LoRA, mixed in one fleet: each swap equals a fresh load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from hotswap.engine.layout.slots import lora_layers
from hotswap.errors import HotswapError
from tests.support.models import Head, check_swaps, fresh, micro, run, seeded, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")

PLAIN = {"r": 2, "lora_alpha": 4}
WIDE = {"r": 6, "lora_alpha": 5}
LINEAR = ["first", "second", "conv"]


def prepared(base: Any, fleet: dict[str, Path], way: str) -> Any:
    """A model that is loaded with its first adapter and prepared, or made for the whole fleet."""
    plan = hotswap.plan([*fleet.values()])
    assert plan.conflicts == ()
    if way == "load":
        return hotswap.load(copy.deepcopy(base), plan, next(iter(fleet.values())))
    model = fresh(base, next(iter(fleet.values())))
    hotswap.prepare(model, plan=plan)
    return model


MIXED: dict[str, dict[str, dict[str, Any]]] = {
    "patterns": {
        "rank_pattern": {**WIDE, "rank_pattern": {"first": 3, "se.*d": 8}},
        "same config, other weights": {**WIDE, "rank_pattern": {"first": 3, "se.*d": 8}},
        "alpha_pattern": {**PLAIN, "alpha_pattern": {"^first": 1, "conv": 32}},
        "rslora": {**WIDE, "use_rslora": True, "alpha_pattern": {"first": 1}},
        "dropout": {**PLAIN, "lora_dropout": 0.5},
    },
    "lora_bias": {
        "with": {**WIDE, "target_modules": LINEAR, "lora_bias": True},
        "without": {**PLAIN, "target_modules": LINEAR},
        "subset": {**PLAIN, "target_modules": ["conv"], "lora_bias": True},
    },
    "dora": {
        "plain": PLAIN,
        "dora": {**WIDE, "use_dora": True},
        "dora on some": {**PLAIN, "use_dora": True, "target_modules": ["first", "embed"]},
        "dora on others": {**WIDE, "use_dora": True, "target_modules": ["second", "conv"]},
        "plain on some": {**WIDE, "target_modules": ["first", "conv"]},
    },
    "dora and lora_bias": {
        "dora": {**WIDE, "target_modules": LINEAR, "use_dora": True},
        "bias": {**PLAIN, "target_modules": LINEAR, "lora_bias": True},
        "plain": {**PLAIN, "target_modules": LINEAR, "use_rslora": True},
    },
    "initialisations": {
        "gaussian": {**PLAIN, "init_lora_weights": "gaussian"},
        "orthogonal": {"r": 4, "init_lora_weights": "orthogonal", "target_modules": ["first"]},
        "mica": {**WIDE, "init_lora_weights": "mica", "target_modules": ["first", "embed"]},
    },
    "targets": {
        "all": {**WIDE, "target_modules": "all-linear"},
        "pattern": {**PLAIN, "target_modules": ".*(first|conv)"},
        "without": {**WIDE, "target_modules": ["first", "conv"], "exclude_modules": ["conv"]},
    },
}


@pytest.mark.parametrize("feature", MIXED)
def test_adapters_with_and_without_a_feature_swap(feature: str, tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(tmp_path, base, MIXED[feature])
    check_swaps(prepared(base, fleet, "load"), base, fleet, fullgraph="dora" not in feature)


@pytest.mark.parametrize("feature", ["patterns", "lora_bias", "dora and lora_bias"])
def test_prepare_brings_what_the_first_adapter_lacks(feature: str, tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(tmp_path, base, MIXED[feature])
    model = prepared(base, fleet, "prepare")
    check_swaps(model, base, fleet, compiled=False)


def test_preparing_an_adapter_for_dora_keeps_its_output(tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(tmp_path, base, MIXED["dora"])
    model = fresh(base, fleet["plain"])
    before = run(model)
    hotswap.prepare(model, plan=hotswap.plan([*fleet.values()]))
    assert all(layer.lora_magnitude_vector for layer in lora_layers(model).values())
    torch.testing.assert_close(run(model), before)


def test_set_scale_keeps_plain_lora_where_dora_is_prepared(tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(tmp_path, base, MIXED["dora"])
    model = prepared(base, fleet, "load")
    for folder in fleet.values():
        hotswap.swap(model, folder)
        oracle = fresh(base, folder)
        for layer in lora_layers(oracle).values():
            layer.set_scale("default", 0.5)
        hotswap.set_scale(model, 0.5)
        torch.testing.assert_close(run(model), run(oracle))
        hotswap.set_scale(model, 1.0)
        torch.testing.assert_close(run(model), run(fresh(base, folder)))


HEADS: dict[str, dict[str, Any]] = {
    "head": {**PLAIN, "modules_to_save": ["head"]},
    "head and norm": {**WIDE, "modules_to_save": ["head", "norm"]},
    "none": PLAIN,
}


def test_whole_modules_are_swapped_and_go_back_to_the_base(tmp_path: Path) -> None:
    base = seeded(Head)
    fleet = write_fleet(
        tmp_path, base, {k: {**v, "target_modules": ["first"]} for k, v in HEADS.items()}
    )
    check_swaps(prepared(base, fleet, "load"), base, fleet)


TOKENS: dict[str, dict[str, dict[str, Any]]] = {
    "lists": {
        "two": {**PLAIN, "trainable_token_indices": [1, 5]},
        "others": {**WIDE, "trainable_token_indices": [10, 2, 3]},
        "none": PLAIN,
    },
    "dicts": {
        "two": {**PLAIN, "trainable_token_indices": {"embed": [5, 1]}},
        "others": {**WIDE, "trainable_token_indices": {"embed": [10]}},
        "none": PLAIN,
    },
}


@pytest.mark.parametrize("given", ["dicts"])
def test_token_rows_are_swapped_and_go_back_to_the_base(given: str, tmp_path: Path) -> None:
    base = seeded(Head)
    fleet = write_fleet(
        tmp_path, base, {k: {**v, "target_modules": ["first"]} for k, v in TOKENS[given].items()}
    )
    check_swaps(prepared(base, fleet, "load"), base, fleet)


@pytest.mark.parametrize("feature", ["patterns", "lora_bias", "dora"])
def test_merging_after_a_swap_merges_the_new_adapter(feature: str, tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(tmp_path, base, MIXED[feature])
    model = prepared(base, fleet, "load")
    for name, folder in fleet.items():
        hotswap.swap(model, folder)
        merged = copy.deepcopy(model).merge_and_unload()
        torch.testing.assert_close(run(merged), run(fresh(base, folder)), msg=name)


def test_merging_a_bias_where_dora_is_prepared_is_refused(tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(tmp_path, base, MIXED["dora and lora_bias"])
    model = prepared(base, fleet, "load")
    hotswap.swap(model, fleet["bias"])
    with pytest.raises(HotswapError, match=r"lora_B bias.*DoRA.*model of its own"):
        model.merge_adapter()
    torch.testing.assert_close(run(model), run(fresh(base, fleet["bias"])))
    for name in ("dora", "plain"):
        hotswap.swap(model, fleet[name])
        merged = copy.deepcopy(model).merge_and_unload()
        torch.testing.assert_close(run(merged), run(fresh(base, fleet[name])))
