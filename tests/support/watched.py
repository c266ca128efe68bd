"""Micro models for tests of the compile watch, warmed up with the eager backend, and what may hold one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


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
