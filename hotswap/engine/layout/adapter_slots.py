"""AdapterSlots: every slot that a model has under one adapter name, with the layers they are in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn

from hotswap.adapters.modules import TokenRows
from hotswap.adapters.plan import SavedTensor, SwapPlan
from hotswap.compiler.compiled import Walked
from hotswap.engine.layout.auxiliary import auxiliary_slots
from hotswap.engine.layout.slots import Slot, envelopes, lora_layers, slots
from hotswap.engine.layout.unsupported import refusal, why_not_known

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls torch's dtypes."""


@dataclass(frozen=True, slots=True)
class AdapterSlots:
    """The layers that carry an adapter, the slots of each, and those of what PEFT trains beside LoRA."""

    name: str
    layers: dict[str, LoraLayer]
    of_layer: dict[str, list[Slot]]
    auxiliary: list[Slot]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        name: str,
        *,
        walked: Walked | None = None,
        layers: dict[str, LoraLayer] | None = None,
    ) -> AdapterSlots:
        """Find it; ``layers`` are the model's LoRA layers, or those with the adapter, if known."""
        found = lora_layers(model, name, walked=walked) if layers is None else layers
        with_it = {module: layer for module, layer in found.items() if name in layer.scaling}
        strange = {m: why for m, layer in with_it.items() if (why := why_not_known(layer, name))}
        if strange:
            raise refusal(strange)
        of_layer = {module: slots(layer, name, module) for module, layer in with_it.items()}
        return cls(name, with_it, of_layer, auxiliary_slots(model, name, walked=walked))

    @property
    def slots(self) -> list[Slot]:
        """Every slot, those of a layer side by side."""
        return [*chain.from_iterable(self.of_layer.values()), *self.auxiliary]

    @property
    def envelope(self) -> SwapPlan:
        """What fits, as a plan."""
        saved, tokens = {}, {}
        for slot in self.auxiliary:
            dtype = DTYPES.get(slot.tensor.dtype, str(slot.tensor.dtype))
            if slot.role == "saved":
                saved[slot.name] = SavedTensor(tuple(slot.tensor.shape), dtype)
            else:
                tokens[slot.module] = TokenRows(slot.rows, slot.tensor.shape[-1], dtype)
        tied = {name: slot.name for slot in self.auxiliary for name in slot.tied}
        modules = envelopes(self.layers, self.of_layer)
        return SwapPlan(modules, saved=saved, tokens=tokens, tied=tied)
