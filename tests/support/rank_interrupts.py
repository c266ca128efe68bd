"""Ctrl-C on a rank; the function is called on every rank."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

import hotswap
from hotswap.engine import mesh
from tests.support import rank_models as at


def interrupted_swap(
    folder: Path, interrupted: bool, fault: tuple[str, str, float] | None
) -> tuple[str, str | None, torch.Tensor]:
    """Swap, with Ctrl-C on some rank after its last word: what was raised, what is active, the output."""
    original = mesh.Ranks.verdict

    def verdict(self: Any, turn: int, step: str) -> str:
        if step.endswith("end"):
            mesh.Ranks.verdict = original  # type: ignore[method-assign]
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, turn, step)

    if interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent may ignore it
        mesh.Ranks.verdict = verdict  # type: ignore[method-assign]
    elif fault is not None:
        at.broken_step(*fault)
    raised = ""
    try:
        at.swap(folder)
    except (Exception, KeyboardInterrupt) as error:
        raised = type(error).__name__
    return raised, hotswap.active(at.HERE["model"]), at.run()
