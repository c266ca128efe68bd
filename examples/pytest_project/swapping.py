"""The serving code of a project that swaps with PEFT's own functions, as the tests beside it judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import hotswap

FLEET = Path(__file__).parent / "fleet"


def adapters() -> list[Path]:
    """Return the adapters that are served."""
    return sorted((FLEET / "adapters").iterdir())


def serve(backend: str) -> Any:
    """Load the base model and the first adapter, prepare for the whole fleet, compile."""
    base = AutoModelForCausalLM.from_pretrained(FLEET / "base").eval()
    model = PeftModel.from_pretrained(base, adapters()[0]).eval()
    hotswap.prepare(model, plan=hotswap.plan(adapters()))
    return torch.compile(model, backend=backend)
