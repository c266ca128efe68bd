"""Engines that go wrong with what is no rank: biases, magnitudes, saved modules and token rows."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hotswap.engine.layout.auxiliary import auxiliary_slots
from hotswap.engine.layout.slots import Slot
from tests.mutants.registry import breaks
from tests.mutants.subject import Engine, Whole


class Mends(Engine):
    """A file that lacks something is completed, in a copy, before it is swapped in."""

    def mend(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        raise NotImplementedError

    def swap(self, model: Any, adapter: Path | None) -> None:
        if adapter is None:
            return super().swap(model, None)
        try:
            tensors = load_file(adapter / "adapter_model.safetensors")
            config = json.loads((adapter / "adapter_config.json").read_text())
            self.mend(tensors, config)
        except Exception:  # what cannot be read is refused by the swap
            return super().swap(model, adapter)
        with tempfile.TemporaryDirectory() as folder:
            save_file(tensors, Path(folder, "adapter_model.safetensors"))
            Path(folder, "adapter_config.json").write_text(json.dumps(config))
            super().swap(model, Path(folder))
        return None


@breaks("swap-atomic", fleet="features")
class MissingBiasIsZero(Mends):
    """A bias of lora_B that a file lacks is taken to be zero."""

    def mend(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for key in [key for key in tensors if "lora_B.weight" in key and config["lora_bias"]]:
            bias = key.replace("weight", "bias")
            tensors[bias] = tensors.get(bias, torch.zeros(len(tensors[key])))


@breaks("swap-atomic", fleet="features")
class MissingMagnitudeIsOne(Mends):
    """A magnitude that a file lacks is taken to be one."""

    def mend(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for key in [key for key in tensors if "lora_B.weight" in key and config["use_dora"]]:
            magnitude = key.replace("lora_B.weight", "lora_magnitude_vector")
            tensors[magnitude] = tensors.get(magnitude, torch.ones(len(tensors[key])))


@breaks("swap-atomic", fleet="features")
class BiasNotANumber(Mends):
    """A bias that is not a number is taken to be zero."""

    def mend(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for key in [key for key in tensors if key.endswith("bias")]:
            tensors[key] = tensors[key].nan_to_num()


@breaks("swap-atomic")
class MissingRowsAreTheBase(Mends, Whole):
    """Token rows that the config names and the file lacks are the base model's."""

    def mend(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        if not any(key.endswith("tokens_delta") for key in tensors):
            config["trainable_token_indices"] = None


@breaks("swap-atomic")
class MissingHeadIsTheBase(Mends, Whole):
    """What a saved module lacks in a file is the base model's."""

    def mend(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name in config["modules_to_save"] or ():
            for key, value in self.base_model().get_submodule(name).state_dict().items():
                tensors.setdefault(f"base_model.model.{name}.{key}", value)


class Keeps(Whole):
    """Some of what was in place stays."""

    def kept(self, slot: Slot, then: Tensor) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def swap(self, model: Any, adapter: Path | None) -> None:
        wholes = auxiliary_slots(self.models(model)[0], self.adapter_name)
        then = [slot.tensor.detach().clone() for slot in wholes]
        super().swap(model, adapter)
        for slot, value in zip(wholes, then, strict=True):
            self.kept(slot, value)


@breaks("swap-equals-load")
class UnreadRowKept(Keeps):
    """A token that the inputs do not have keeps its row."""

    def kept(self, slot: Slot, then: Tensor) -> None:
        if slot.role == "tokens":
            slot.tensor[slot.rows.index(8)] = then[slot.rows.index(8)]


@breaks("swap-equals-load")
class RowsOfTheLastKept(Keeps):
    """An adapter without token rows keeps those of the one before."""

    def kept(self, slot: Slot, then: Tensor) -> None:
        if slot.role == "tokens" and torch.equal(slot.tensor, slot.default):  # type: ignore[arg-type]
            slot.tensor.copy_(then)


@breaks("swap-equals-load")
class HeadOfTheLastKept(Keeps):
    """An adapter without a head of its own keeps the one before."""

    def kept(self, slot: Slot, then: Tensor) -> None:
        if slot.role == "saved" and torch.equal(slot.tensor, slot.default):  # type: ignore[arg-type]
            slot.tensor.copy_(then)


@breaks("swap-equals-load")
class BuffersOfTheHeadKept(Keeps):
    """Buffers of saved modules are not swapped."""

    def kept(self, slot: Slot, then: Tensor) -> None:
        if "running" in slot.key:
            slot.tensor.copy_(then)


@breaks("swap-isolated")
class HeadWrittenTwice(Whole):
    """A head is written into the base model's own as well."""

    @torch.no_grad()
    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        head = self.models(model)[0].base_model.model.head
        head.original_module.weight.copy_(head.modules_to_save[self.adapter_name].weight)


@breaks("swap-in-place")
class HeadReplaced(Whole):
    """A head is replaced through .data."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        weight = self.models(model)[0].base_model.model.head.modules_to_save.default.weight
        weight.data = weight.data.clone()


@breaks("knobs-follow")
class SavesTheBaseHead(Whole):
    """The head of the base model is saved."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        key = "base_model.model.head.weight"
        if key in tensors:
            tensors[key] = self.base_model().head.weight.detach().clone()
            save_file(tensors, path, metadata={"format": "pt"})
