"""Source: an adapter as it was given, read into memory: a folder, a file, a hub id or a state dict."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor

from hotswap.adapters.config import CONFIG, read_config
from hotswap.adapters.header import (
    FileLayout,
    TensorInfo,
    open_weights,
    parse_layout,
    read_raw_header,
)
from hotswap.adapters.spec import AdapterSpec, canonical
from hotswap.engine.carried import DTYPES
from hotswap.engine.diffusers_file import read_model_file, weights_of
from hotswap.errors import AdapterError, UnreadableAdapterError
from hotswap.findings import Finding, has_code

Adapter = str | Path | Mapping[str, Tensor]
_TORCH = {word: dtype for dtype, word in DTYPES.items()}
_KEPT = 64  # descriptions
_kept = threading.local()


@dataclass(slots=True)
class Description:
    """What is known of an adapter without its values; adapters of one recipe share it.

    ``names`` are the canonical names of its tensors, in the order in which they are given; of a file
    ``views`` are its tensors in the buffer that it was read into last.
    """

    spec: AdapterSpec
    names: tuple[str, ...]
    config: LoraConfig
    layout: FileLayout | None = None
    views: tuple[Tensor, list[Tensor]] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter in memory; the tensors of a file are valid until this thread reads the next one."""

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
    try:
        fields = _fields(path) if config is None else _plain(config)
    except UnreadableAdapterError:
        weights = weights_of(path)
        if weights is None:
            raise
        source = _from_state_dict(*read_model_file(weights))
        return replace(source, label=str(adapter), spec=replace(source.spec, path=str(adapter)))
    with open_weights(path) as file:
        known = _describe(str(adapter), file, fields, config)
        tensors = dict(zip(known.names, _read_data(file, known), strict=True))
    return Source(str(adapter), replace(known.spec, path=str(adapter)), tensors, known.config)


def _describe(
    label: str, file: BufferedReader, fields: dict[str, Any], config: LoraConfig | None
) -> Description:
    header = read_raw_header(file)
    key = json.dumps(fields, sort_keys=True, default=str), header, os.fstat(file.fileno()).st_size
    known = _descriptions().get(key)
    if known is None:
        layout = parse_layout(file, header)
        spec = AdapterSpec.from_tensors(label, fields, layout.tensors)
        if has_code(spec.findings, "HSW102"):
            raise AdapterError(
                spec.findings
            )  # PEFT may not even build a config with such a feature
        names = tuple(canonical(name) for name in layout.tensors)
        config = PeftConfig.from_peft_type(**fields) if config is None else config
        known = Description(spec, names, config, layout)
        _keep(key, known)
    return known


def _read_data(file: BufferedReader, known: Description) -> list[Tensor]:
    layout = known.layout
    if layout is None:
        raise TypeError("a state dict has no file")
    data = _buffer(layout.size)
    try:
        file.seek(layout.start)
        got = file.readinto(data.numpy().data) if layout.size else 0
    except OSError as error:
        text = f"cannot be read: {error.strerror or error}"
        remedy = "check the file and its permissions"
        raise UnreadableAdapterError([Finding(file.name, "HSW005", text, remedy)]) from error
    if got != layout.size:
        text = f"the file has shrunk while it was read: {got} of {layout.size} bytes"
        raise UnreadableAdapterError([Finding(file.name, "HSW005", text, "load it again")])
    if known.views is None or known.views[0] is not _kept.buffer:
        known.views = _kept.buffer, [_view(data, info) for info in layout.tensors.values()]
    return known.views[1]


def _descriptions() -> OrderedDict[Hashable, Description]:
    """The descriptions of this thread's last adapters, by what they were made from."""
    if not hasattr(_kept, "descriptions"):
        _kept.descriptions = OrderedDict()
    found: OrderedDict[Hashable, Description] = _kept.descriptions
    return found


def _keep(key: Hashable, description: Description) -> None:
    if description.spec.findings:
        return  # they name the file
    kept = _descriptions()
    kept[key] = description
    while len(kept) > _KEPT:
        kept.popitem(last=False)


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
    dtype = _TORCH.get(
        info.dtype, torch.uint8
    )  # of a dtype that torch lacks, the spec has a finding
    piece = data[info.start : info.end]
    if dtype is torch.uint8 and info.dtype != "U8":
        return piece
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
    values = list(adapter.values())
    key = (repr(config), tuple(adapter), tuple((value.shape, value.dtype) for value in values))
    known = _descriptions().get(key)
    if known is None:
        infos = {
            name: TensorInfo(DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape), 0, 0)
            for name, value in zip(adapter, values, strict=True)
        }
        spec = AdapterSpec.from_tensors("state dict", _plain(config), infos)
        known = Description(spec, tuple(canonical(name) for name in adapter), config)
        _keep(key, known)
    tensors = dict(zip(known.names, values, strict=True))
    return Source("state dict", known.spec, tensors, known.config)


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
