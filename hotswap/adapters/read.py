"""Read an adapter's files without its weights: a PEFT folder, a file of diffusers, a hub id."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from hotswap.adapters import hub
from hotswap.adapters.config import CONFIG, check_config, config_text, parse_config
from hotswap.adapters.files import open_weights, read_raw_header, unchanged
from hotswap.adapters.formats import diffusers
from hotswap.adapters.header import FileLayout, parse_layout
from hotswap.adapters.spec import AdapterSpec, below
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding, has_code

_T = TypeVar("_T")
_KEPT = 128
_LONGEST_KEPT = 1_000_000  # bytes of a header


@dataclass(frozen=True, slots=True)
class Opened:
    """An adapter whose texts were read; ``file`` is its open weights file, None on the hub.

    ``mark`` is a digest of the texts and of the size, equal for copies and b"" on the hub.
    """

    spec: AdapterSpec
    layout: FileLayout
    file: BufferedReader | None
    mark: bytes = b""


class Reader:
    """Reads one adapter after the other; one whose texts are those of an earlier one takes less time."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Opened | None] = OrderedDict()
        self._layouts: OrderedDict[bytes, FileLayout | None] = OrderedDict()

    @contextmanager
    def open(self, path: str) -> Iterator[Opened]:
        """Read an adapter's texts, and hold its weights file open.

        Raises UnreadableAdapterError (HSW0xx, HSW101), also at the end when the file has changed.
        """
        if hub.looks_like_id(path):
            yield Opened(*self._remote(path), file=None)
            return
        location = Path(path)
        weights = diffusers.weights_of(location)
        text = None if weights is not None else config_text(_folder(location))
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open_weights(weights or location))
                before = os.fstat(file.fileno())
                header = read_raw_header(file)
            except UnreadableAdapterError as error:
                raise UnreadableAdapterError(_with_config(location, text, error)) from None
            yield self._described(path, file, text, header)
            unchanged(file, before)

    def spec(self, path: str) -> AdapterSpec:
        """Describe an adapter; raises UnreadableAdapterError with all HSW0xx and HSW101 findings."""
        with self.open(path) as opened:
            return opened.spec

    def _described(
        self, path: str, file: BufferedReader, text: bytes | None, header: bytes
    ) -> Opened:
        mark = xxhash.xxh3_128(header)
        mark.update(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
        header_key = mark.digest()
        mark.update(text or b"")
        key = mark.digest()
        known = self._known.get(key)
        if known is not None:
            _keep(self._known, key, known)
            return replace(known, spec=replace(known.spec, path=path), file=file)
        try:
            layout = self._layouts.get(header_key) or parse_layout(file, header)
        except UnreadableAdapterError as error:
            raise UnreadableAdapterError(_with_config(Path(path), text, error)) from None
        spec = describe(path, str(file.name), text, layout)
        if len(header) <= _LONGEST_KEPT:
            _keep(self._layouts, header_key, layout)
            if not spec.findings:  # they name the file
                _keep(self._known, key, Opened(spec, layout, None, key))
        return Opened(spec, layout, file, key)

    def _remote(self, path: str) -> tuple[AdapterSpec, FileLayout]:
        text, layout = hub.read_texts(path)
        return describe(path, path, text, layout), layout


def _keep(kept: OrderedDict[bytes, _T | None], key: bytes, value: _T) -> None:
    """Remember a value as the last one used, and forget the one that was not used for longest.

    The first time only its key is remembered: a fleet in which no two are equal costs no memory.
    """
    kept[key] = value if key in kept else None
    kept.move_to_end(key)
    if len(kept) > _KEPT:
        kept.popitem(last=False)


def _with_config(
    location: Path, text: bytes | None, error: UnreadableAdapterError
) -> list[Finding]:
    """What is wrong with the config and with the weights; of another kind than LoRA, only that."""
    if text is None:
        return list(error.findings)
    try:
        _config(location, text)
    except UnreadableAdapterError as wrong:
        alone = has_code(wrong.findings, "HSW101")
        return [*wrong.findings, *(() if alone else error.findings)]
    return list(error.findings)


def _config(location: Path, text: bytes) -> dict[str, Any]:
    where = str(_folder(location) / CONFIG)
    fields = parse_config(where, text)
    check_config(where, fields)
    return fields


def describe(path: str, weights: str, text: bytes | None, layout: FileLayout) -> AdapterSpec:
    """Describe an adapter by its texts; without a config it is one of diffusers.

    Several components of a pipeline become one spec, in which module names start with the component's.
    """
    if text is not None:
        fields = _config(Path(path), text)
        return AdapterSpec.from_tensors(path, fields, layout.tensors)
    parts = diffusers.components(weights, layout.tensors, layout.metadata)
    names = tuple(name for name in parts if name)
    if len(parts) == 1:
        (part,) = parts.values()
        return replace(AdapterSpec.from_tensors(path, *part), components=names)
    specs = {
        name: AdapterSpec.from_tensors(f"{path}::{name}", *part) for name, part in parts.items()
    }
    merged: dict[str, Any] = {
        attribute: {
            key: value
            for name, spec in specs.items()
            for key, value in below(name, getattr(spec, attribute)).items()
        }
        for attribute in ("modules", "saved", "tokens", "copies")
    }
    return replace(
        next(iter(specs.values())),
        path=path,
        bytes=sum(spec.bytes for spec in specs.values()),
        findings=tuple(finding for spec in specs.values() for finding in spec.findings),
        components=names,
        **merged,
    )


def _folder(location: Path) -> Path:
    return (
        location.parent if location.suffix == ".safetensors" and not location.is_dir() else location
    )
