"""The table of slots: which tensors of a LoRA layer carry the rank, on which axis, in how many blocks.

Padding, slicing back, copying and validating are derived from it; there is no second list of layer kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import Embedding, LoraLayer, MultiheadAttention, ParamWrapper, _ConvNd
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from hotswap.adapters.plan import ModulePlan

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of a LoRA layer.

    ``axis`` is the one that carries the rank (None for a bias): its length is ``rank / divisor``, in
    ``blocks`` equal blocks that are padded each (the groups of a grouped convolution's ``lora_A``).
    """

    key: str  # the tensor's name in an adapter file, behind the module's
    state_key: str  # its name in the layer's state dict
    tensor: nn.Parameter
    axis: int | None
    blocks: int = 1
    divisor: int = 1
    owner: nn.Module | None = None
    size_attribute: str = ""  # the owner's attribute that repeats the length of the axis

    @property
    def rank(self) -> int | None:
        """The rank that the tensor has room for."""
        return None if self.axis is None else self.tensor.shape[self.axis] * self.divisor

    def shape(self, rank: int) -> tuple[int, ...]:
        """The tensor's shape at another rank."""
        shape = list(self.tensor.shape)
        if self.axis is not None:
            shape[self.axis] = rank // self.divisor
        return tuple(shape)

    def fill(self, destination: Tensor, source: Tensor) -> None:
        """Write ``source`` into ``destination``, block by block, and zero what is left over."""
        if self.axis is None:
            destination.copy_(source)
            return
        destination.zero_()
        length = source.shape[self.axis] // self.blocks
        _blocks(destination, self.axis, self.blocks).narrow(self.axis + 1, 0, length).copy_(
            _blocks(source, self.axis, self.blocks)
        )

    def own(self, rank: int) -> Tensor:
        """The part of the tensor that an adapter of this rank fills: the tensor itself or a copy."""
        if self.axis is None or self.rank == rank:
            return self.tensor.detach()
        length = rank // self.divisor // self.blocks
        blocks = _blocks(self.tensor.detach(), self.axis, self.blocks)
        own = blocks.narrow(self.axis + 1, 0, length).flatten(self.axis, self.axis + 1)
        return own.contiguous()


def _blocks(tensor: Tensor, axis: int, blocks: int) -> Tensor:
    """View an axis as two: (blocks, length of a block)."""
    return torch.unflatten(tensor, axis, (blocks, -1))


def slots(layer: LoraLayer, adapter_name: str) -> list[Slot]:
    """List the tensors of one adapter in a LoRA layer, lora_A first."""
    if isinstance(layer, Embedding):
        a, b = layer.lora_embedding_A[adapter_name], layer.lora_embedding_B[adapter_name]
        return [  # A: (rank, vocabulary), B: (dimension, rank)
            Slot("lora_embedding_A", f"lora_embedding_A.{adapter_name}", a, 0),
            Slot("lora_embedding_B", f"lora_embedding_B.{adapter_name}", b, 1),
        ]
    lora_a, lora_b = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
    conv = isinstance(layer, _ConvNd)
    groups = layer.get_base_layer().groups if conv else 1
    into, out = ("in_channels", "out_channels") if conv else ("in_features", "out_features")
    found = [
        # (rank, in, *kernel), the rank in one block per group
        Slot(
            "lora_A.weight",
            f"lora_A.{adapter_name}.weight",
            lora_a.weight,
            0,
            blocks=groups,
            owner=lora_a,
            size_attribute=out,
        ),
        # (out, rank / groups, *ones)
        Slot(
            "lora_B.weight",
            f"lora_B.{adapter_name}.weight",
            lora_b.weight,
            1,
            divisor=groups,
            owner=lora_b,
            size_attribute=into,
        ),
    ]
    if lora_b.bias is not None:  # (out,)
        found.append(Slot("lora_B.bias", f"lora_B.{adapter_name}.bias", lora_b.bias, None))
    return found


def why_unsupported(layer: LoraLayer, adapter_name: str) -> str | None:
    """Say why a layer cannot be prepared, or None when it can."""
    if isinstance(layer, ParamWrapper | MultiheadAttention):
        return f"PEFT's lora.{type(layer).__name__} cannot be prepared yet"
    if adapter_name in layer.lora_variant:
        return (
            f"{type(layer.lora_variant[adapter_name]).__name__} adds state that is not swapped yet"
        )
    if not isinstance(layer, Embedding):
        for part in (layer.lora_A[adapter_name], layer.lora_B[adapter_name]):
            if type(part) not in _PLAIN:
                return f"its LoRA weights are held by a {type(part).__name__}"
    for slot in slots(layer, adapter_name):
        if slot.tensor.device.type == "meta":
            return f"{slot.state_key} is on the meta device (offloaded): load the model without offloading"
        if slot.tensor.grad is not None:
            return f"{slot.state_key} has a .grad: call zero_grad(set_to_none=True) first"
    return None


def unsupported_wrappers(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """Name the modules that PEFT trains whole beside LoRA (heads, tokens) for this adapter."""
    return {
        canonical(name): f"{type(module).__name__} (modules_to_save or trainable tokens)"
        for name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper) and adapter_name in module._adapters
    }


def unwrap(model: nn.Module) -> nn.Module:
    """Strip ``torch.compile``'s wrapper."""
    inner = model.__dict__.get("_modules", {}).get("_orig_mod")
    return unwrap(inner) if inner is not None else model


def canonical(name: str) -> str:
    """A module's name as adapter files spell it: without ``_orig_mod`` and ``base_model.model.``."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    return ".".join(parts).removeprefix("base_model.model.")


def lora_layers(model: nn.Module, adapter_name: str | None = None) -> dict[str, LoraLayer]:
    """Find a model's LoRA layers (those that carry ``adapter_name``, if given) by canonical name."""
    return {
        canonical(name): module
        for name, module in unwrap(model).named_modules()
        if isinstance(module, LoraLayer)
        and (adapter_name is None or adapter_name in module.scaling)
    }


def adapter_names(model: nn.Module) -> list[str]:
    """The names of every adapter that a LoRA layer carries, in order of appearance."""
    return list(dict.fromkeys(n for layer in lora_layers(model).values() for n in layer.scaling))


def envelope_of(layer: LoraLayer, adapter_name: str) -> ModulePlan:
    """What fits into a layer as it stands: its kind, rank and dimensions."""
    a, b, *bias = slots(layer, adapter_name)
    kind = _kind(layer)
    return ModulePlan(
        kind=kind,
        rank=a.tensor.shape[0],
        in_features=a.tensor.shape[1],
        out_features=b.tensor.shape[0],
        kernel=tuple(a.tensor.shape[2:]),
        groups=b.divisor,
        bias=bool(bias),
    )


def _kind(layer: LoraLayer) -> str:
    if isinstance(layer, Embedding):
        return "embedding"
    return "conv" if isinstance(layer, _ConvNd) else "linear"


def all_slots(layers: dict[str, LoraLayer], adapter_name: str) -> Iterator[tuple[str, Slot]]:
    """Every slot of an adapter with the canonical name of its module."""
    for name, layer in layers.items():
        for slot in slots(layer, adapter_name):
            yield name, slot


def device_of(layer: LoraLayer, adapter_name: str) -> torch.device:
    """Where an adapter's weights of this layer are."""
    return slots(layer, adapter_name)[0].tensor.device
