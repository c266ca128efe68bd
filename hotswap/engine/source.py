"""Source: an adapter as it was given, read into memory: a folder, a file, a hub id or a state dict."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor

from hotswap.adapters.config import CONFIG, read_config
from hotswap.adapters.header import TensorInfo, read_layout
from hotswap.adapters.spec import AdapterSpec, canonical
from hotswap.engine.diffusers_file import read_model_file, weights_of
from hotswap.engine.placement import DTYPES
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

Adapter = str | Path | Mapping[str, Tensor]
_TORCH = {word: dtype for dtype, word in DTYPES.items()}
_kept = threading.local()


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter in memory; ``tensors`` by their canonical names, of a file until the next is read."""

    label: str
    spec: AdapterSpec
    tensors: dict[str, Tensor]
    config: LoraConfig


def read(adapter: Adapter, config: LoraConfig | None = None, **hub: Any) -> Source:
    """Read an adapter of PEFT or diffusers; ``hub`` are huggingface_hub's arguments (revision, token, …).

    Raises UnreadableAdapterError for files that are missing or damaged, ValueError for a state dict
    without its config.
    """
    if isinstance(adapter, Mapping):
        return _from_state_dict(adapter, config)
    path = _located(adapter, hub)
    if config is None and (weights := weights_of(path)) is not None:
        source = _from_state_dict(*read_model_file(weights))
        return replace(source, label=str(adapter), spec=replace(source.spec, path=str(adapter)))
    fields = _fields(path) if config is None else _plain(config)
    layout = read_layout(path)
    spec = AdapterSpec.from_tensors(str(adapter), fields, layout.tensors)
    data = _buffer(layout.size)
    with layout.path.open("rb") as file:
        file.seek(layout.start)
        got = file.readinto(data.numpy().data) if layout.size else 0
    if got != layout.size:
        text = f"the file has shrunk while it was read: {got} of {layout.size} bytes"
        raise UnreadableAdapterError([Finding(str(layout.path), "HSW005", text, "load it again")])
    tensors = {
        canonical(name): _view(data, info)
        for name, info in layout.tensors.items()
        if info.dtype in _TORCH  # of the others, the spec has a finding
    }
    if config is None:
        config = PeftConfig.from_peft_type(**fields)
    return Source(str(adapter), spec, tensors, config)


def config_of(adapter: Adapter, config: LoraConfig | None = None, **hub: Any) -> LoraConfig:
    """The config of an adapter, without its weights."""
    if config is None and not isinstance(adapter, Mapping):
        found: LoraConfig = PeftConfig.from_peft_type(**_fields(_located(adapter, hub)))
        return found
    return _given(config)


def _fields(path: Path) -> dict[str, Any]:
    return read_config(path.parent if path.suffix == ".safetensors" and path.is_file() else path)


def _given(config: LoraConfig | None) -> LoraConfig:
    if config is None:
        raise ValueError(
            "adapter is a state dict; pass config=LoraConfig(...) with its rank and alpha"
        )
    return config


def _buffer(size: int) -> Tensor:
    """A buffer of bytes that the next read of this thread writes again: new pages cost more than the read."""
    kept: Tensor | None = getattr(_kept, "buffer", None)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = _kept.buffer = torch.empty(size, dtype=torch.uint8)
    return kept[:size]


def _view(data: Tensor, info: TensorInfo) -> Tensor:
    dtype = _TORCH[info.dtype]
    piece = data[info.start : info.end]
    if info.start % dtype.itemsize:
        piece = piece.clone()  # a file may be packed tighter than its dtypes
    return piece.view(dtype).view(info.shape)


def _from_state_dict(adapter: Mapping[str, Tensor], config: LoraConfig | None) -> Source:
    config = _given(config)
    for name, value in adapter.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the state dict has {name} = {type(value).__name__}, expected a tensor"
            )
    infos = {
        name: TensorInfo(DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape), 0, 0)
        for name, value in adapter.items()
    }
    spec = AdapterSpec.from_tensors("state dict", _plain(config), infos)
    tensors = {canonical(name): value.detach() for name, value in adapter.items()}
    return Source("state dict", spec, tensors, config)


def _plain(config: LoraConfig) -> dict[str, Any]:
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}


def _located(adapter: str | Path, hub: Mapping[str, Any]) -> Path:
    """Find an adapter on the disk, or get it from the hub when it is no path but looks like an id."""
    path = Path(adapter) / (hub.get("subfolder") or "") if hub else Path(adapter)
    parts = str(adapter).split("/")
    if path.exists() or isinstance(adapter, Path) or len(parts) != 2 or parts[0] in ("", ".", ".."):
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        config = hf_hub_download(str(adapter), CONFIG, **hub)
        hf_hub_download(str(adapter), "adapter_model.safetensors", **hub)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        text = f"is neither a folder nor to be had from the hub: {first[:200]}"
        remedy = f"pass a folder with {CONFIG}, or the id of a public repository"
        raise UnreadableAdapterError([Finding(str(adapter), "HSW001", text, remedy)]) from error
    return Path(config).parent
