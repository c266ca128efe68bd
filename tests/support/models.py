"""Micro models and adapters written by PEFT itself, for tests that need real ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Conv1D

import hotswap


class Micro(nn.Module):
    """An embedding, a linear layer, a transformers Conv1D and a (grouped) convolution."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.first = nn.Linear(8, 12)
        self.second = Conv1D(8, 12)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.second(torch.relu(self.first(self.embed(tokens))))  # (batch, length, 8)
        image = hidden.reshape(tokens.shape[0], 4, -1, 4)
        return self.conv(image).flatten(1)


class Head(nn.Module):
    """An embedding, a linear layer and a head with a buffer, for modules_to_save and token rows."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.first = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(self.embed(tokens)))
        return self.head(self.norm(hidden.mean(1)))


class Experts(nn.Module):
    """Two three-dimensional parameters, (experts, in, out) or (experts, out, in), as a mixture has."""

    def __init__(self, *, transposed: bool = True) -> None:
        super().__init__()
        self.is_transposed = transposed
        self.up = nn.Parameter(torch.randn(3, 8, 6) * 0.3)
        self.down = nn.Parameter(torch.randn(3, 6, 8) * 0.3)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.is_transposed:
            return (torch.relu(hidden @ self.up) @ self.down).sum(0)
        return (torch.relu(hidden @ self.down.mT) @ self.up.mT).sum(0)


class Attention(nn.Module):
    """PyTorch's attention, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.first(hidden)
        return self.attn(hidden, hidden, hidden, need_weights=False)[0]


class Around(nn.Module):
    """One layer in a model of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.layer(value)


TARGETS = ["embed", "first", "second", "conv"]
TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 10]])


def micro(groups: int = 1) -> Micro:
    torch.manual_seed(0)
    return Micro(groups).eval()


def seeded(build: Callable[[], nn.Module]) -> Any:
    """A model with the same random weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


Base = nn.Module | Callable[[], nn.Module]
"""A base model that can be copied, or what builds one (a quantised one cannot be)."""


def copy_of(base: Base) -> Any:
    """A base model that nothing has changed yet."""
    return copy.deepcopy(base) if isinstance(base, nn.Module) else base()


def write_adapter(folder: Path, base: Base, *, seed: int = 1, **config: Any) -> Path:
    """Write an adapter with random weights (lora_B, heads and token rows too) by PEFT's save_pretrained."""
    if not {"target_modules", "target_parameters"} & config.keys():
        config["target_modules"] = TARGETS
    generator = torch.Generator().manual_seed(seed)
    model = get_peft_model(copy_of(base), LoraConfig(**config))
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        trained = any(word in name for word in ("lora_", "modules_to_save", "_tokens_delta"))
        if trained and value.is_floating_point():
            value.data = (torch.randn(value.shape, generator=generator) * 0.3).to(value.dtype)
            if "running_var" in name:
                value.data = value.data.abs()
    model.save_pretrained(folder)
    return folder


def write_fleet(folder: Path, base: Base, fleet: dict[str, dict[str, Any]]) -> dict[str, Path]:
    """Write an adapter for each config, each with weights of its own."""
    return {
        name: write_adapter(folder / name, base, seed=seed, **config)
        for seed, (name, config) in enumerate(fleet.items(), start=1)
    }


def fresh(base: Base, folder: Path) -> Any:
    """The oracle: the adapter as PEFT loads it into a fresh base model."""
    return PeftModel.from_pretrained(copy_of(base), folder).eval()


@torch.no_grad()
def run(model: Any, inputs: torch.Tensor = TOKENS) -> torch.Tensor:
    output = model(inputs)
    return getattr(output, "logits", output)


def check_swaps(
    model: Any,
    base: Base,
    fleet: dict[str, Path],
    inputs: torch.Tensor = TOKENS,
    *,
    compiled: bool = True,
    fullgraph: bool = True,
) -> None:
    """Assert that each swap equals a fresh load, has an effect, and does not recompile."""
    expected = {name: run(fresh(base, folder), inputs) for name, folder in fleet.items()}
    bare = run(copy_of(base), inputs)
    outputs = [*expected.values(), bare]
    for index, one in enumerate(outputs):  # else an equal output would prove nothing
        assert not any(torch.allclose(one, other) for other in outputs[:index])
    order = [*fleet, None, *reversed(fleet)]
    for name in order:
        hotswap.swap(model, fleet[name] if name else None)
        torch.testing.assert_close(run(model, inputs), expected[name] if name else bare)
    if not compiled:
        return
    torch._dynamo.reset()
    faster = torch.compile(model, backend="eager", fullgraph=fullgraph)
    run(faster, inputs)
    run(faster, inputs)
    with hotswap.forbid_recompiles(faster) as log:
        for name in order:
            hotswap.swap(faster, fleet[name] if name else None)
            torch.testing.assert_close(run(faster, inputs), expected[name] if name else bare)
    assert log.total_hits >= len(order)


def bits(model: Any) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer, also those outside of the state dict."""
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().clone() for name, value in values.items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two such copies have the same names and equal values."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
