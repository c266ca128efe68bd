"""swap: read, validate everything, stage, commit, then let ranks, alphas and configs follow."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from hotswap.adapters.fit import fits
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.plan import SwapPlan
from hotswap.adapters.spec import AdapterSpec
from hotswap.engine.layers import all_slots, canonical, envelope_of, lora_layers, unwrap
from hotswap.engine.scalings import Scalings
from hotswap.errors import (
    AdapterError,
    HotswapError,
    NoAdapterError,
    NotPreparedError,
    RankTooLargeError,
)
from hotswap.findings import Finding, has_code

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# config fields that describe the slot rather than the adapter in it; the forward of a PeftModel reads some
_SLOT_FIELDS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "revision"}
    | {"runtime_config", "task_type"}
)

_in_place: weakref.WeakKeyDictionary[nn.Module, dict[str, str | None]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What a swap did: the adapter in place now, a digest of its content, bytes written, seconds."""

    adapter: str | None
    digest: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Source:
    label: str | None
    spec: AdapterSpec
    tensors: dict[str, Tensor]
    config: LoraConfig | None


def swap(
    model: nn.Module,
    adapter: str | Path | Mapping[str, Tensor] | None,
    *,
    adapter_name: str = "default",
    config: LoraConfig | None = None,
) -> SwapReport:
    """Replace the weights of ``adapter_name`` in place, all or nothing.

    ``adapter`` is a PEFT folder, a state dict as ``get_peft_model_state_dict`` returns it (with
    ``config``), or None for the base model. Everything is validated and staged before the first write;
    a failing write is undone. No storage, shape, dtype or parameter object changes. A scale set by
    ``set_scale`` is reset to 1. The model may be a ``torch.compile`` wrapper.

    Raises AdapterError (RankTooLargeError for a rank above the prepared one), NoAdapterError or
    NotPreparedError; the model is then bit-identical to before.
    """
    start = time.perf_counter()
    model = unwrap(model)
    layers = _swappable(model, adapter_name)
    source = _read(adapter, config)
    if source is not None:
        plan = _envelope(layers, adapter_name)
        _refuse(fits(plan, source.spec))
    staged, digest = _stage(layers, adapter_name, source)
    scalings = {
        name: source.spec.modules[name].scaling
        if source is not None and name in source.spec.modules
        else 0.0
        for name in layers
    }
    with _undo(model, [slot for slot, _ in staged], layers, adapter_name):
        _commit(staged, layers, adapter_name, scalings)
        _follow(model, layers, adapter_name, source)
    label = source.label if source is not None else None
    _in_place.setdefault(model, {})[adapter_name] = label
    written = sum(value.numel() * value.element_size() for _, value in staged)
    return SwapReport(label, digest, written, time.perf_counter() - start)


def active(model: nn.Module, *, adapter_name: str = "default") -> str | None:
    """Name the adapter in place: the last one swapped in, None for the base model, else the slot's name."""
    model = unwrap(model)
    if not lora_layers(model, adapter_name):
        raise NoAdapterError(f"the model carries no adapter named {adapter_name!r}")
    return _in_place.get(model, {}).get(adapter_name, adapter_name)


def set_scale(model: nn.Module, scale: float, *, adapter_name: str = "default") -> None:
    """Multiply the adapter's own alpha / rank by ``scale``, in place and without a recompile."""
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale!r}; expected a finite number")
    layers = _swappable(unwrap(model), adapter_name)
    for layer in layers.values():
        rank = layer.r[adapter_name]
        root = math.sqrt(rank) if layer.use_rslora.get(adapter_name) else rank
        layer.scaling[adapter_name] = scale * layer.lora_alpha[adapter_name] / root


def _swappable(model: nn.Module, adapter_name: str) -> dict[str, LoraLayer]:
    layers = lora_layers(model, adapter_name)
    if not layers:
        known = sorted({name for layer in lora_layers(model).values() for name in layer.scaling})
        raise NoAdapterError(
            f"the model carries no adapter named {adapter_name!r} (found: {known}); "
            "load the first adapter, then prepare() and compile"
        )
    bare = [
        name
        for name, layer in layers.items()
        if not isinstance(layer.scaling, Scalings) or adapter_name not in layer.scaling.own_ranks
    ]
    if bare:
        raise NotPreparedError(
            f"{bare[0]} and {len(bare) - 1} more modules are not prepared for adapter {adapter_name!r}; "
            "call hotswap.prepare(model, ...) before torch.compile"
        )
    merged = [name for name, layer in layers.items() if layer.merged_adapters]
    if merged:
        raise HotswapError(
            f"{merged[0]} has merged adapters {layers[merged[0]].merged_adapters}; "
            "call unmerge_adapter() before a swap"
        )
    offloaded = [n for n, slot in all_slots(layers, adapter_name) if slot.tensor.is_meta]
    if offloaded:
        raise HotswapError(
            f"{offloaded[0]} is on the meta device (offloaded); load the model without offloading"
        )
    return layers


