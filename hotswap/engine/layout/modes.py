"""torch.inference_mode and torch.autocast, entered only where that changes something."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def in_inference_mode(mode: bool) -> AbstractContextManager[object]:
    """Return a scope in which inference mode is on, or off.

    The guard of torch's own lives as long as the traceback of an interrupt, and then sets gradients to what
    they were where its scope began: off, if that was within ``no_grad``.
    """
    return (
        nullcontext() if torch.is_inference_mode_enabled() == mode else torch.inference_mode(mode)
    )


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a scope in which products on a device are computed in the dtypes of their factors."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()
