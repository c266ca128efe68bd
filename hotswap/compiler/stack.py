"""What Python's stack says of a call. PYTEST_DONT_REWRITE"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from torch import Tensor, nn


def called_whole(frame: FrameType) -> nn.Module | None:
    """The module that torch's wrapper calls as a whole, and not one of its methods."""
    function = frame.f_locals.get("fn")
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    whole = name in ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
    return owner if whole and isinstance(owner, nn.Module) else None


def takes_tensors(frame: FrameType) -> bool:
    """Whether torch's wrapper gives a function a tensor or a module."""
    values = frame.f_locals
    given = (*values.get("args", ()), *values.get("kwargs", {}).values())
    return any(isinstance(value, Tensor | nn.Module) for value in given)


def callers(frame: FrameType | None) -> Iterator[nn.Module]:
    """The modules whose methods are on the stack, the innermost first."""
    while frame is not None:
        if isinstance(owner := frame.f_locals.get("self"), nn.Module):
            yield owner
        frame = frame.f_back


def is_running(call: FrameType, thread: int) -> bool:
    """Whether a call is still on the stack of a thread."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is call
