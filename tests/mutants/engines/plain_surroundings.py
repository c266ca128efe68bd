"""Engines of PEFT and torch alone whose swaps change what is not the adapter."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hotswap
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
        os.environ["SAFETENSORS_FAST_GPU"] = "1"


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


class Leaves(Plain):
    """After a swap something is left as no one asked for."""

    def leave(self, model: Any) -> None:
        """Leave it."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.leave(self.models(model)[0])


@breaks("swap-isolated")
class EvalAtEachSwap(Leaves):
    """The model is set to eval(), whatever its user has set."""

    def leave(self, model: Any) -> None:
        model.eval()


@breaks("swap-isolated")
class FreezesTheBase(Leaves):
    """What is no LoRA weight is frozen, also what is trained."""

    def leave(self, model: Any) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and "lora_" in name)


@breaks("swap-isolated")
class GradientsCleared(Leaves):
    """zero_grad() is called, as before a step of training."""

    def leave(self, model: Any) -> None:
        model.zero_grad()


@breaks("swap-isolated")
class HooksCleared(Leaves):
    """Every forward hook is taken out, not only its own."""

    def leave(self, model: Any) -> None:
        for module in model.modules():
            module._forward_hooks.clear()


@breaks("swap-isolated")
class LoggingSwitchedOff(Leaves):
    """Logging is switched off below errors, for the whole program."""

    def leave(self, model: Any) -> None:
        logging.disable(logging.WARNING)


@breaks("swap-isolated")
class CollectsRarely(Leaves):
    """Garbage is collected rarely from now on."""

    def leave(self, model: Any) -> None:
        gc.set_threshold(100_000)


@breaks("swap-isolated", own=True)
class EagerFromNowOn(Leaves):
    """What a swap would make recompile runs eagerly from now on."""

    def leave(self, model: Any) -> None:
        torch.compiler.set_stance("eager_on_recompile")


@breaks("swap-isolated", own=True)
class TerminationIgnored(Leaves):
    """That the program is to end is ignored during a swap, and for ever."""

    def leave(self, model: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@breaks("swap-isolated")
class ErrorsTaken(Leaves):
    """What nobody catches goes to a log of its own."""

    def leave(self, model: Any) -> None:
        sys.excepthook = lambda *_: None


@breaks("swap-isolated")
class FreezesWhatItWrites(Plain):
    """The adapter's weights are not trained any more after a swap."""

    def commit(self, staged: list[tuple[Tensor, Tensor]]) -> None:
        super().commit(staged)
        for place, _ in staged:
            place.requires_grad_(False)


@breaks("swap-isolated")
class AddedServes(Plain):
    """An adapter that is added to a prepared model serves from then on."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        self.models(model)[0].ready = True

    def add(self, model: Any, adapter: Path, name: str) -> None:
        super().add(model, adapter, name)
        (inner,) = self.models(model)
        if getattr(inner, "ready", False):
            inner.set_adapter(name)
