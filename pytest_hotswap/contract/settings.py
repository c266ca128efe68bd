"""The settings of a process that a swap must leave alone."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hotswap.compiler.private import stance

_LOGGERS = ("", "peft", "transformers", "diffusers", "torch")
THREADS = "the number of threads that run"


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
        "the stance of torch.compile": stance(),
        "torch._dynamo.config": torch._dynamo.config.get_config_copy(),
        "the working directory": os.getcwd(),
        "garbage collection": gc.isenabled(),
        "how often garbage is collected": gc.get_threshold(),
        "what signals call": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)],
        "what is called for an error that nobody catches": (sys.excepthook, threading.excepthook),
        "the search for anomalies": torch.is_anomaly_enabled(),
        "what is printed to": (sys.stdout, sys.stderr),
    }


def loud() -> dict[str, Any]:
    """What importing a module may change as well, so that it is compared at a later swap only."""
    return {
        "the environment": dict(os.environ),
        "where modules are imported from": list(sys.path),
        THREADS: threading.active_count(),
        "the filters of warnings": list(warnings.filters),
        "the levels of loggers": [logging.getLogger(name).level for name in _LOGGERS],
        "what loggers leave out": logging.root.manager.disable,
    }


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Name what is not as it was."""
    return [f"{what} changed" for what, then in before.items() if after.get(what) != then]


def files_of(adapters: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """The sizes and times of the adapters' files, by name."""
    folders = [path for path in adapters if path.is_dir()]
    files = [file for path in folders for file in sorted(path.iterdir())]
    stats = {str(file): file.stat() for file in files}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


@contextmanager
def unusual(*, on: bool, environment: Mapping[str, str]) -> Iterator[None]:
    """Have settings that no swap would choose, so that one that sets them is seen.

    ``on`` are those that are on or off. The environment is the one before any swap: one that a swap sets
    is set already.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    benchmark, collects = torch.backends.cudnn.benchmark, gc.isenabled()
    left_out, rarely, hook = logging.root.manager.disable, gc.get_threshold(), sys.excepthook
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns, now = torch.is_deterministic_algorithms_warn_only_enabled(), dict(os.environ)
    signals = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with warnings.catch_warnings(), torch.set_grad_enabled(on):
        warnings.simplefilter("default")
        torch.set_float32_matmul_precision("medium" if precision != "medium" else "highest")
        torch.set_num_threads(threads + 1)
        torch.use_deterministic_algorithms(on, warn_only=True)
        torch.backends.cudnn.benchmark = on
        _collect(on)
        gc.set_threshold(rarely[0] + 1, *rarely[1:])
        logging.disable(logging.NOTSET + 1)
        sys.excepthook = lambda *error: hook(*error)
        _let_signals_call({each: lambda *_: None for each in signals})
        _set_environment(environment)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL - 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            _set_environment(now)
            _let_signals_call(signals)
            sys.excepthook = hook
            logging.disable(left_out)
            gc.set_threshold(*rarely)
            _collect(collects)
            torch.backends.cudnn.benchmark = benchmark
            torch.use_deterministic_algorithms(deterministic, warn_only=warns)
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)


def _let_signals_call(wanted: Mapping[signal.Signals, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for each, handler in wanted.items():
            if handler is not None:  # one that is not Python's cannot be set again
                signal.signal(each, handler)


def _collect(on: bool) -> None:
    gc.enable() if on else gc.disable()


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    os.environ.update(wanted)
