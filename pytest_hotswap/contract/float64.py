"""What is in place against a fresh load, both computed in float64."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hotswap.checks.equivalence import TOLERANCES, Comparison, compare
from hotswap.engine.layout.slots import lora_layers, slots
from pytest_hotswap.contract.deployment import Deployment, brief

WIDEST = 4 * 2**30
"""Bytes of a model in float64 up to which it is computed so: two copies are made of it."""


class NotWidenableError(Exception):
    """The model cannot be computed in float64."""


def compare_in_float64(deployment: Deployment, adapter: Path) -> tuple[Comparison, str]:
    """Compare what is in place with a fresh load, both computed in float64; name the first module.

    The weights are those that are served, so what half precision rounds away in the outputs shows.
    Nothing compiled runs. Raises NotWidenableError for a model that cannot be computed in float64.
    """
    ours = deployment.served
    needed = sum(parameter.numel() * 8 for parameter in ours.parameters())
    if needed > WIDEST:
        raise NotWidenableError(f"in float64 the model takes {needed} bytes, above {WIDEST}")
    theirs = copy.deepcopy(deployment.fresh(adapter))
    _cast_like(theirs, ours, deployment.subject.adapter_name)
    inputs = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in deployment.inputs.items()
    }
    run, near = partial(deployment.run, inputs=inputs), TOLERANCES["widened"]
    with torch.compiler.set_stance("force_eager"):
        # the oracle first: where it fails, the model is at fault and not the subject
        try:
            theirs = theirs.double()
            expected = run(theirs)
        except Exception as error:  # as quantised layers raise
            text = f"the fresh load does not run in float64: {brief(error)}"
            raise NotWidenableError(text) from error
        ours = deployment.widened(ours)
        found = compare(run(ours), expected, tolerances=near)
        if found.equal:
            return found, ""
        differs = deployment.difference(ours, theirs, run, tolerances=near)
    return found, f"; the first module that differs is {differs}" if differs else ""


def _cast_like(theirs: Any, ours: Any, adapter_name: str) -> None:
    """Round a fresh load's adapter to the dtype that a deployment keeps adapters in."""
    layers = lora_layers(ours, adapter_name)
    for module, layer in lora_layers(theirs, "default").items():
        if module not in layers:
            continue
        served = {slot.key: slot.tensor.dtype for slot in slots(layers[module], adapter_name)}
        for slot in slots(layer, "default"):
            slot.tensor.data = slot.tensor.data.to(served[slot.key])
