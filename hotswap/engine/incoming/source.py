"""IncomingAdapter: an adapter as it was given: a folder, a file, a hub id or a state dict."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from hotswap.adapters import hub
from hotswap.adapters.config import SAVE_AGAIN, ground_of, unsupported_features
from hotswap.adapters.files import open_weights, unreadable
from hotswap.adapters.formats import components_of
from hotswap.adapters.formats.component import Component, Convert, split, without_prefix
from hotswap.adapters.formats.conversion import infos
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.names import in_file, uncompiled
from hotswap.adapters.spec import AdapterSpec, describe_parts
from hotswap.adapters.texts import Family, Texts, open_texts
from hotswap.compiler.shards import local_of
from hotswap.engine.incoming.file_reader import FileReader
from hotswap.errors import AdapterError

if TYPE_CHECKING:
    from peft import LoraConfig

Adapter = str | Path | Mapping[str, Tensor]
Config: TypeAlias = "LoraConfig | Mapping[str, Any]"
"""A config, or its fields: a process that serves a package has no PEFT."""
_KEPT = 64  # descriptions
_WHOLE = {Tensor, nn.Parameter}
_kept = threading.local()
_kind = attrgetter("shape", "dtype")


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of an adapter without its values; adapters of one recipe share it.

    ``tensors`` has canonical names, in the order in which the tensors are given. ``fields`` are those of
    its config; None: there is no adapter. ``names`` are the canonical names of all that a state dict has.
    """

    spec: AdapterSpec
    tensors: dict[str, TensorInfo]
    fields: Mapping[str, Any] | None
    config: LoraConfig | None = None  # if it was given as one
    header: bytes = b""  # of a file
    convert: Convert | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IncomingAdapter:
    """An adapter: what is known of it, and its values, which are in memory or still in a file."""

    known: Description
    spec: AdapterSpec
    values: dict[str, Tensor] | Path
    described: os.stat_result | None = None  # the file, when its header was read

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
        """The LoraConfig of the adapter, made anew if need be; None: there is no adapter.

        Raises UnreadableAdapterError for a config that is none of LoRA.
        """
        if self.known.config is not None or self.known.fields is None:
            return self.known.config
        return _config(self.label, self.known.fields)

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
        if not isinstance(self.values, Path):
            return self.values, None
        if reader is None or not reader.serves(self.known.header):
            reader = FileReader(self.known.header, self.infos, direct)
        with open_weights(self.values) as file:
            reader.read(file, self.described or os.fstat(file.fileno()))
        return reader.tensors, reader


_BASE = AdapterSpec("the base model", {}, {}, 0, ())
NOTHING = IncomingAdapter(Description(_BASE, {}, None), _BASE, {})
"""What is put in place where there is to be no adapter."""


def read(adapter: Adapter, config: Config | None = None, **options: Any) -> IncomingAdapter:
    """Read the adapter of one model; ``options`` are those of ``read_components``.

    Raises UnreadableAdapterError for files that are missing or damaged, AdapterError for a file of several
    components, ValueError for a state dict without its config.
    """
    if isinstance(adapter, Mapping):
        return from_state_dict(adapter, _given(config))
    found = read_components(adapter, config, **options)
    if len(found) > 1:
        text = f"has weights for several components of a pipeline ({', '.join(found)})"
        raise unreadable(
            adapter, "HSW005", text, "swap the pipeline itself: swap(pipeline, adapter)"
        )
    return next(iter(found.values()))


def read_components(
    adapter: str | Path,
    config: Config | None = None,
    family: Family | None = None,
    lost: Mapping[str, str] | None = None,
    *,
    allow_pickle: bool = False,
    **hub: Any,
) -> dict[str, IncomingAdapter]:
    """Read an adapter, component by component; "" is of a model by itself.

    ``lost`` are prefixes that names have in files of a component and not in the model, ``hub`` are
    huggingface_hub's arguments (revision, token, …). Raises UnreadableAdapterError.
    """
    path, own = _located(adapter, {"allow_pickle": allow_pickle, **hub}), None
    if config is not None:
        own = json.dumps(plain(config), default=str).encode()
    with open_texts(str(path), config=own, family=family, allow_pickle=allow_pickle) as texts:
        return _read(str(adapter), texts, config, lost or {})


def _read(
    label: str, texts: Texts, config: Config | None, lost: Mapping[str, str]
) -> dict[str, IncomingAdapter]:
    key = texts.config, texts.header, texts.size, texts.family, tuple(lost.items())
    known = _descriptions().get(key)
    if known is None:
        parts = components_of(texts, texts.layout())
        known = describe(label, parts, config, lost, texts.header)
        if all(each.convert is None for each in known.values()):  # else alphas are in the values
            _keep(key, known)
    values = {}
    convert = next((each.convert for each in known.values()), None)
    if convert is not None and isinstance(texts.file, BufferedReader):
        values = convert(_everything(texts))
    elif texts.passing:
        copied = {name: value.clone() for name, value in _everything(texts).items()}
        values = {"": copied} if "" in known else split(copied)
    described = os.fstat(texts.file.fileno()) if texts.file is not None else None
    return {
        name: IncomingAdapter(
            each,
            replace(each.spec, path=f"{label}::{name}" if len(known) > 1 else label),
            named(values[name], lost.get(name, "")) if name in values else Path(texts.weights),
            described,
        )
        for name, each in known.items()
    }


