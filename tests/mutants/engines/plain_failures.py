"""Engines of PEFT and torch alone that accept what is broken, or leave a half when they fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from tests.mutants.plain import Given, Plain
from tests.mutants.registry import breaks


class ChecksSome(Plain):
    """Only some modules of a file are looked at."""

    def some(self, given: Given, known: set[str]) -> list[str]:
        raise NotImplementedError

    def check(self, model: Any, given: Given) -> None:
        known = {self.name_of(path) for path, _ in self.found(model)}
        some = {name: given.tensors[name] for name in self.some(given, known)}
        super().check(model, replace(given, tensors=some))


@breaks("swap-atomic")
class FirstModuleChecked(ChecksSome):
    """The first module of a file is looked at."""

    def some(self, given: Given, known: set[str]) -> list[str]:
        return [*given.tensors][:1]


@breaks("swap-atomic")
class LastModuleChecked(ChecksSome):
    """The last module of a file is looked at."""

    def some(self, given: Given, known: set[str]) -> list[str]:
        return [*given.tensors][-1:]


@breaks("swap-atomic")
class UnknownModulesPassedOver(ChecksSome):
    """A module that the model does not have is passed over."""

    def some(self, given: Given, known: set[str]) -> list[str]:
        return [name for name in given.tensors if name in known]


@breaks("swap-atomic")
class HalfModulesPassedOver(ChecksSome):
    """A module with one of its two tensors is passed over, and gets zeros for the other."""

    def some(self, given: Given, known: set[str]) -> list[str]:
        return [name for name, tensors in given.tensors.items() if len(tensors) == 2]


class ChecksSomeTensors(Plain):
    """Only one of the two tensors of a module is looked at."""

    looked_at = ""

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        if self.looked_at in name:
            super().check_tensor(layer, name, value, place, rank)


@breaks("swap-atomic")
class RowsChecked(ChecksSomeTensors):
    """lora_A is looked at."""

    looked_at = "_A"


@breaks("swap-atomic")
class ColumnsChecked(ChecksSomeTensors):
    """lora_B is looked at."""

    looked_at = "_B"


@breaks("swap-atomic")
class NotANumberAccepted(Plain):
    """Values are not looked at."""

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        super().check_tensor(layer, name, value.nan_to_num(), place, rank)


@breaks("swap-atomic")
class NothingIsUndone(Plain):
    """All is checked before, so nothing is undone: an interrupt leaves a part."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        given = self.read(adapter) if adapter is not None else Given({}, {}, {}, {})
        self.check(model, given)
        self.commit(self.staged(model, given))
        self.record(model, given)


@breaks("swap-atomic")
class OnlyErrorsAreUndone(Plain):
    """``except Exception``: an interrupt is none."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        given = self.read(adapter) if adapter is not None else Given({}, {}, {}, {})
        self.check(model, given)
        staged = self.staged(model, given)
        old = [(tensor, tensor.detach().clone()) for tensor, _ in staged]
        try:
            self.commit(staged)
        except Exception:
            self.commit(old)
            raise
        self.record(model, given)


@breaks("swap-atomic")
class UndoesTheWeights(Plain):
    """What is undone are the weights; the scalings are those of the adapter that failed."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        given = self.read(adapter) if adapter is not None else Given({}, {}, {}, {})
        for path, layer in self.found(model):
            if (scaling := given.scalings.get(self.name_of(path))) is not None:
                layer.scaling[self.adapter_name].fill_(scaling)
        super().swap(model, adapter)


@breaks("swap-atomic")
class RecordsFirst(Plain):
    """The config is that of the new adapter before the new adapter is looked at."""

    def check(self, model: Any, given: Given) -> None:
        self.record(model, given)
        super().check(model, given)


@breaks("swap-atomic")
class DisabledWhileItWrites(Plain):
    """The layers are disabled during a swap, and after one that is refused."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        layers = [layer for _, layer in self.found(model)]
        for layer in layers:
            layer._disable_adapters = True
        super().swap(model, adapter)
        for layer in layers:
            layer._disable_adapters = False


@breaks("swap-atomic")
class TrainableWhileItWrites(Plain):
    """The same with requires_grad."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        _, layer = next(self.found(model))
        tensors = self.parts(layer, self.adapter_name).values()
        for tensor in tensors:
            tensor.requires_grad_(True)
        super().swap(model, adapter)
        for tensor in tensors:
            tensor.requires_grad_(False)


