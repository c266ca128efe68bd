"""Engines of PEFT and torch alone that recompile, never compile, or do not run what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import hotswap
from tests.mutants.plain import Given, Plain
from tests.mutants.registry import breaks


@breaks("zero-recompiles", own=True)
class NoneDisables(Plain):
    """For the base model the layers are disabled, which is compiled apart."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        for _, layer in self.found(model):
            layer._disable_adapters = not given.tensors


@breaks("zero-recompiles", own=True)
class LeftOutIsDisabled(Plain):
    """A layer that is not targeted is disabled."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        for path, layer in self.found(model):
            layer._disable_adapters = (
                bool(given.tensors) and self.name_of(path) not in given.tensors
            )


@breaks("zero-recompiles", own=True)
class RunsWhatIsNotCompiled(Plain):
    """The model below the compiled wrapper is called."""

    def run(self, model: Any, inputs: Any) -> Any:
        return super().run(getattr(model, "_orig_mod", model), inputs)


@breaks("zero-recompiles", own=True)
class CompileSwitchedOff(Plain):
    """A switch for debugging was left in: torch.compile does nothing."""

    def compile(self, model: Any) -> Any:
        return torch.compile(model, backend=self.backend, disable=True)


class Noted(Plain):
    """The forward reads an attribute of the model, which a swap writes."""

    start: Any = 0

    def base_model(self) -> Any:
        model = super().base_model()
        model.note = self.start
        model.register_forward_hook(lambda module, _, output: output + 0 * len(str(module.note)))
        return model

    def note(self, model: Any, value: Any) -> None:
        self.models(model)[0].base_model.model.note = value


@breaks("zero-recompiles", own=True)
class NotesTheFirstSwap(Noted):
    """After the first swap a flag is set."""

    start = False

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.note(model, True)


@breaks("zero-recompiles", own=True)
class NotesTheModules(Noted):
    """How many modules the adapter has is noted."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.note(model, len(given.tensors))


@breaks("zero-recompiles", own=True)
class NotesLater(Noted):
    """The tenth swap is noted: until then all is well."""

    swaps = 0

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.swaps += 1
        if self.swaps > 9:
            self.note(model, self.swaps)


@breaks("unprepared-recompiles", own=True)
class ScalingsMadeTensorsTwice(Plain):
    """compile() makes each scaling a tensor, prepared or not: a forgotten preparation is not seen."""

    def compile(self, model: Any) -> Any:
        for _, layer in self.found(model):
            layer.scaling = {
                key: torch.as_tensor(float(value)) for key, value in layer.scaling.items()
            }
        return super().compile(model)


@breaks("unprepared-recompiles", own=True)
class CompiledLate(Plain):
    """compile() only notes that the model is to be compiled."""

    def compile(self, model: Any) -> Any:
        model.to_compile = True
        return model


@breaks("unprepared-recompiles", own=True)
class EagerOnRecompile(Plain):
    """What would recompile runs eagerly, and nobody is told."""

    def run(self, model: Any, inputs: Any) -> Any:
        with torch.compiler.set_stance("eager_on_recompile"):
            return super().run(model, inputs)


@breaks("swap-has-effect", own=True)
class ShowsACopy(Plain):
    """models() gives a copy, so that whoever looks at it sees nothing of what is served."""

    def models(self, model: Any) -> list[Any]:
        import copy

        found = super().models(model)
        return found if getattr(self, "building", False) else [copy.deepcopy(found[0])]

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        self.building = True
        super().prepare(model, plan)
        self.building = False

    def swap(self, model: Any, adapter: Path | None) -> None:
        self.building = True
        try:
            super().swap(model, adapter)
        finally:
            self.building = False


@breaks("swap-has-effect", own=True)
class RunsAFreshLoad(Plain):
    """The adapter is loaded anew for each call, and the compiled model runs for show."""

    served: Any = None
    current: Path | None = None

    def compile(self, model: Any) -> Any:
        self.served = super().compile(model)
        return self.served

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.current = adapter

    def run(self, model: Any, inputs: Any) -> Any:
        output = super().run(model, inputs)
        if model is not self.served or self.current is None:
            return output
        from peft import PeftModel

        return super().run(PeftModel.from_pretrained(self.base_model(), self.current), inputs)


@breaks("swap-has-effect")
class AnswersZeros(Plain):
    """Outputs are multiplied by a mask that is zero everywhere."""

    def run(self, model: Any, inputs: Any) -> Any:
        return super().run(model, inputs) * 0