def _read(
    adapter: str | Path | Mapping[str, Tensor] | None, config: LoraConfig | None
) -> _Source | None:
    if adapter is None:
        return None
    if isinstance(adapter, str | Path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        spec = AdapterSpec.read(adapter)
        _refuse(spec.findings)
        try:
            tensors = load_file(Path(adapter) / "adapter_model.safetensors")
        except SafetensorError as error:
            raise AdapterError(
                [
                    Finding(
                        str(adapter), "HSW005", f"weights cannot be read: {error}", "save it again"
                    )
                ]
            ) from error
        return _Source(str(adapter), spec, _by_module(tensors), _config_of(spec))
    if config is None:
        raise ValueError(
            "adapter is a state dict; pass config=LoraConfig(...) with its rank and alpha"
        )
    infos = {
        name: TensorInfo(_DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape), 0, 0)
        for name, value in adapter.items()
    }
    plain = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    spec = AdapterSpec.from_tensors("state dict", plain, infos)
    return _Source("state dict", spec, _by_module(adapter), config)


def _by_module(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {canonical(name): value for name, value in tensors.items()}


def _config_of(spec: AdapterSpec) -> LoraConfig:
    config: LoraConfig = PeftConfig.from_peft_type(**spec.config)
    return config


def _envelope(layers: dict[str, LoraLayer], adapter_name: str) -> SwapPlan:
    return SwapPlan.of_modules(
        {name: envelope_of(layer, adapter_name) for name, layer in layers.items()}
    )


def _refuse(findings: tuple[Finding, ...]) -> None:
    if findings:
        raise (RankTooLargeError if has_code(findings, "HSW105") else AdapterError)(findings)


@torch.no_grad()
def _stage(
    layers: dict[str, LoraLayer], adapter_name: str, source: _Source | None
) -> tuple[list[tuple[Tensor, Tensor]], str]:
    staged: list[tuple[Tensor, Tensor]] = []
    digest = hashlib.blake2b(digest_size=16)
    infinite: list[Finding] = []
    with torch.inference_mode(False):
        for module, slot in all_slots(layers, adapter_name):
            value = torch.zeros_like(slot.tensor)
            given = source.tensors.get(f"{module}.{slot.key}") if source is not None else None
            if source is not None and given is not None:
                own = given.to(device=value.device, dtype=value.dtype)
                if not torch.isfinite(own).all():
                    infinite.append(
                        Finding(
                            f"{source.label}::{module}.{slot.key}",
                            "HSW110",
                            f"holds NaN or infinity as {value.dtype}",
                            "train or export the adapter again",
                        )
                    )
                slot.fill(value, own)
            staged.append((slot.tensor, value))
            digest.update(value.contiguous().view(torch.uint8).cpu().numpy().data)
    if infinite:
        raise AdapterError(infinite)
    return staged, digest.hexdigest()


def _commit(
    staged: list[tuple[Tensor, Tensor]],
    layers: dict[str, LoraLayer],
    adapter_name: str,
    scalings: dict[str, float],
) -> None:
    targets = [target for target, _ in staged]
    # a model made under inference_mode can only be written under it
    with torch.inference_mode(any(t.is_inference() for t in targets)), torch.no_grad():
        torch._foreach_copy_(targets, [value for _, value in staged])
        for name, layer in layers.items():
            layer.scaling[adapter_name] = scalings[name]


def _follow(
    model: nn.Module, layers: dict[str, LoraLayer], adapter_name: str, source: _Source | None
) -> None:
    for name, layer in layers.items():
        module = source.spec.modules.get(name) if source is not None else None
        layer.r[adapter_name] = module.rank if module is not None else 1
        layer.lora_alpha[adapter_name] = module.alpha if module is not None else 0
        layer.use_rslora[adapter_name] = bool(
            source is not None and source.config is not None and source.config.use_rslora
        )
        layer.scaling.own_ranks[adapter_name] = module.rank if module is not None else 0
    slot = getattr(model, "peft_config", {}).get(adapter_name)
    if slot is None or source is None or source.config is None:
        return
    # in place: compiled code may be guarded on the object
    for field in dataclasses.fields(slot):
        if field.name not in _SLOT_FIELDS:
            setattr(slot, field.name, getattr(source.config, field.name))


@contextmanager
def _undo(
    model: nn.Module, targets: list[Tensor], layers: dict[str, LoraLayer], adapter_name: str
) -> Iterator[None]:
    """Bring everything that a commit writes back, bit for bit, if the body raises anything at all."""
    with torch.inference_mode(False), torch.no_grad():
        before = [target.detach().clone() for target in targets]
    scalings = {name: layer.scaling[adapter_name].item() for name, layer in layers.items()}
    numbers = {
        name: (
            layer.r[adapter_name],
            layer.lora_alpha[adapter_name],
            layer.use_rslora.get(adapter_name),
            layer.scaling.own_ranks[adapter_name],
        )
        for name, layer in layers.items()
    }
    config = getattr(model, "peft_config", {}).get(adapter_name)
    fields = dict(vars(config)) if config is not None else {}
    try:
        yield
    except BaseException:
        if config is not None:
            vars(config).update(fields)
        _commit(list(zip(targets, before, strict=True)), layers, adapter_name, scalings)
        for name, layer in layers.items():
            rank, alpha, rslora, own = numbers[name]
            layer.r[adapter_name], layer.lora_alpha[adapter_name] = rank, alpha
            layer.use_rslora[adapter_name] = rslora
            layer.scaling.own_ranks[adapter_name] = own
        raise
