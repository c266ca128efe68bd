"""Outputs equal within a tolerance per dtype; the first module that differs is named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hotswap.adapters.names import canonical
from hotswap.compiler.regions import unwrap

TOLERANCES: dict[torch.dtype | Literal["widened"], tuple[float, float]] = {
    torch.float64: (1e-10, 1e-8),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (4e-3, 4e-3),
    "widened": (1e-6, 1e-5),
}
"""Per dtype (atol, rtol): padding changes the order of sums, not the terms.

"widened" are models of any dtype that compute in float64: what remains is that a scaling is a float32,
and that some norms compute in float32 whatever they are given.
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The largest absolute error over all output tensors against the tolerance."""

    equal: bool
    max_error: float
    tolerance: float
    detail: str


def tensors_of(output: Any) -> list[Tensor]:
    """List the floating tensors of a model's output (tensor, sequence or mapping), in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | list | tuple):
        return []
    return [tensor for value in values for tensor in tensors_of(value)]


def compare(
    actual: Any, expected: Any, *, tolerances: tuple[float, float] | None = None
) -> Comparison:
    """Compare two outputs; tolerance = atol + rtol * max|expected|. NaN is never equal.

    ``tolerances`` are (atol, rtol), by default those of the expected output's dtype.
    """
    ours, theirs = tensors_of(actual), tensors_of(expected)
    if not theirs or len(ours) != len(theirs):
        counts = f"{len(ours)} output tensors, expected {len(theirs)}"
        return Comparison(False, float("inf"), 0.0, counts)
    worst = Comparison(True, 0.0, 0.0, "")
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        found = _compare(one, other, index, tolerances)
        if (not found.equal, found.max_error) >= (not worst.equal, worst.max_error):
            worst = found
    return worst


def _compare(
    one: Tensor, other: Tensor, index: int, tolerances: tuple[float, float] | None
) -> Comparison:
    if one.shape != other.shape:
        shapes = f"output {index} has shape {tuple(one.shape)}, expected {tuple(other.shape)}"
        return Comparison(False, float("inf"), 0.0, shapes)
    atol, rtol = tolerances or TOLERANCES.get(other.dtype, TOLERANCES[torch.float32])
    wide = other.detach().double()
    tolerance = atol + rtol * (wide.abs().max().item() if wide.numel() else 0.0)
    error = (one.detach().double() - wide).abs().max().item() if wide.numel() else 0.0
    equal = error <= tolerance  # False for NaN
    detail = f"output {index} differs by {error:.3g}, tolerance {tolerance:.3g}"
    return Comparison(equal, error, tolerance, detail)


def widened(model: nn.Module) -> nn.Module:
    """Copy a model into float64, where its weights are exact and sums hardly depend on their order."""
    return copy.deepcopy(model).double()


def first_difference(
    actual: nn.Module,
    expected: nn.Module,
    run: Callable[[nn.Module], Any],
    *,
    tolerances: tuple[float, float] | None = None,
) -> str | None:
    """Run both models and name the first module, in order of execution, whose output differs.

    What LoRA layers are made of is left out: its shapes are those of the padded rank.
    """
    ours, theirs = _outputs(actual, run), _outputs(expected, run)
    for name, output in theirs.items():
        if name not in ours or not tensors_of(output):
            continue
        if not compare(ours[name], output, tolerances=tolerances).equal:
            return name or "the model"
    return None


def _outputs(model: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    model = unwrap(model)

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            seen.setdefault(name, output)

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if "lora_" not in name:
                hooks.enter_context(module.register_forward_hook(keep(canonical(name))))
        run(model)
    return seen
