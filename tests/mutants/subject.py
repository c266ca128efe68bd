"""The micro deployments that the faulty engines are derived from: every layer kind and feature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer

from hotswap.engine.layout.slots import Slot, lora_layers, slots
from pytest_hotswap import ReferenceSubject
from tests.support.models import TOKENS, Head, micro, seeded, write_fleet

FLEET: dict[str, dict[str, Any]] = {
    "large": {"r": 8, "lora_alpha": 4, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 12,
        "rank_pattern": {"first": 2},
        "alpha_pattern": {"second": 3},
    },
    "small": {"r": 2, "lora_alpha": 2, "target_modules": ["embed", "first"]},
}
FEATURES: dict[str, dict[str, Any]] = {
    "dora": {"r": 4, "lora_alpha": 12, "use_dora": True, "target_modules": ["first", "second"]},
    "bias": {"r": 2, "lora_alpha": 4, "lora_bias": True, "target_modules": ["first", "second"]},
    "plain": {"r": 2, "lora_alpha": 2, "target_modules": ["first"]},
}
_BOTH: dict[str, Any] = {
    "target_modules": ["first"],
    "modules_to_save": ["head", "norm"],
    "trainable_token_indices": {"embed": [1, 2, 8]},  # no input has the last one
}
WHOLES: dict[str, dict[str, Any]] = {
    "both": {"r": 4, "lora_alpha": 8, **_BOTH},
    "other": {"r": 2, "lora_alpha": 6, **_BOTH},
    "plain": {"r": 2, "lora_alpha": 2, "target_modules": ["first"]},
}
FLEETS = {"fleet": FLEET, "features": FEATURES, "wholes": WHOLES}


def write_fleets(folder: Path) -> None:
    """Write the adapters of every fleet."""
    for name, fleet in FLEETS.items():
        base = seeded(Head) if name == "wholes" else micro(groups=2)
        write_fleet(folder / name, base, fleet)


class Engine(ReferenceSubject):
    """hotswap's engine on a micro model; a faulty one overrides a method."""

    fleet = "fleet"
    law = ""
    own = False
    """Whether the fault is in what happens before the snapshot, so that the model cannot be shared."""

    def __init__(self, folder: Path) -> None:
        super().__init__(adapters=[str(folder / self.fleet / "*")])

    def base_model(self) -> Any:
        return micro(groups=2)

    def inputs(self) -> dict[str, Any]:
        return {"tokens": TOKENS}

    def layers(self, model: Any) -> dict[str, LoraLayer]:
        """The LoRA layers of the swapped adapter."""
        return lora_layers(model, self.adapter_name)

    def slots(self, model: Any) -> Iterator[Slot]:
        """The tensors of the swapped adapter."""
        for layer in self.layers(model).values():
            yield from slots(layer, self.adapter_name)

    def kept(self, model: Any) -> list[torch.Tensor]:
        """Copies of these tensors, in the order of ``slots``."""
        return [slot.tensor.detach().clone() for slot in self.slots(model)]


class Whole(Engine):
    """The same on a model of which a head and token rows are trained as well."""

    fleet = "wholes"

    def base_model(self) -> Any:
        return seeded(Head)
