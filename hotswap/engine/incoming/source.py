"""IncomingAdapter: an adapter as it was given: a folder, a file, a hub id or a state dict."""

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

from peft import LoraConfig, PeftConfig
from torch import Tensor

from hotswap.adapters.config import CONFIG, read_config
from hotswap.adapters.files import open_weights, read_raw_header
from hotswap.adapters.header import TensorInfo, parse_layout
from hotswap.adapters.names import canonical
from hotswap.adapters.spec import AdapterSpec
from hotswap.adapters.texts import weights_of
from hotswap.engine.incoming.diffusers import read_model_file
from hotswap.engine.incoming.file_reader import FileReader
from hotswap.engine.layout.adapter_slots import DTYPES
from hotswap.errors import AdapterError, UnreadableAdapterError
from hotswap.findings import Finding, has_code

Adapter = str | Path | Mapping[str, Tensor]
_KEPT = 64  # descriptions
_kept = threading.local()


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of an adapter without its values; adapters of one recipe share it.

    ``tensors`` has canonical names, in the order in which the tensors are given.
    """

    spec: AdapterSpec
    tensors: dict[str, TensorInfo]
    config: LoraConfig | None  # None: there is no adapter
    header: bytes = b""  # of a file


@dataclass(frozen=True, slots=True)
class IncomingAdapter:
    """An adapter: what is known of it, and its values, which are in memory or still in a file."""

    known: Description
    spec: AdapterSpec
    values: list[Tensor] | Path

    @property
    def label(self) -> str:
        """What findings and reports call it."""
        return self.spec.path

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """What is known of each tensor, by canonical name."""
        return self.known.tensors

    @property
    def config(self) -> Any:
        """The LoraConfig of the adapter; None: there is no adapter."""
        return self.known.config

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The values; those of a file are valid until this thread reads the next one.

        Raises UnreadableAdapterError when the file has changed since it was described.
        """
        return self.load({}, None)[0]

    def load(
        self, direct: Mapping[str, Tensor], reader: FileReader | None
    ) -> tuple[dict[str, Tensor], FileReader | None]:
        """Give the values; a file is read into the tensors of ``direct`` where it has those names.

        They are contiguous, in the shape and dtype that the file has, on the CPU. ``reader`` is what the
        last call with the same ``direct`` gave, so that it need not be made again.
        """
        if isinstance(self.values, list):
            return dict(zip(self.infos, self.values, strict=True)), None
        if reader is None or not reader.serves(self.known.header):
            reader = FileReader(self.known.header, self.infos, direct)
        with open_weights(self.values) as file:
            reader.read(file)
        return reader.tensors, reader


_BASE = AdapterSpec("the base model", {}, {}, 0, ())
NOTHING = IncomingAdapter(Description(_BASE, {}, None), _BASE, [])
"""What is put in place where there is to be no adapter."""


def read(adapter: Adapter, config: LoraConfig | None = None, **hub: Any) -> IncomingAdapter:
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
        return replace(source, spec=replace(source.spec, path=str(adapter)))
    with open_weights(path) as file:
        known = _describe(str(adapter), file, fields, config)
    return IncomingAdapter(known, replace(known.spec, path=str(adapter)), path)


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
        tensors = {canonical(name): info for name, info in layout.tensors.items()}
        config = PeftConfig.from_peft_type(**fields) if config is None else config
        known = Description(spec, tensors, config, header)
        _keep(key, known)
    return known


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


def _from_state_dict(adapter: Mapping[str, Tensor], config: LoraConfig | None) -> IncomingAdapter:
    config = _given(config)
    values = list(adapter.values())
    for kind in set(map(type, values)):
        if not issubclass(kind, Tensor):
            name = next(name for name, value in adapter.items() if type(value) is kind)
            raise ValueError(f"the state dict has {name} = {kind.__name__}, expected a tensor")
    key = (repr(config), tuple(adapter), tuple([(value.shape, value.dtype) for value in values]))
    known = _descriptions().get(key)
    if known is None:
        infos = {
            name: TensorInfo(DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape), 0, 0)
            for name, value in zip(adapter, values, strict=True)
        }
        spec = AdapterSpec.from_tensors("state dict", _plain(config), infos)
        known = Description(spec, {canonical(n): info for n, info in infos.items()}, config)
        _keep(key, known)
    return IncomingAdapter(known, known.spec, values)


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
