"""What an active compile watch costs per evaluated compiled frame; prints a table.

Run as ``python benchmarks/watch_overhead.py``. Each figure is the best of many short rounds, in which
calls with and without a watch alternate, so that a busy moment of the machine hits both. What a watch
does once, when it meets a module, is not in it: the first watched call is not timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import hotswap

TARGET = 8.0  # microseconds
LAYERS, CALLS, ROUNDS = 12, 60, 400


class Block(nn.Module):
    """A layer that is almost free to run, so that the cost of the watch is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


class Stack(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def whole() -> nn.Module:
    """Build a model that is compiled as a whole: one compiled frame a call."""
    return torch.compile(Stack(2), backend="eager")


def regional() -> nn.Module:
    """Build a model of which each layer is compiled: as many compiled frames a call as layers."""
    model = Stack(LAYERS)
    for layer in model.layers:
        layer.compile(backend="eager")
    return model


@torch.no_grad()
def seconds(model: nn.Module, x: torch.Tensor, calls: int) -> float:
    """Time a number of calls, per call."""
    start = time.perf_counter()
    for _ in range(calls):
        model(x)
    return (time.perf_counter() - start) / calls


def measure(build: Callable[[], nn.Module], frames: int) -> tuple[float, float, float]:
    """Microseconds a call without a watch, with one, and after it; the model is warmed up."""
    torch.compiler.reset()
    model, x = build(), torch.ones(2, 8)
    calls = CALLS // frames
    seconds(model, x, calls)
    best = [float("inf")] * 3
    for _ in range(ROUNDS):
        before = seconds(model, x, calls)
        with hotswap.watch_compiles(model) as log:
            seconds(model, x, 1)
            watched = seconds(model, x, calls)
        after = seconds(model, x, calls)
        best = [min(pair) for pair in zip(best, (before, watched, after), strict=True)]
        if log.total_hits != (calls + 1) * frames:
            raise RuntimeError(f"{log.total_hits} hits, expected {(calls + 1) * frames}")
    return best[0] * 1e6, best[1] * 1e6, best[2] * 1e6


def main() -> int:
    """Print the table; the exit code says whether the target was met."""
    print(f"torch {torch.__version__}, microseconds a call")
    met = True
    for name, build, frames in (("whole model", whole, 1), (f"{LAYERS} layers", regional, LAYERS)):
        without, watched, after = measure(build, frames)
        per_frame = (watched - without) / frames
        met &= per_frame <= TARGET
        print(
            f"{name:12} without {without:7.1f}  watched {watched:7.1f}  after {after:7.1f}  "
            f"per frame {per_frame:4.1f} (target {TARGET:.0f})"
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