def _everything(texts: Texts) -> dict[str, Tensor]:
    """All tensors of a file."""
    with open_weights(texts.weights) as file:
        reader = FileReader(texts.header, texts.layout().tensors, {})
        reader.read(file, os.fstat(file.fileno()))
    return reader.tensors


def named(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Values by the names that a component's tensors have in the model."""
    return {in_file(name.removeprefix(prefix)): value for name, value in values.items()}


def describe(
    label: str,
    parts: Mapping[str, Component],
    config: Config | None,
    lost: Mapping[str, str],
    header: bytes = b"",
) -> dict[str, Description]:
    """Describe the components of an adapter; raises UnreadableAdapterError, AdapterError (HSW102)."""
    parts = {name: without_prefix(part, lost.get(name, "")) for name, part in parts.items()}
    found = {}
    for name, spec in describe_parts(label, parts).items():
        alike = unsupported_features(ground_of(spec.config))  # of which the one in place decides
        if any(each.code == "HSW102" and each.message not in alike for each in spec.findings):
            raise AdapterError(spec.findings)  # PEFT may not even build a config of such a feature
        tensors = {in_file(key): info for key, info in parts[name].tensors.items()}
        if spec.left_out:
            owners = tuple(f"{module}.lora_" for module in spec.left_out)
            tensors = {n: info for n, info in tensors.items() if not n.startswith(owners)}
        fields = parts[name].config if config is None else plain(config)
        given = None if isinstance(config, Mapping) else config
        found[name] = Description(spec, tensors, fields, given, header, parts[name].convert)
    return found


def _config(label: str, fields: Mapping[str, Any]) -> LoraConfig:
    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig)}
    try:
        return LoraConfig(**{key: value for key, value in fields.items() if key in known})
    except (TypeError, ValueError) as error:
        text = f"is no LoRA config: {(str(error).splitlines() or [''])[0][:200]}"
        raise unreadable(label, "HSW003", text, SAVE_AGAIN) from error


def _descriptions() -> OrderedDict[Hashable, dict[str, Description]]:
    """The descriptions of this thread's last adapters, by what they were made from."""
    if not hasattr(_kept, "descriptions"):
        _kept.descriptions = OrderedDict()
    found: OrderedDict[Hashable, dict[str, Description]] = _kept.descriptions
    return found


def _keep(key: Hashable, descriptions: dict[str, Description]) -> None:
    if any(each.spec.findings for each in descriptions.values()):
        return  # they name the file
    kept = _descriptions()
    kept[key] = descriptions
    while len(kept) > _KEPT:
        kept.popitem(last=False)


def config_of(adapter: Adapter, config: LoraConfig | None = None, **options: Any) -> LoraConfig:
    """The config of an adapter of one model, without its weights."""
    if config is not None:
        return config
    found: LoraConfig = read(adapter, **options).config
    return found


def _given(config: Config | None) -> Config:
    if config is None:
        raise ValueError(
            "adapter is a state dict; pass config=LoraConfig(...) with its rank and alpha"
        )
    return config


def from_state_dict(adapter: Mapping[str, Tensor], config: Config) -> IncomingAdapter:
    """Take a state dict in PEFT's names; raises ValueError for one that has more than tensors."""
    values = list(adapter.values())
    _require_tensors(adapter, values)
    key = (repr(config), tuple(adapter), tuple(map(_kind, values)))
    found = _descriptions().get(key)
    if found is None:
        given = {uncompiled(name): info for name, info in infos(adapter).items()}
        part = Component(plain(config), given)
        described = describe("state dict", {"": part}, config, {})[""]
        found = {"": replace(described, names=tuple(map(in_file, adapter)))}
        _keep(key, found)
    known = found[""]
    return IncomingAdapter(known, known.spec, dict(zip(known.names, values, strict=True)))


def _require_tensors(adapter: Mapping[str, Any], values: Sequence[Any]) -> None:
    kinds = set(map(type, values))
    for kind in kinds:
        if not issubclass(kind, Tensor):
            name = next(name for name, value in adapter.items() if type(value) is kind)
            raise ValueError(f"the state dict has {name} = {kind.__name__}, expected a tensor")
    for name, value in zip(adapter, values, strict=True) if kinds - _WHOLE else ():
        if local_of(value) is not value:
            raise ValueError(
                f"the state dict has a shard of {name}, expected the whole: value.full_tensor()"
            )


def plain(config: Config) -> dict[str, Any]:
    """The fields of a config as a config file has them."""
    fields = config if isinstance(config, Mapping) else config.to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}


def _located(adapter: str | Path, options: Mapping[str, Any]) -> Path:
    """Find an adapter on the disk, or get it from the hub when it is no path but looks like an id."""
    if not isinstance(adapter, Path) and hub.looks_like_id(adapter):
        return hub.fetched(adapter, **options)
    return Path(adapter) / (options.get("subfolder") or "") if options else Path(adapter)
