"""Engines of PEFT and torch alone that prepare too little, too much, or too late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer

import hotswap
from tests.mutants.plain import Plain
from tests.mutants.registry import breaks


@breaks("preparation-covers", own=True)
class FullLayersSkipped(Plain):
    """A layer that needs no padding keeps a number as its scaling."""

    def prepare_layer(self, layer: LoraLayer, rank: int) -> None:
        parts = self.parts(layer, self.adapter_name)
        if all(tensor.shape[0] != rank for part, tensor in parts.items() if "A" in part):
            super().prepare_layer(layer, rank)


@breaks("preparation-covers", own=True)
class ConvolutionsNotPadded(Plain):
    """A convolution keeps its rank."""

    def prepare_layer(self, layer: LoraLayer, rank: int) -> None:
        own = int(layer.r[self.adapter_name])
        super().prepare_layer(layer, own if self.groups(layer) > 1 else rank)


@breaks("preparation-preserves", own=True)
class OthersGetTheScaling(Plain):
    """Every adapter of a layer gets the scaling of the one that is prepared."""

    def prepare_layer(self, layer: LoraLayer, rank: int) -> None:
        super().prepare_layer(layer, rank)
        for name in layer.scaling:
            layer.scaling[name] = layer.scaling[self.adapter_name].clone()


@breaks("preparation-preserves", own=True)
class OthersPaddedWithOnes(Plain):
    """Other adapters are padded with ones."""

    def prepare_layer(self, layer: LoraLayer, rank: int) -> None:
        sizes = {id(t): t.shape for n in layer.scaling for t in self.parts(layer, n).values()}
        super().prepare_layer(layer, rank)
        for name in layer.scaling:
            for tensor in self.parts(layer, name).values() if name != self.adapter_name else ():
                if tensor.shape != sizes[id(tensor)]:
                    tensor.data[tensor.data == 0] = 1.0


@breaks("preparation-preserves", own=True)
class ScalingsInHalf(Plain):
    """Scalings are made tensors of float16, and converted back."""

    def prepare_layer(self, layer: LoraLayer, rank: int) -> None:
        super().prepare_layer(layer, rank)
        for name in layer.scaling:
            layer.scaling[name] = layer.scaling[name].half().float()


@breaks("preparation-preserves", own=True)
class RefusedAfterPadding(Plain):
    """An adapter without some modules is refused when its own are prepared already."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        for path, layer in self.found(model):
            self.prepare_layer(layer, plan.modules[self.name_of(path)].rank)
        super().prepare(model, plan)


@breaks("prepare-before-compile", own=True)
class CompiledSeenLate(Plain):
    """That the model is compiled is seen when it has been prepared."""

    def is_compiled(self, model: Any) -> bool:
        return False

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        if super().is_compiled(model):
            raise ValueError("the model is compiled already")


@breaks("prepare-before-compile", own=True)
class OnlyTheOutermost(Plain):
    """Whether a part of the model is compiled is not looked at."""

    def is_compiled(self, model: Any) -> bool:
        return hasattr(model, "_orig_mod") or model._compiled_call_impl is not None


@breaks("prepare-before-compile", own=True)
class CompiledForwardNotSeen(Plain):
    """A forward that was replaced by a compiled one is not seen."""

    def is_compiled(self, model: Any) -> bool:
        parts = [module._compiled_call_impl is not None for module in model.modules()]
        return hasattr(model, "_orig_mod") or any(parts)


@breaks("prepare-before-compile", own=True)
class CompiledBlockNotSeen(Plain):
    """Compiled is what was compiled in place, or as a whole: not a block that is its own wrapper."""

    def is_compiled(self, model: Any) -> bool:
        found = [model, *(layer for _, layer in self.found(model))]
        return hasattr(model, "_orig_mod") or any(
            module._compiled_call_impl is not None
            or hasattr(vars(module).get("forward"), "get_compiler_config")
            for module in found
        )

    def name_of(self, path: str) -> str:
        return super().name_of(path).replace("._orig_mod", "")


@breaks("preparation-idempotent", own=True)
class ScalingsMadeAnew(Plain):
    """Each preparation makes new tensors of the scalings."""

    def prepare_layer(self, layer: LoraLayer, rank: int) -> None:
        super().prepare_layer(layer, rank)
        for name in layer.scaling:
            layer.scaling[name] = layer.scaling[name].clone()


@breaks("preparation-idempotent", own=True)
class TrainableAtTheSecond(Plain):
    """A second preparation makes the adapter trainable, as PEFT's set_adapter() does."""

    def prepare_layer(self, layer: LoraLayer, rank: int) -> None:
        again = isinstance(layer.scaling[self.adapter_name], torch.Tensor)
        super().prepare_layer(layer, rank)
        for tensor in self.parts(layer, self.adapter_name).values():
            tensor.requires_grad_(again)


@breaks("preparation-preserves", own=True)
class RanksSeenOneByOne(Plain):
    """A plan that has no room for a module is seen when that module is padded, after the others."""

    def check_ranks(self, found: Mapping[str, Any], plan: hotswap.SwapPlan) -> None:
        return
