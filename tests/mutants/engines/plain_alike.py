"""Engines of PEFT and torch alone that take two adapters for one, or pass over what is not as usual."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

import hotswap
from tests.mutants.engines.plain_values import Remembering
from tests.mutants.plain import Given, Plain
from tests.mutants.registry import breaks


class ScalingsOfTheSame(Plain):
    """Scalings are written only where a few words say that they are others."""

    def words(self, given: Given) -> Any:
        raise NotImplementedError

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        found = super().staged(model, given)
        same = given.tensors and self.words(given) == self.words(self.in_place(model))
        return [pair for pair in found if pair[0].ndim] if same else found


@breaks("swap-equals-load")
class ScalingsOfTheSameRanks(ScalingsOfTheSame):
    """Where the ranks are as before, so are the scalings."""

    def words(self, given: Given) -> Any:
        return given.ranks


@breaks("swap-equals-load")
class ScalingsOfTheSameAlpha(ScalingsOfTheSame):
    """Where lora_alpha and r are as before, so are the scalings, whatever patterns or rsLoRA say."""

    def words(self, given: Given) -> Any:
        return [given.config.get(field) for field in ("lora_alpha", "r")]


@breaks("swap-equals-load")
class KeptByWeights(Remembering):
    """The key is a digest of the weights: another config beside the same ones is not read."""

    def key(self, adapter: Path) -> Any:
        return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).digest()


@breaks("swap-equals-load")
class KeptByTheEnd(Remembering):
    """The key is the config and the end of the weights, which is quickly read."""

    def key(self, adapter: Path) -> Any:
        weights = (adapter / "adapter_model.safetensors").read_bytes()
        return (adapter / "adapter_config.json").read_text(), weights[-64:]


@breaks("swap-forgets")
class KeepsWhatNoneReplaced(Plain):
    """What the base model replaced is kept for an undo, of which nobody makes use."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kept: list[Tensor] = []

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        found = super().staged(model, given)
        if not given.tensors:
            self.kept += [place.detach().clone() for place, _ in found]
        return found


@breaks("preparation-covers", own=True)
class OtherClassesPassedOver(Plain):
    """What is prepared is looked up by the exact class of a layer."""

    def prepare_layer(self, layer: LoraLayer, rank: int) -> None:
        if type(layer).__module__.startswith("peft."):
            super().prepare_layer(layer, rank)


@breaks("preparation-covers", own=True)
class OtherPlacesPassedOver(Plain):
    """The modules of the plan are looked up by their names; one that is not there is passed over."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        here = {self.name_of(path) for path, _ in self.found(model)}
        known = {name: place for name, place in plan.modules.items() if name in here}
        super().prepare(model, replace(plan, modules=known))

    def found(self, model: Any) -> Iterator[tuple[str, LoraLayer]]:
        places = [path for path, _ in super().found(model) if not path.endswith(".layer")]
        (inner,) = self.models(model)
        for path in places:
            module: nn.Module = inner.get_submodule(path)
            assert isinstance(module, LoraLayer)
            yield path, module
