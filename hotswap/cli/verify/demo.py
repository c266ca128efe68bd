"""A small model and a fleet of adapters to try ``hotswap verify`` on, with nothing to download."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SEED = 20_240_601
ADAPTERS: dict[str, dict[str, Any]] = {
    "formal": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "legal": {
        "r": 8,
        "lora_alpha": 24,
        "rank_pattern": {"q_proj": 6},
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    },
    "poetic": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "terse": {"r": 8, "lora_alpha": 4, "target_modules": ["q_proj"]},
}
"""Four adapters that differ in rank, alpha, rank pattern and target modules."""


def write_demo(folder: Path, layers: int = 2) -> tuple[Path, list[Path]]:
    """Write a Llama of random weights and the adapters; return their folders.

    The adapters are written by PEFT itself, so they are what a user's own training leaves behind.
    """
    import torch

    from hotswap.bench.models import draw, llama, pretrained, write_adapter

    base, paths = demo_paths(folder)
    generator = torch.Generator().manual_seed(SEED)
    model: Any = llama(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    draw(model, lambda name: "norm" not in name, generator, 0.05)
    model.save_pretrained(base)
    for path, config in zip(paths, ADAPTERS.values(), strict=True):
        write_adapter(pretrained(base), path, generator, 0.1, task_type="CAUSAL_LM", **config)
    return base, paths


def demo_paths(folder: Path) -> tuple[Path, list[Path]]:
    """Name the folders of the base model and of the adapters."""
    return folder / "base", [folder / "adapters" / name for name in ADAPTERS]


if __name__ == "__main__":
    write_demo(Path(sys.argv[1]))
