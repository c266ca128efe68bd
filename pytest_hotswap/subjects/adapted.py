"""A subject as ``hotswap verify`` asks for it: on a device, in a dtype, with inputs, compiled in some way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hotswap
from hotswap.cli.verify.handover import Handover


def adapt(subject: Any, settings: Handover) -> None:
    """Change a subject in place to what was asked for; what was not asked for stays its own."""
    if not settings.own_adapters:
        subject.refused = tuple(Path(path) for path in settings.refused)
    if settings.plan:
        subject.plan = hotswap.SwapPlan.read(settings.plan)
    if settings.package:
        subject.package = settings.package
    if settings.ranks:
        subject.ranks = settings.ranks
    if settings.device or settings.dtype:
        _place(subject, settings)
    if settings.inputs:
        _feed(subject, settings.inputs)
    if settings.compile_mode or settings.regional:
        subject.compile = lambda model: _compile(subject, model, settings)


def _place(subject: Any, settings: Handover) -> None:
    import torch

    base_model, inputs = subject.base_model, subject.inputs
    dtype = getattr(torch, settings.dtype) if settings.dtype else None

    def placed(thing: Any) -> Any:
        if not isinstance(thing, torch.Tensor):
            return thing
        return thing.to(settings.device, dtype if thing.is_floating_point() else None)

    subject.base_model = lambda: base_model().to(device=settings.device, dtype=dtype)
    subject.inputs = lambda: {key: placed(value) for key, value in inputs().items()}


def _feed(subject: Any, path: str) -> None:
    from safetensors.torch import load_file

    from hotswap.checks.inputs import problem_of_inputs

    def inputs() -> dict[str, Any]:
        model = subject.base_model()
        device = next(model.parameters()).device
        fed: dict[str, Any] = {key: value.to(device) for key, value in load_file(path).items()}
        if problem := problem_of_inputs(model, fed):
            raise pytest.UsageError(f"--inputs {path}: {problem}")
        if hasattr(getattr(model, "config", None), "use_cache"):
            fed["use_cache"] = False  # a cache is guarded on, and is wrong after a swap
        return fed

    subject.inputs = inputs


def _compile(subject: Any, model: Any, settings: Handover) -> Any:
    import torch

    options = {"backend": subject.backend, "mode": settings.compile_mode}
    if not settings.regional:
        return torch.compile(model, **options)
    for block in repeated_blocks(model):
        block.compile(**options, isolate_recompiles=True)
    return model


def repeated_blocks(model: Any) -> list[Any]:
    """The blocks that regional compilation compiles: the members of the longest ModuleLists.

    Raises ValueError for a model without any.
    """
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    longest = max(map(len, lists), default=0)
    if longest < 2:
        raise ValueError("--regional: the model has no ModuleList of repeated blocks")
    return [block for found in lists if len(found) == longest for block in found]
