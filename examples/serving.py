"""A compiled model and a bank of its adapters: what both servers beside this file serve."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import hotswap

FLEET = Path(os.environ.get("FLEET", "fleet"))
"""A folder with ``base`` and ``adapters/*``: ``python -m hotswap.cli.verify.demo fleet`` writes one."""
BACKEND = os.environ.get("BACKEND", "inductor")
PROMPT, COMPLETION = 16, 4
"""Tokens of a prompt, padded on the left, and of a completion: compiled code sees these shapes only."""


class Serving:
    """A prepared and compiled model, and its bank."""

    def __init__(self) -> None:
        self.paths = {path.name: path for path in sorted((FLEET / "adapters").iterdir())}
        plan = hotswap.plan([*self.paths.values()])
        base = AutoModelForCausalLM.from_pretrained(FLEET / "base").eval()
        self.model = hotswap.load(base, plan, next(iter(self.paths.values()))).eval()
        inner = self.model.get_base_model()  # what generate() calls
        inner.forward = torch.compile(inner.forward, backend=BACKEND)
        self.bank = hotswap.AdapterBank(self.model)
        self.complete([1])  # compiles before the first request comes

    def complete(self, tokens: list[int]) -> list[int]:
        """Continue a prompt greedily with the adapter in place: hold ``bank.using(name)`` around it."""
        tokens = tokens[-PROMPT:]
        padding = [0] * (PROMPT - len(tokens))
        with torch.no_grad():
            found = self.model.generate(
                input_ids=torch.tensor([padding + tokens]),
                attention_mask=torch.tensor([padding + [1] * len(tokens)]),
                cache_implementation="static",  # each call makes its own: no cache outlives a swap
                max_new_tokens=COMPLETION,
                min_new_tokens=COMPLETION,
                do_sample=False,
                pad_token_id=0,
            )
        return found[0, PROMPT:].tolist()
