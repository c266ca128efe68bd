"""What a swap has nothing to do with: torch's and Python's state, the adapter's files, memory."""

from __future__ import annotations

import gc
import pickle
import random
import threading
import tracemalloc
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
_LITTLE = 512  # bytes a swap
_BLOCK = 256  # bytes: what is smaller may be Python's own objects around tensors
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
        for name, parameter in module.named_parameters():
            found[f"the gradient of {name}"] = id(parameter.grad)
            found[f"{name}.requires_grad"] = parameter.requires_grad
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
                served, around = deployment.served, deployment.environment
                with unusual(on=on, environment=around), lived_in(served, on=on):
                    running, before = threading.enumerate(), surroundings(deployment)
                    swaps()
                    more = left_behind(running)
                    after = surroundings(deployment) | {THREADS: before[THREADS] + len(more)}
                    found += changed(before, after)
    finally:
        np.random.set_state(numbers)
        random.setstate(state)
    return found


@contextmanager
def lived_in(model: torch.nn.Module, *, on: bool) -> Iterator[None]:
    """Give a model what its user may have given it: modes, a hook, and weights that are trained.

    It is not to be called meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    base = [p for name, p in model.named_parameters() if ".base_layer." in name]
    base = [p for p in base if p.is_floating_point() and not p.is_inference()]
    least = min(base, key=torch.Tensor.numel, default=None)
    known = least is not None and (least.requires_grad, least.grad)
    own = [p for name, p in model.named_parameters() if ".lora_" in name and p.is_floating_point()]
    trained = [
        (parameter, parameter.requires_grad) for parameter in own if not parameter.is_inference()
    ]
    hook = model.register_forward_hook(lambda *_: None)
    for module, _ in modes:
        module.training = on
    for parameter, _ in trained:
        parameter.requires_grad_(on)
    if least is not None:
        least.requires_grad_(on)
        least.grad = torch.zeros_like(least) if on else None
    try:
        yield
    finally:
        hook.remove()
        for module, mode in modes:
            module.training = mode
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
        if least is not None and known:
            least.requires_grad_(known[0])
            least.grad = known[1]


def left_behind(running: Sequence[threading.Thread]) -> list[threading.Thread]:
    """The threads that run beside these; those that have read a file may take a moment to end."""
    new = [thread for thread in threading.enumerate() if thread not in running]
    for thread in new:
        thread.join(_MOMENT)
    return [thread for thread in new if thread.is_alive()]


def grown(deployment: Deployment) -> str:
    """Say what more there is after each round of the same swaps, if it is so every time."""
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
    counts, sizes, tensors = [], [], (torch.Tensor, torch.nn.Parameter)
    with _without_what_is_there(), _traced_memory():
        for _ in range(_ROUNDS + 2):
            deployment.swap(*paths)
            after()
            if collect:
                gc.collect()
            sizes.append(_size_of_blocks())
            counts.append(sum(type(found) in tensors for found in gc.get_objects()))
    # the first round fills what is cached
    more = {now - then for then, now in pairwise(counts[1:])}
    if len(more) == 1 and (tensors_more := more.pop()) > 0:
        return f"each swap leaves {tensors_more / len(paths):.3g} tensors behind"
    least = min(now - then for then, now in pairwise(sizes[1:])) // len(paths)
    return f"each swap leaves {least} bytes behind" if least > _LITTLE else ""


def _size_of_blocks() -> int:
    """The bytes of what was allocated since tracing began and is still there."""
    traces = tracemalloc.take_snapshot().traces
    return sum(trace.size for trace in traces if trace.size >= _BLOCK)


@contextmanager
def _traced_memory() -> Iterator[None]:
    """Let Python count the bytes that it and numpy have; torch's are in tensors."""
    if tracemalloc.is_tracing():  # somebody else's
        yield
        return
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


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
