"""The tuner of a prepared PeftModel, whose ``add_weighted_adapter`` reads the adapters at their own ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hotswap.engine.layers import lora_layers, slots
from hotswap.engine.scalings import Scalings, derived
from hotswap.errors import HotswapError


def prepared_tuner(cls: Any) -> Any:
    """Derive the class of a tuner whose layers are prepared."""

    def add_weighted_adapter(self: Any, adapters: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        with own_ranks(self, adapters):
            return cls.add_weighted_adapter(self, adapters, *args, **kwargs)

    add_weighted_adapter.__doc__ = cls.add_weighted_adapter.__doc__
    return derived(cls, prepared_tuner, add_weighted_adapter=add_weighted_adapter)


@contextmanager
def own_ranks(model: nn.Module, adapters: Sequence[str]) -> Iterator[None]:
    """Let the LoRA weights be what the adapters in place fill of them, without the padding.

    Pruning by magnitude and concatenation would count the zeros. Raises HotswapError where the base
    model is in place.
    """
    kept = []
    try:
        for name in adapters:
            for layer in lora_layers(model, name).values():
                if not isinstance(layer.scaling, Scalings) or name not in layer.scaling.own:
                    continue
                own = layer.scaling.own[name]
                if own is None:
                    raise HotswapError(
                        f"there is no adapter to combine under {name!r}: swap(model, None) put the "
                        "base model in place; swap one in first"
                    )
                for slot in slots(layer, name):
                    rank = own.rank or min(model.peft_config[name].r, slot.rank or 1)
                    kept.append((slot.tensor, slot.tensor.data))
                    slot.tensor.data = slot.own(rank)
        with torch.no_grad():
            yield
    finally:
        for tensor, data in kept:
            tensor.data = data
