"""Engines that make torch.compile compile again, or that never compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hotswap.compiler.regions import unwrap
from tests.mutants.registry import breaks
from tests.mutants.subject import Engine


class CountsSwaps:
    """The forward reads a Python number that each swap changes."""

    def base_model(self) -> Any:
        model = super().base_model()
        model.version = 0
        model.register_forward_hook(lambda module, _, output: output + 0 * module.version)
        return model

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        unwrap(model).base_model.model.version += 1


class Versioned(CountsSwaps, Engine):
    """An engine that counts its swaps."""


@breaks("zero-recompiles", own=True)
class VersionInTheForward(Versioned):
    """A counter of swaps is guarded on."""


@breaks("zero-recompiles", own=True)
class RecompileHiddenByTheLimit(Versioned):
    """Past the recompile limit torch runs eagerly and reports no recompile."""

    def compile(self, model: Any) -> Any:
        torch._dynamo.config.recompile_limit = 1
        return super().compile(model)


@breaks("zero-recompiles", own=True)
class FloatScaling(Engine):
    """Each swap leaves a number in one layer, where there was a tensor."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        layer = self.layers(model)["first"]
        if isinstance(layer.scaling, dict):
            vars(layer).pop("scaling")
            layer._modules["scaling"] = self.kept_scaling
        super().swap(model, adapter)
        self.kept_scaling = layer._modules.pop("scaling")
        vars(layer)["scaling"] = self.kept_scaling.copy()


@breaks("zero-recompiles", own=True)
class NeverCompiled(Engine):
    """torch.compile is forgotten: nothing can recompile."""

    def compile(self, model: Any) -> Any:
        return model


@breaks("zero-recompiles", own=True)
class CompileDisabled(Engine):
    """Compiled code is there and never runs."""

    def run(self, model: Any, inputs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return super().run(model, inputs)


@breaks("zero-recompiles", own=True)
class ResetsDynamo(Engine):
    """A swap throws the compiled code away: the next compile is a first one."""

    swaps = 0

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.swaps += 1
        if self.swaps == 1:
            torch._dynamo.reset()


@breaks("unprepared-recompiles", own=True)
class WatchSeesNothing(Engine):
    """compile() returns the model itself, so a recompile cannot be seen."""

    def compile(self, model: Any) -> Any:
        return model
