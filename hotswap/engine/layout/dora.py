"""DoRA in a prepared layer: the magnitude that computes plain LoRA, added and recomputed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import (
    Embedding,
    LoraLayer,
    LoraVariant,
    MultiheadAttention,
    ParamWrapper,
    _ConvNd,
)
from torch import Tensor, nn
from torch.nn.functional import linear

from hotswap.compiler.shards import local_of
from hotswap.engine.layout.modes import in_inference_mode, without_autocast
from hotswap.engine.layout.sharding import NO_NORM
from hotswap.engine.layout.slots import slots
from hotswap.engine.layout.unsupported import Why


def _dora_of(layer: LoraLayer) -> LoraVariant | None:
    """PEFT's DoRA for a layer of this kind, or None where it has none."""
    if isinstance(layer, MultiheadAttention | ParamWrapper):
        return None  # their constructors refuse it, their table of variants does not
    try:
        variant: LoraVariant | None = layer.resolve_lora_variant(config=LoraConfig(use_dora=True))
    except ValueError:
        return None
    return variant


def why_no_dora(layer: LoraLayer) -> Why | None:
    """Say why a layer cannot be given DoRA, or None when it can."""
    if _dora_of(layer) is None:
        return Why(f"PEFT has no DoRA for its {type(layer).__name__}")
    return why_misread(layer) or why_no_norm(layer)


def why_no_norm(layer: LoraLayer) -> Why | None:
    """Say why the norm of a layer's base weight cannot be had, or None when it can."""
    weight = layer.get_base_layer()._parameters.get("weight")
    if weight is not None and weight.is_meta:
        text = "DoRA needs the norm of the base weight, which is on the meta device (offloaded)"
        return Why(text, "load the base model without offloading")
    return None if weight is None or local_of(weight) is weight else NO_NORM


def why_misread(layer: LoraLayer) -> Why | None:
    """Say why PEFT's DoRA takes the base weight for another one, or None when it does not.

    On a CPU with AVX512-BF16 the first forward of a 4-bit layer packs its weight anew
    (bitsandbytes/nn/modules.py), and PEFT dequantises it as if it were not packed.
    """
    base = layer.get_base_layer()
    if not getattr(base, "support_avx512bf16_for_cpu", False) or base.weight.device.type != "cpu":
        return None
    kind = type(layer).__name__
    text = f"PEFT's DoRA misreads the weight that its {kind} packs for this CPU"
    return Why(text, "serve it on a GPU")


def add_magnitude(layer: LoraLayer, adapter_name: str) -> None:
    """Turn a layer's adapter into a DoRA one, in place; its output stays as it is.

    The magnitude is the norm of the adapted weight, with which DoRA computes what LoRA does
    (arXiv:2402.09353, equation 5).
    """
    variant: Any = _dora_of(layer)
    with torch.no_grad(), in_inference_mode(slots(layer, adapter_name)[0].tensor.is_inference()):
        variant.init(layer, adapter_name=adapter_name, config=None)
    layer.lora_variant[adapter_name] = variant
    layer.use_dora[adapter_name] = True
    found = {slot.key: slot.tensor.detach() for slot in slots(layer, adapter_name)}
    magnitude = layer.lora_magnitude_vector[adapter_name].weight
    if magnitude.is_meta:
        return  # which is refused then
    magnitude.data = norm_of(layer, adapter_name, found, layer.scaling[adapter_name])
    magnitude.requires_grad_(slots(layer, adapter_name)[0].tensor.requires_grad)


@torch.no_grad()
def norm_of(
    layer: LoraLayer, adapter_name: str, tensors: Mapping[str, Tensor], scaling: float | Tensor
) -> Tensor:
    """The magnitude that makes DoRA compute what LoRA does: the norm of W + scaling * B @ A, per output.

    It is what the forward of PEFT's DoRA layers (peft/tuners/lora/dora.py) divides by, computed in the
    same steps and dtypes from the same tensors, so that the quotient is exactly 1.
    """
    # PEFT makes a Parameter of the weight, which an inference tensor can only be in that mode
    own = slots(layer, adapter_name)[0].tensor
    with in_inference_mode(own.is_inference()), without_autocast(own.device):
        weight = _base_weight(layer.get_base_layer())
        if isinstance(layer, Embedding):
            delta = (tensors["lora_embedding_A"].T @ tensors["lora_embedding_B"].T).T
        else:
            a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
            if isinstance(layer, _ConvNd):
                rank = a.shape[0]
                delta = (b.reshape(-1, rank) @ a.reshape(rank, -1)).reshape(weight.shape)
            else:
                weight = weight.to(a.dtype)
                eye = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
                delta = linear(linear(eye, a), b, tensors.get("lora_B.bias")).T
        norm = layer.lora_magnitude_vector[adapter_name].get_weight_norm(weight, delta, scaling)
    return norm.detach()  # type: ignore[no-any-return]


def base_mark(layer: LoraLayer) -> tuple[int, int] | None:
    """What changes when the base weight does: address and counted writes; None where nobody counts."""
    weight = layer.get_base_layer()._parameters.get("weight")
    if weight is None or weight.is_inference():
        return None
    return weight.data_ptr(), weight._version


def _base_weight(base: nn.Module) -> Tensor:
    """The weight as a plain tensor, if need be dequantised."""
    from peft.utils.integrations import dequantize_module_weight

    own = base._parameters.get("weight")
    weight: Tensor = dequantize_module_weight(base).detach()
    if own is not None:
        base._parameters["weight"] = own  # PEFT leaves a copy of an 8-bit weight in its place
    return weight
