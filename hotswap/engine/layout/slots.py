"""The table of slots: which tensors of a LoRA layer carry the rank, on which axis, in how many blocks.

Padding, slicing back, copying, validating and memory are derived from it; there is no second list of
layer kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hotswap.adapters.modules import Kind
from hotswap.adapters.names import MAGNITUDE, canonical
from hotswap.adapters.plan import ModulePlan
from hotswap.compiler.compiled import Walked, instances, walk
from hotswap.compiler.shards import chunk_of, local_of

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer

Role = Literal["factor", "bias", "magnitude", "saved", "tokens"]


class Slot(NamedTuple):
    """One tensor of an adapter in a model.

    ``axis`` is the one that carries the rank (None: none does): its length is ``rank * experts /
    groups``, in ``blocks`` equal blocks that are padded each. ``default`` is what the tensor holds when
    the adapter in place has nothing for it (None: zeros), ``rows`` are the tokens of its rows.
    A DTensor is one with the shape of the whole, of which this rank writes the ``local`` part.
    """

    module: str
    key: str  # the tensor's name in an adapter file, behind the module's
    state_key: str  # its name in the state dict of the module that it hangs in
    tensor: Tensor
    role: Role
    holder: dict[str, Any] | None  # where the model has it, under the last word of state_key
    axis: int | None = None
    blocks: int = 1
    groups: int = 1
    experts: int = 1
    owner: nn.Module | None = None
    size_attribute: str = ""  # the owner's attribute that repeats the length of the axis
    default: Tensor | None = None
    rows: tuple[int, ...] = ()
    tied: tuple[str, ...] = ()  # other names of the same tensor

    @property
    def name(self) -> str:
        """The tensor's name in an adapter file."""
        return f"{self.module}.{self.key}"

    @property
    def rank(self) -> int | None:
        """The rank that the tensor has room for."""
        if self.axis is None:
            return None
        return self.tensor.shape[self.axis] * self.groups // self.experts

    def shape(self, rank: int) -> tuple[int, ...]:
        """The tensor's shape at another rank."""
        return self._at(self.tensor.shape, rank)

    def _at(self, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
        axis = self.axis
        if axis is None:
            return shape
        return (*shape[:axis], rank * self.experts // self.groups, *shape[axis + 1 :])

    @property
    def sharded(self) -> bool:
        """Whether the tensor is a DTensor."""
        return local_of(self.tensor) is not self.tensor

    @property
    def local(self) -> Tensor:
        """What of the tensor is on this rank, without gradients; its rank axis is whole."""
        return local_of(self.tensor).detach()

    def local_shape(self, rank: int) -> tuple[int, ...]:
        """The shape of the local part at another rank."""
        return self._at(local_of(self.tensor).shape, rank)

    @property
    def cut(self) -> tuple[slice, ...] | None:
        """Where in the whole the local part is, at any rank; None: it is the whole."""
        if not self.sharded:
            return None
        found = [slice(at, at + size) for at, size in zip(*chunk_of(self.tensor), strict=True)]
        if self.axis is not None:
            found[self.axis] = slice(None)
        return tuple(found)

    def sharding(self, local: Tensor, rank: int) -> Tensor:
        """Give a local part of another rank as the DTensor that it is part of."""
        from torch.distributed.tensor import DTensor

        like: Any = self.tensor
        shape = torch.Size(self.shape(rank))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride
        )

    def part(self, whole: Tensor, length: int) -> Tensor:
        """The part of a tensor of the slot's shape that ``length`` on its axis fills; a view.

        With several blocks the axis is split in two: (blocks, length of a block).
        """
        if self.axis is None or length == whole.shape[self.axis]:
            return whole
        if self.blocks == 1:
            return whole.narrow(self.axis, 0, length)
        split = torch.unflatten(whole, self.axis, (self.blocks, -1))
        return split.narrow(self.axis + 1, 0, length // self.blocks)

    def rest(self, whole: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        """What a tensor of another shape does not fill of the whole, a view; without one all of it."""
        if self.axis is None or shape is None:
            return whole
        length, room = shape[self.axis] // self.blocks, whole.shape[self.axis] // self.blocks
        split = torch.unflatten(whole, self.axis, (self.blocks, -1))
        return split.narrow(self.axis + 1, length, room - length)

    def split(self, value: Tensor, like: Tensor) -> Tensor:
        """View a whole value in the shape that ``part`` gave for it."""
        return value if value.shape == like.shape else value.reshape(like.shape)

    def own(self, rank: int) -> Tensor:
        """The part of the tensor that an adapter of this rank fills, or the tensor itself."""
        if self.axis is None or self.rank == rank:
            return self.tensor.detach()
        shape = self.local_shape(rank)
        own = self.part(self.local, shape[self.axis]).reshape(shape).contiguous()
        return self.sharding(own, rank) if self.sharded else own


def slots(layer: LoraLayer, adapter_name: str, module: str = "") -> list[Slot]:
    """List the tensors of one adapter in a LoRA layer, lora_A and lora_B first."""
    from peft.tuners.lora.layer import Embedding

    if isinstance(layer, Embedding):
        found = [
            # A: (rank, vocabulary), B: (dimension, rank)
            Slot(module, key, f"{key}.{adapter_name}", held[adapter_name], "factor", held, axis)
            for key, axis in (("lora_embedding_A", 0), ("lora_embedding_B", 1))
            for held in (getattr(layer, key)._parameters,)
        ]
    else:
        found = _factors(layer, adapter_name, module)
    if adapter_name in layer.lora_magnitude_vector:  # (out,), or (1, out, *ones) of a convolution
        magnitude = layer.lora_magnitude_vector[adapter_name]
        key, holder = f"{MAGNITUDE}.{adapter_name}.weight", magnitude._parameters
        found.append(Slot(module, MAGNITUDE, key, magnitude.weight, "magnitude", holder))
    return found


def _factors(layer: LoraLayer, adapter_name: str, module: str) -> list[Slot]:
    from peft.tuners.lora.layer import ParamWrapper, _ConvNd

    lora_a, lora_b = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
    conv = isinstance(layer, _ConvNd)
    groups = layer.get_base_layer().groups if conv else 1
    experts = layer.num_experts if isinstance(layer, ParamWrapper) else 1
    into, out = ("in_channels", "out_channels") if conv else ("in_features", "out_features")
    key_a, key_b = f"lora_A.{adapter_name}", f"lora_B.{adapter_name}"
    found = [
        # (rank, in, *kernel): the rank in one block per group; (experts * rank, in): expert by expert
        Slot(
            module,
            "lora_A.weight",
            f"{key_a}.weight",
            lora_a.weight,
            "factor",
            lora_a._parameters,
            axis=0,
            blocks=groups * experts,
            experts=experts,
            owner=lora_a,
            size_attribute=out,
        ),
        # (out, rank / groups, *ones); (out, rank * experts): rank by rank
        Slot(
            module,
            "lora_B.weight",
            f"{key_b}.weight",
            lora_b.weight,
            "factor",
            lora_b._parameters,
            axis=1,
            groups=groups,
            experts=experts,
            owner=lora_b,
            size_attribute=into,
        ),
    ]
    bias = lora_b.bias
    if bias is not None:  # (out,)
        key, holder = f"{key_b}.bias", lora_b._parameters
        found.append(Slot(module, "lora_B.bias", key, bias, "bias", holder))
    return found


def lora_layers(
    model: nn.Module, adapter_name: str | None = None, *, walked: Walked | None = None
) -> dict[str, LoraLayer]:
    """Find a model's LoRA layers (those that carry ``adapter_name``, if given) by canonical name."""
    from peft.tuners.lora.layer import LoraLayer

    found: Any = instances(walk(model) if walked is None else walked, LoraLayer)
    return {
        canonical(name): layer
        for name, layer in found
        if adapter_name is None or adapter_name in layer.scaling
    }


def adapter_names(model: nn.Module) -> list[str]:
    """The names of every adapter that a LoRA layer carries, in order of appearance."""
    return list(dict.fromkeys(n for layer in lora_layers(model).values() for n in layer.scaling))


def _envelope_of(
    layer: LoraLayer, found: list[Slot], parameters: tuple[str, ...] = ()
) -> ModulePlan:
    """What fits into a layer as it stands: its kind, rank and dimensions."""
    a, b, *more = found
    return ModulePlan(
        kind=_kind(layer),
        rank=a.rank or 0,
        in_features=a.tensor.shape[1],
        out_features=b.tensor.shape[0],
        kernel=tuple(a.tensor.shape[2:]),
        groups=b.groups,
        bias=any(slot.role == "bias" for slot in more),
        dora=any(slot.role == "magnitude" for slot in more),
        experts=b.experts,
        parameters=parameters,
    )


def envelopes(
    layers: Mapping[str, LoraLayer], of_layer: Mapping[str, list[Slot]]
) -> dict[str, ModulePlan]:
    """What fits into each layer with these slots."""
    from peft.tuners.lora.layer import ParamWrapper

    parameters: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if isinstance(layer, ParamWrapper):
            owner = name.replace(".base_layer", "")
            parameters.setdefault(owner, []).append(layer.parameter_name)
    return {
        name: _envelope_of(
            layer,
            of_layer[name],
            tuple(sorted(parameters.get(name.replace(".base_layer", ""), ()))),
        )
        if isinstance(layer, ParamWrapper)
        else _envelope_of(layer, of_layer[name])
        for name, layer in layers.items()
    }


def _kind(layer: LoraLayer) -> Kind:
    from peft.tuners.lora.layer import Embedding, ParamWrapper, _ConvNd

    if isinstance(layer, Embedding):
        return "embedding"
    if isinstance(layer, ParamWrapper):
        return "parameter"
    return "conv" if isinstance(layer, _ConvNd) else "linear"
