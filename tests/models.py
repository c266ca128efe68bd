"""Micro models and adapters written by PEFT itself, for tests that need real ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Conv1D


class Micro(nn.Module):
    """An embedding, a linear layer, a transformers Conv1D and a (grouped) convolution."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.first = nn.Linear(8, 12)
        self.second = Conv1D(8, 12)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.second(torch.relu(self.first(self.embed(tokens))))  # (batch, length, 8)
        image = hidden.reshape(tokens.shape[0], 4, -1, 4)
        return self.conv(image).flatten(1)


TARGETS = ["embed", "first", "second", "conv"]
TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 10]])


def micro(groups: int = 1) -> Micro:
    torch.manual_seed(0)
    return Micro(groups).eval()


def write_adapter(folder: Path, base: nn.Module, *, seed: int = 1, **config: Any) -> Path:
    """Write a LoRA adapter with random weights (lora_B too) by PEFT's save_pretrained."""
    config.setdefault("target_modules", TARGETS)
    generator = torch.Generator().manual_seed(seed)
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(folder)
    return folder


def fresh(base: nn.Module, folder: Path) -> Any:
    """The oracle: the adapter as PEFT loads it into a fresh base model."""
    return PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


@torch.no_grad()
def run(model: Any) -> torch.Tensor:
    return model(TOKENS)
