"""Engines that put other values in place than a fresh load has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hotswap.adapters.spec import AdapterSpec
from hotswap.engine.layout.slots import slots
from tests.mutants.registry import breaks, scale_all
from tests.mutants.subject import Engine


@breaks("swap-equals-load")
class AlphaOverTargetRank(Engine):
    """The scaling divides by the rank after padding."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        scale_all(self, model, lambda layer, name: layer.lora_alpha[name] / 8)


@breaks("swap-equals-load")
class AlphaKept(Engine):
    """Weights are swapped, the scaling stays that of the first adapter."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = {key: float(la.scaling["default"]) for key, la in self.layers(model).items()}
        super().swap(model, adapter)
        for key, layer in self.layers(model).items():
            layer.scaling["default"] = old[key]


@breaks("swap-equals-load")
class RsLoraIgnored(Engine):
    """alpha / r where the adapter says alpha / sqrt(r)."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        scale_all(self, model, lambda layer, name: layer.lora_alpha[name] / layer.r[name])


@breaks("swap-equals-load")
class RankPatternIgnored(Engine):
    """The config's r is the rank of every module."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if adapter is not None and not AdapterSpec.read(adapter).config.get("use_rslora"):
            rank = AdapterSpec.read(adapter).config["r"]
            scale_all(self, model, lambda layer, name: layer.lora_alpha[name] / rank)


@breaks("swap-equals-load")
class AlphaPatternIgnored(Engine):
    """The config's lora_alpha is the alpha of every module."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if adapter is not None and not AdapterSpec.read(adapter).config.get("use_rslora"):
            alpha = AdapterSpec.read(adapter).config["lora_alpha"]
            scale_all(self, model, lambda layer, name: alpha / layer.r[name])


@breaks("swap-equals-load")
class SubsetNotZeroed(Engine):
    """Modules that the adapter does not target keep serving the last one."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        scales = {key: float(la.scaling["default"]) for key, la in self.layers(model).items()}
        super().swap(model, adapter)
        targets = AdapterSpec.read(adapter).modules if adapter is not None else {}
        for key, layer in self.layers(model).items():
            count = len(slots(layer, self.adapter_name))
            mine, old = old[:count], old[count:]
            if key not in targets:
                layer.scaling["default"] = scales[key]
                for slot, tensor in zip(slots(layer, self.adapter_name), mine, strict=True):
                    slot.tensor.data.copy_(tensor)


class Partial(Engine):
    """Some tensors are not swapped."""

    def left_out(self, key: str, module: str) -> bool:
        raise NotImplementedError

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        super().swap(model, adapter)
        found = [
            (module, slot)
            for module, layer in self.layers(model).items()
            for slot in slots(layer, self.adapter_name)
        ]
        for (module, slot), tensor in zip(found, old, strict=True):
            if self.left_out(slot.key, module):
                slot.tensor.data.copy_(tensor)


@breaks("swap-equals-load")
class OnlyLoraASwapped(Partial):
    """lora_B is forgotten."""

    def left_out(self, key: str, module: str) -> bool:
        return "B" in key


@breaks("swap-equals-load")
class OnlyLoraBSwapped(Partial):
    """lora_A is forgotten."""

    def left_out(self, key: str, module: str) -> bool:
        return "_A" in key


@breaks("swap-equals-load")
class EmbeddingSkipped(Partial):
    """Keys named lora_embedding_A do not match the pattern lora_A."""

    def left_out(self, key: str, module: str) -> bool:
        return "embedding" in key


@breaks("swap-equals-load")
class ConvolutionSkipped(Partial):
    """Only linear layers are swapped."""

    def left_out(self, key: str, module: str) -> bool:
        return module == "conv"


@breaks("swap-equals-load")
class LastLayerSkipped(Partial):
    """An off-by-one leaves out a layer."""

    def left_out(self, key: str, module: str) -> bool:
        return module == "second"


@breaks("swap-equals-load")
class WrongAxis(Engine):
    """lora_A of an embedding is read in reverse order of its rows, lora_B is not."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for slot in self.slots(model):
            if slot.key == "lora_embedding_A":
                slot.tensor.data.copy_(slot.tensor.detach().flip(0))


@breaks("swap-equals-load")
class GroupedConvolutionContiguous(Engine):
    """lora_A of a grouped convolution is copied in one block instead of one per group."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in self.layers(model).values():
            for slot in slots(layer, self.adapter_name):
                rank = layer.r[self.adapter_name]
                if slot.blocks > 1 and slot.rank != rank:
                    values = slot.own(rank)
                    slot.tensor.data.zero_()
                    slot.tensor.data[: len(values)] = values


@breaks("swap-equals-load")
class DtypeLeaks(Engine):
    """The weights go through bfloat16 on their way."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for slot in self.slots(model):
            slot.tensor.data.copy_(slot.tensor.detach().bfloat16())


@breaks("swap-equals-load")
class HalfScaling(Engine):
    """The scaling is kept in bfloat16, where 1 / 3 is 0.334."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        scale_all(self, model, lambda la, name: la.scaling[name].bfloat16().float() * 1.001)


@breaks("swap-equals-load")
class SwapsNothing(Engine):
    """The first adapter serves for ever."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        pass


@breaks("swap-equals-load")
class OneBehind(Engine):
    """A queue puts in place what was asked for before."""

    waiting: Path | None = None

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, self.waiting or adapter)
        self.waiting = adapter


@breaks("swap-equals-load")
class CachedByRank(Engine):
    """Two adapters of one alpha are taken for the same: the cache's key is too short."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        adapters = self.adapter_paths()
        super().swap(model, adapters[0] if adapter in adapters[1:2] else adapter)
