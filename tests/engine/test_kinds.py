"""hotswap.engine on every kind of LoRA layer: each swap equals a fresh load by PEFT, without a recompile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Conv1D

import hotswap
from tests.support.models import (
    Around,
    Attention,
    Experts,
    check_swaps,
    fresh,
    run,
    seeded,
    write_fleet,
)

pytestmark = pytest.mark.filterwarnings("ignore")

ONE = torch.linspace(-1, 1, 16).reshape(2, 8)
SEQUENCE = torch.linspace(-1, 1, 48).reshape(2, 3, 8)


def image(dimensions: int) -> torch.Tensor:
    shape = (2, 4, *[6, 5, 7][:dimensions])
    return torch.linspace(-1, 1, 2 * 4 * [6, 30, 210][dimensions - 1]).reshape(shape)


LAYERS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "Linear": (lambda: nn.Linear(8, 5), ONE),
    "Linear without bias": (lambda: nn.Linear(8, 5, bias=False), ONE),
    "transformers Conv1D": (lambda: Conv1D(5, 8), ONE),
    "Embedding": (lambda: nn.Embedding(11, 6), torch.tensor([[1, 2], [9, 10]])),
    "Embedding, padding_idx and max_norm": (
        lambda: nn.Embedding(11, 6, padding_idx=1, max_norm=1.0),
        torch.tensor([[1, 2], [9, 10]]),
    ),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), image(1)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3), image(2)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 3), image(3)),
    "Conv1d, groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), image(1)),
    "Conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), image(2)),
    "Conv3d, groups": (lambda: nn.Conv3d(4, 6, 3, groups=2), image(3)),
    "Conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), image(2)),
    "Conv2d, dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same"), image(2)),
    "Conv2d, stride and padding": (
        lambda: nn.Conv2d(4, 6, (1, 3), stride=2, padding=(0, 1)),
        image(2),
    ),
    "Conv2d, circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), image(2)),
    "Conv1d, reflect": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), image(1)),
    "Conv3d, replicate": (
        lambda: nn.Conv3d(4, 6, 3, padding=1, padding_mode="replicate"),
        image(3),
    ),
}
RANKS = {
    "small": {"r": 4, "lora_alpha": 4},
    "large": {"r": 16, "lora_alpha": 3},
    "rslora": {"r": 8, "lora_alpha": 8, "use_rslora": True},
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_of_every_kind_swaps(kind: str, tmp_path: Path) -> None:
    build, inputs = LAYERS[kind]
    base = seeded(lambda: Around(build()))
    fleet = write_fleet(
        tmp_path, base, {k: {**v, "target_modules": ["layer"]} for k, v in RANKS.items()}
    )
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=16)
    check_swaps(model, base, fleet, inputs)


def test_multihead_attention_swaps(tmp_path: Path) -> None:
    base = seeded(Attention)
    fleet = write_fleet(
        tmp_path, base, {k: {**v, "target_modules": ["attn", "first"]} for k, v in RANKS.items()}
    )
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=16)
    check_swaps(model, base, fleet, SEQUENCE, fullgraph=False)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if "max_norm" not in kind])
def test_dora_beside_lora_swaps_in_a_layer_of_every_kind(kind: str, tmp_path: Path) -> None:
    build, inputs = LAYERS[kind]
    base = seeded(lambda: Around(build()))
    fleet = write_fleet(
        tmp_path,
        base,
        {
            "lora": {**RANKS["small"], "target_modules": ["layer"]},
            "dora": {**RANKS["large"], "target_modules": ["layer"], "use_dora": True},
            "small dora": {**RANKS["rslora"], "target_modules": ["layer"], "use_dora": True},
        },
    )
    model = fresh(base, fleet["lora"])
    hotswap.prepare(model, plan=hotswap.plan([*fleet.values()]))
    check_swaps(model, base, fleet, inputs, fullgraph=False)


PARAMETERS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "2D": (lambda: nn.Linear(8, 5), ["layer.weight"]),
    "experts": (Experts, ["layer.up"]),
    "nested": (Experts, ["layer.up", "layer.down"]),
    "transposed": (lambda: Experts(transposed=False), ["layer.up", "layer.down"]),
}


@pytest.mark.parametrize("way", ["prepare", "load"])
@pytest.mark.parametrize("kind", PARAMETERS)
def test_target_parameters_swap(kind: str, way: str, tmp_path: Path) -> None:
    build, parameters = PARAMETERS[kind]
    base = seeded(lambda: Around(build()))
    fleet = write_fleet(
        tmp_path, base, {k: {**v, "target_parameters": parameters} for k, v in RANKS.items()}
    )
    if way == "load":
        model = hotswap.load(copy.deepcopy(base), hotswap.plan([*fleet.values()]))
    else:
        model = fresh(base, fleet["small"])
        hotswap.prepare(model, target_rank=16)
    check_swaps(model, base, fleet, ONE, compiled=False)


def test_the_recompiles_of_a_parameter_wrapper_are_its_own(tmp_path: Path) -> None:
    base = seeded(lambda: Around(Experts()))
    fleet = write_fleet(
        tmp_path, base, {k: {**v, "target_parameters": ["layer.up"]} for k, v in RANKS.items()}
    )
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=16)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(ONE)
    with hotswap.watch_compiles(compiled) as without:
        compiled(ONE)
    with hotswap.watch_compiles(compiled) as log:
        hotswap.swap(compiled, fleet["large"])
        torch.testing.assert_close(compiled(ONE), run(fresh(base, fleet["large"]), ONE))
    assert (len(without.recompiles), len(log.recompiles)) == (1, 1)
