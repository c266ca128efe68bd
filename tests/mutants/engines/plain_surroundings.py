"""Engines of PEFT and torch alone whose swaps change what is not the adapter."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from typing import Any

import numpy as np
import torch

from tests.mutants.plain import Given, Plain
from tests.mutants.registry import breaks


@breaks("swap-isolated", own=True)
class GradModeLeft(Plain):
    """Gradients are switched off for a swap, and for ever."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        torch.set_grad_enabled(False)


@breaks("swap-isolated", own=True)
class GradModeRight(Plain):
    """Gradients are switched on again after a swap, whether they were on before or not."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        torch.set_grad_enabled(True)


@breaks("swap-isolated")
class WarningsSilenced(Plain):
    """Warnings of the loader are silenced for the whole program."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        warnings.simplefilter("ignore", UserWarning)


@breaks("swap-isolated")
class LoggersSilenced(Plain):
    """The loggers of PEFT say errors only from now on."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        logging.getLogger("peft").setLevel(logging.ERROR)


@breaks("swap-isolated")
class PrecisionLowered(Plain):
    """Matrix products are made fast."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        torch.set_float32_matmul_precision("high")


@breaks("swap-isolated")
class ActivatesItself(Plain):
    """The adapter that is swapped becomes the active one."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        for _, layer in self.found(model):
            layer._active_adapter = [self.adapter_name]


@breaks("swap-isolated")
class OthersMadeTrainable(Plain):
    """Other adapters are made trainable."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        for name, parameter in self.models(model)[0].named_parameters():
            if "lora_" in name and f".{self.adapter_name}." not in name:
                parameter.requires_grad_(True)


@breaks("swap-isolated", own=True)
class CountsInABuffer(Plain):
    """A buffer of the base model counts the swaps."""

    def base_model(self) -> Any:
        model = super().base_model()
        model.register_buffer("swaps", torch.zeros(()))
        return model

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.models(model)[0].base_model.model.swaps.add_(1)


@breaks("swap-isolated")
class SeedsTorch(Plain):
    """A seed is set, so that each swap is the same."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        torch.manual_seed(0)


@breaks("swap-isolated")
class DrawsForThePadding(Plain):
    """What is padded is initialised at random first; what fills its place is not."""

    def padded(self, layer: Any, part: str, value: torch.Tensor, rank: int) -> torch.Tensor:
        wide = super().padded(layer, part, value, rank)
        if wide.shape != value.shape:
            torch.rand(1)
        return wide


@breaks("swap-isolated")
class DrawsFromNumpy(Plain):
    """A name for a log is drawn from numpy's random state."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        np.random.randint(9)


@breaks("swap-isolated")
class EnvironmentSet(Plain):
    """A variable of the environment is set, to the same value at each swap."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


@breaks("swap-isolated")
class GarbageLeft(Plain):
    """Collecting garbage is switched off for the time of a swap, and for ever."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        gc.disable()


@breaks("swap-isolated")
class HookLeftByNone(Plain):
    """A swap to the base model leaves a hook behind."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        if not given.tensors:
            self.models(model)[0].register_load_state_dict_post_hook(lambda *_: None)
