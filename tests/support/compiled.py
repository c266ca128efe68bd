"""Small LoRA models and ways to compile them, for tests of the compile watch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.models import fresh, write_adapter


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Block(nn.Module):
    """A layer of its own compiled code: it reads its index, as attention does for the KV cache."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index
        self.q_proj = nn.Linear(8, 8)
        self.v_proj = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.q_proj(x)) * (1 + self.layer_idx)
        return nn.functional.dropout(self.v_proj(x), 0.1, self.training)


class Decoder(nn.Module):
    """Two layers, which take a fraction of a real decoder's time to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(index) for index in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().eval()


def mlp() -> Mlp:
    torch.manual_seed(0)
    return Mlp().eval()


def llama(layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config).eval()


TARGETS = {mlp: ["up", "down"], decoder: ["q_proj"], llama: ["q_proj", "v_proj"]}


class Lora:
    """A base model with a rank-4 adapter, compiled in one of the usual ways with the eager backend."""

    def __init__(
        self, base: Callable[[], nn.Module], folder: Path, targets: list[str] | None = None
    ) -> None:
        self.base, self.folder = base, folder
        self.targets = targets or TARGETS[base]
        self.model = fresh(base(), self.adapter())
        self.called: Any = self.model

    def adapter(self, rank: int = 4, alpha: int = 8, **config: Any) -> Path:
        """Write an adapter; its name says its rank and alpha."""
        config = {"target_modules": self.targets} | config
        path = self.folder / f"r{rank}-a{alpha}-{len(list(self.folder.iterdir()))}"
        return write_adapter(path, self.base(), r=rank, lora_alpha=alpha, **config)

    def swap(self, rank: int, alpha: int) -> None:
        """Swap by PEFT, which does not refuse what makes a model recompile."""
        path = str(self.adapter(rank, alpha))
        hotswap_adapter(self.model, path, "default", torch_device="cpu")  # noqa: HSW205

    def compile(self, style: str) -> None:
        """Compile ``whole`` (torch.compile), ``in place``, ``forward`` (replaced) or per ``layer``."""
        if style == "whole":
            self.called = torch.compile(self.model, backend="eager")
        elif style == "in place":
            self.model.compile(backend="eager")
        elif style == "forward":
            self.model.forward = torch.compile(self.model.forward, backend="eager")
        else:
            base = self.model.base_model.model
            for layer in getattr(base, "model", base).layers:
                layer.compile(backend="eager")

    def inputs(self, batch: int = 2, length: int = 5) -> torch.Tensor:
        if isinstance(self.model.base_model.model, LlamaForCausalLM):
            return torch.ones(batch, length, dtype=torch.long)
        return torch.ones(batch, 8)

    @torch.no_grad()
    def run(self, x: torch.Tensor | None = None) -> Any:
        return self.called(self.inputs() if x is None else x)

    def warm(self, style: str) -> None:
        """Compile, and run twice."""
        self.compile(style)
        self.run()
        self.run()