@breaks("swap-atomic")
class SwitchedOffMeanwhile(Plain):
    """The scalings are zero while tensors are copied, which an error brings back and an interrupt not."""

    def commit(self, staged: list[tuple[Tensor, Tensor]]) -> None:
        with torch.no_grad():
            for place, _ in staged:
                if place.ndim == 0:
                    place.zero_()
        super().commit(staged)

    def swap(self, model: Any, adapter: Path | None) -> None:
        given = self.read(adapter) if adapter is not None else Given({}, {}, {}, {})
        self.check(model, given)
        self.commit(self.staged(model, given))
        self.record(model, given)


class AtARefusal(Plain):
    """Something is left behind when an adapter is refused."""

    def refused(self, model: Any, given: Given) -> None:
        raise NotImplementedError

    def check(self, model: Any, given: Given) -> None:
        try:
            super().check(model, given)
        except ValueError:
            self.refused(model, given)
            raise


@breaks("swap-atomic")
class NoneIsActive(AtARefusal):
    """No adapter is the active one of PEFT's model after a refusal."""

    def refused(self, model: Any, given: Given) -> None:
        self.models(model)[0].base_model.active_adapter = []


@breaks("swap-atomic")
class GradModeAfterARefusal(AtARefusal):
    """Gradients are off after a refusal."""

    def refused(self, model: Any, given: Given) -> None:
        torch.set_grad_enabled(False)


@breaks("swap-atomic")
class NotesTheRefused(AtARefusal):
    """What the knobs speak of is noted before it is checked."""

    def refused(self, model: Any, given: Given) -> None:
        self.models(model)[0].in_place = given


@breaks("swap-atomic")
class VocabularyCut(Plain):
    """An embedding of another vocabulary is cut to the model's."""

    def read(self, adapter: Path) -> Given:
        given = super().read(adapter)
        for parts in given.tensors.values():
            if "lora_embedding_A" in parts:
                parts["lora_embedding_A"] = parts["lora_embedding_A"][:, :11]
        return given


@breaks("swap-atomic", own=True)
class UndoesToTheFirst(Plain):
    """What is brought back after a failure is the adapter that was loaded, not the one before."""

    loaded: Path | None = None

    def load(self, base: Any, adapter: Path) -> Any:
        self.loaded = adapter
        return super().load(base, adapter)

    def swap(self, model: Any, adapter: Path | None) -> None:
        assert self.loaded is not None
        given = self.read(adapter) if adapter is not None else Given({}, {}, {}, {})
        self.check(model, given)
        staged, old = self.staged(model, given), self.staged(model, self.read(self.loaded))
        try:
            self.commit(staged)
        except BaseException:
            self.commit(old)
            raise
        self.record(model, given)


@breaks("swap-atomic")
class FiniteInTheFile(Plain):
    """Values are looked at before they get the model's dtype, in which they may be infinite."""

    def finite(self, value: Tensor, place: Tensor) -> bool:
        return bool(value.isfinite().all())


@breaks("swap-atomic")
class InfinityAccepted(Plain):
    """What is refused is what is not a number, and infinity is one."""

    def finite(self, value: Tensor, place: Tensor) -> bool:
        return not value.to(place.dtype).isnan().any()


@breaks("swap-atomic")
class KeptBeforeItIsMade(Plain):
    """An image is kept under its adapter before it is filled, and an interrupt leaves it empty."""

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        (inner,) = self.models(model)
        images = vars(inner).setdefault("images", {})
        key = str({name: [t.sum() for t in each.values()] for name, each in given.tensors.items()})
        if (key, str(given.scalings)) not in images:
            image = images[key, str(given.scalings)] = []
            image += super().staged(model, given)
        return list(images[key, str(given.scalings)])


@breaks("swap-atomic")
class NotesWhatItGathers(Plain):
    """What knobs speak of is noted when the new values are gathered, and an undo brings back tensors only."""

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        found = super().staged(model, given)
        self.models(model)[0].in_place = given
        return found
