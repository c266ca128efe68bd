"""torch.inference_mode, entered only where it changes something."""

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
