"""What a swap has nothing to do with: torch's and Python's state, the adapter's files, memory."""

from __future__ import annotations

import gc
import pickle
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.settings import THREADS, changed, files_of, loud, settings, unusual

_ROUNDS = 3
_MOMENT = 1.0  # seconds


def surroundings(deployment: Deployment) -> dict[str, Any]:
    """A description of it, whose parts compare by ==."""
    found = {
        **settings(),
        **loud(),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "Python's random state": random.getstate(),
        "numpy's random state": pickle.dumps(np.random.get_state()),
        "the adapters' files": files_of(deployment.paths),
    }
    for module in deployment.subject.models(deployment.compiled):
        found |= {f"the gradient of {n}": id(p.grad) for n, p in module.named_parameters()}
        for path, part in module.named_modules():
            found[f"{path}.training"] = part.training
            hooks = {key: len(value) for key, value in vars(part).items() if key.endswith("_hooks")}
            found[f"the hooks of {path}"] = hooks
    return found


def disturbed_by(swaps: Callable[[], Any], deployment: Deployment) -> list[str]:
    """What swaps change of it, under settings that no swap would choose: those that are on, and off."""
    found, state, numbers = [], random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(3)  # a swap that seeds has left its own seed
            random.seed(3)
            np.random.seed(3)
            for on in (True, False):
                with unusual(on=on, environment=deployment.environment):
                    running, before = threading.enumerate(), surroundings(deployment)
                    swaps()
                    more = left_behind(running)
                    after = surroundings(deployment) | {THREADS: before[THREADS] + len(more)}
                    found += changed(before, after)
    finally:
        np.random.set_state(numbers)
        random.setstate(state)
    return found


def left_behind(running: Sequence[threading.Thread]) -> list[threading.Thread]:
    """The threads that run beside these; those that have read a file may take a moment to end."""
    new = [thread for thread in threading.enumerate() if thread not in running]
    for thread in new:
        thread.join(_MOMENT)
    return [thread for thread in new if thread.is_alive()]


def grown(deployment: Deployment) -> str:
    """Say how many tensors more there are after each round of the same swaps, if it is so every time."""
    # collecting takes longer than the swaps: first without, where a cycle may look like growth
    return growth(deployment) and growth(deployment, collect=True)


def growth(
    deployment: Deployment, after: Callable[[], None] = lambda: None, *, collect: bool = False
) -> str:
    """The same, with or without collecting what is only there because of a cycle."""
    paths: list[Path | None] = [*deployment.neighbours(deployment.first)[:4]]
    paths += [*deployment.companions.values()][:2]
    if deployment.takes_none:
        paths.append(None)
    counts, tensors = [], (torch.Tensor, torch.nn.Parameter)
    with _without_what_is_there():
        for _ in range(_ROUNDS + 2):
            deployment.swap(*paths)
            after()
            if collect:
                gc.collect()
            counts.append(sum(type(found) in tensors for found in gc.get_objects()))
    each = {
        now - then for then, now in pairwise(counts[1:])
    }  # the first round fills what is cached
    if len(each) == 1 and (more := each.pop()) > 0:
        return f"each swap leaves {more / len(paths):.3g} tensors behind"
    return ""


@contextmanager
def _without_what_is_there() -> Iterator[None]:
    """Let the garbage collector pass over whatever is there already, which makes it quick."""
    if gc.get_freeze_count():  # somebody else's, which cannot be told apart afterwards
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
