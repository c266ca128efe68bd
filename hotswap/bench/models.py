"""Models to measure, and adapters of random weights for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def llama(**sizes: int) -> nn.Module:
    """Make a Llama for text of bytes, of the given sizes, with weights as torch draws them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=256, bos_token_id=1, eos_token_id=2, **sizes)
    model: nn.Module = LlamaForCausalLM(config).eval()
    return model


def pretrained(base: str | Path) -> nn.Module:
    """Load a transformers model by the class that its configuration names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(base)
    named = (config.architectures or ["AutoModel"])[0]
    model: nn.Module = getattr(transformers, named, transformers.AutoModel).from_pretrained(base)
    return model.eval()


def write_adapter(
    base: nn.Module, path: Path, generator: torch.Generator, std: float, **config: Any
) -> None:
    """Give a base model an adapter of random weights, in place, and save it as training with PEFT does."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base, LoraConfig(**config))
    draw(model, lambda name: "lora_" in name, generator, std)
    model.save_pretrained(str(path))


@torch.no_grad()
def draw(
    model: nn.Module, wanted: Callable[[str], bool], generator: torch.Generator, std: float
) -> None:
    """Draw in place the parameters whose names are wanted."""
    for name, parameter in model.named_parameters():
        if wanted(name):
            parameter.normal_(0.0, std, generator=generator)
