"""The settings of a process that a swap must leave alone."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_LOGGERS = ("", "peft", "transformers", "diffusers", "torch")


def settings() -> dict[str, Any]:
    """The settings, whose values compare by ==."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "the number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of matrix products": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "torch.backends.cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "torch._dynamo.config": torch._dynamo.config.get_config_copy(),
        "the working directory": os.getcwd(),
        "garbage collection": gc.isenabled(),
        "what an interrupt calls": signal.getsignal(signal.SIGINT),
    }


def loud() -> dict[str, Any]:
    """What importing a module may change as well, so that it is compared at a later swap only."""
    return {
        "the environment": dict(os.environ),
        "where modules are imported from": list(sys.path),
        "the number of threads that run": threading.active_count(),
        "the filters of warnings": list(warnings.filters),
        "the levels of loggers": [logging.getLogger(name).level for name in _LOGGERS],
    }


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Name what is not as it was."""
    return [f"{what} changed" for what, then in before.items() if after.get(what) != then]


@contextmanager
def unusual(*, grad: bool) -> Iterator[None]:
    """Have settings that no swap would choose, so that one that sets them is seen."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    precision = torch.get_float32_matmul_precision()
    with warnings.catch_warnings(), torch.set_grad_enabled(grad):
        warnings.simplefilter("default")
        torch.set_float32_matmul_precision("medium" if precision != "medium" else "highest")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL - 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            torch.set_float32_matmul_precision(precision)
