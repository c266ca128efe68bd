"""What a swap has nothing to do with: torch's and Python's state, the adapter's files, memory."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.settings import loud, settings

_ROUNDS = 3


def surroundings(deployment: Deployment) -> dict[str, Any]:
    """A description of it, whose parts compare by ==."""
    files = [file for path in deployment.paths if path.is_dir() for file in sorted(path.iterdir())]
    found = {
        **settings(),
        **loud(),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "Python's random state": random.getstate(),
        "the adapters' files": [(file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    }
    for module in deployment.subject.models(deployment.compiled):
        found |= {f"the gradient of {n}": id(p.grad) for n, p in module.named_parameters()}
        for path, part in module.named_modules():
            found[f"{path}.training"] = part.training
            found[f"the hooks of {path}"] = (
                len(part._forward_hooks),
                len(part._forward_pre_hooks),
                len(part._state_dict_hooks),
            )
    return found


def grown(deployment: Deployment) -> str:
    """Say how many tensors more there are after each round of the same swaps, if it is so every time."""
    # collecting takes longer than the swaps: first without, where a cycle may look like growth
    return growth(deployment) and growth(deployment, collect=True)


def growth(
    deployment: Deployment, after: Callable[[], None] = lambda: None, *, collect: bool = False
) -> str:
    """The same, with or without collecting what is only there because of a cycle."""
    paths = deployment.neighbours(deployment.first)[:4]
    counts = []
    for _ in range(_ROUNDS + 2):
        deployment.swap(*paths)
        after()
        if collect:
            gc.collect()
        tensors = (torch.Tensor, torch.nn.Parameter)
        counts.append(sum(type(found) in tensors for found in gc.get_objects()))
    each = {
        now - then for then, now in pairwise(counts[1:])
    }  # the first round fills what is cached
    if len(each) == 1 and (more := each.pop()) > 0:
        return f"each swap leaves {more / len(paths):.3g} tensors behind"
    return ""
