"""Engines that accept what must be refused: a compiled model, a rank above the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import hotswap
from tests.mutants.registry import breaks
from tests.mutants.subject import Engine


@breaks("prepare-before-compile", own=True)
class CompiledAccepted(Engine):
    """Whether the model is compiled is not looked at."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        hotswap.prepare(model, plan=plan, check_compiled="ignore")


@breaks("prepare-before-compile", own=True)
class OnlyTheWrapperIsSeen(Engine):
    """A compiled submodule or forward is not looked for."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        if hasattr(model, "_orig_mod"):
            raise ValueError("compiled")
        hotswap.prepare(model, plan=plan, check_compiled="ignore")


@breaks("rank-bound")
class LargerRankTruncated(Engine):
    """A rank above the target is cut to it."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        try:
            super().swap(model, adapter)
        except hotswap.errors.RankTooLargeError:
            super().swap(model, self.adapter_paths()[0])


@breaks("rank-bound", own=True)
class GrowsTheSlot(Engine):
    """A rank above the target replaces the parameters, as PEFT does."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        try:
            super().swap(model, adapter)
        except hotswap.errors.RankTooLargeError:
            lora = self.layers(model)["first"].lora_A[self.adapter_name]
            lora.weight = nn.Parameter(torch.zeros(32, lora.weight.shape[1]))
