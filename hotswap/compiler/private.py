"""Every use of a private torch name, one function each; PYTEST_DONT_REWRITE

On a torch that lacks one of them the watch raises CannotObserveError: it never passes blind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hotswap.errors import CannotObserveError

GuardHook = Callable[[bool], bool]


def set_guard_hook(hook: GuardHook | None) -> GuardHook | None:
    """Install the function called after each guard evaluation of a compiled frame; return the old one.

    True: compiled code is about to run; False: cache miss. torch's guard collectives use the same hook.
    """
    try:
        from torch._C._dynamo.eval_frame import set_guard_complete_hook
    except ImportError as error:
        raise CannotObserveError(
            "cannot observe cache hits: no guard hook in this torch"
        ) from error
    previous: GuardHook | None = set_guard_complete_hook(hook)  # type: ignore[arg-type]
    return previous


def compile_records() -> list[Any]:
    """torch's own records of the last compiles, oldest first (at most 64)."""
    try:
        from torch._dynamo.utils import get_compilation_metrics
    except ImportError as error:
        raise CannotObserveError("cannot observe compiles: no metrics in this torch") from error
    return list(get_compilation_metrics())


def start_callbacks() -> list[Any]:
    """The live list of functions called when a compile starts; ``torch._dynamo.reset()`` empties it."""
    try:
        from torch._dynamo.callback import callback_handler
    except ImportError as error:
        raise CannotObserveError("cannot observe resets: no callbacks in this torch") from error
    callbacks: list[Any] = callback_handler.start_callbacks
    return callbacks
