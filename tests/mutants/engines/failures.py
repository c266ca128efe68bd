"""Engines in which a failure leaves something behind."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hotswap.compiler.regions import unwrap
from tests.mutants.registry import breaks, scale_all
from tests.mutants.subject import Engine


class Failing(Engine):
    """Something is done when the adapter is refused."""

    def failed(self, model: Any) -> None:
        raise NotImplementedError

    def swap(self, model: Any, adapter: Path | None) -> None:
        try:
            super().swap(model, adapter)
        except Exception:
            self.failed(model)
            raise


@breaks("swap-atomic")
class HalfSwapped(Failing):
    """The tensors before the bad one have been written."""

    def failed(self, model: Any) -> None:
        next(self.slots(model)).tensor.data.add_(1.0)


@breaks("swap-atomic")
class ClearedOnError(Failing):
    """A refused adapter removes the one that was serving."""

    def failed(self, model: Any) -> None:
        for slot in self.slots(model):
            slot.tensor.data.zero_()


@breaks("swap-atomic")
class ScalingWrittenFirst(Failing):
    """The scaling is changed before the weights are looked at."""

    def failed(self, model: Any) -> None:
        scale_all(self, model, lambda *_: 0.5)


@breaks("swap-atomic")
class RecordsWrittenFirst(Failing):
    """The layer's rank is changed before the weights are looked at."""

    def failed(self, model: Any) -> None:
        states = self.layers(model)["first"].scaling.states
        known = states[self.adapter_name]
        states[self.adapter_name] = known._replace(rank=known.rank + 1)


@breaks("swap-atomic")
class ConfigWrittenFirst(Failing):
    """The config is changed before the weights are looked at."""

    def failed(self, model: Any) -> None:
        unwrap(model).peft_config[self.adapter_name].lora_alpha = 99


@breaks("swap-atomic")
class ErrorsSwallowed(Failing):
    """A bad adapter is logged and forgotten; the caller is not told."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        with contextlib.suppress(Exception):
            Engine.swap(self, model, adapter)


@breaks("swap-atomic")
class NotReadyAfterAnError(Failing):
    """A failure leaves a lock taken: no adapter is accepted any more."""

    broken = False

    def failed(self, model: Any) -> None:
        self.broken = True

    def swap(self, model: Any, adapter: Path | None) -> None:
        if self.broken:
            self.broken = False
            raise RuntimeError("busy")
        super().swap(model, adapter)
