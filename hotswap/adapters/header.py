"""The safetensors header: names, dtypes, shapes and offsets, without reading a weight."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library

BITS: dict[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits per element of each safetensors dtype."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file; ``start`` and ``end`` are byte offsets within the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A file's tensors, and where its data part starts and how many bytes it has."""

    tensors: dict[str, TensorInfo]
    start: int
    size: int


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """Read what a safetensors file (or the one in an adapter folder) contains.

    The format: the header's length as 8 little-endian bytes, a JSON object, the data without holes
    (https://huggingface.co/docs/safetensors). Raises UnreadableAdapterError (HSW004/005/006).
    """
    with open_weights(path) as file:
        return parse_layout(file, read_raw_header(file)).tensors


def open_weights(path: str | Path) -> BufferedReader:
    """Open a safetensors file, or the one in an adapter folder; raises UnreadableAdapterError."""
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        _missing(path)
    try:
        return path.open("rb")
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror or error}", "check the file's permissions")


def read_raw_header(file: BufferedReader) -> bytes:
    """Read the header's text from the start of an open file; raises UnreadableAdapterError (HSW005)."""
    path = Path(file.name)
    try:
        size = os.fstat(file.fileno()).st_size
        return file.read(_header_length(path, file.read(8), size))
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror or error}", "check the file's permissions")


def parse_layout(file: BufferedReader, header: bytes) -> FileLayout:
    """Check a header against its open file; raises UnreadableAdapterError (HSW005)."""
    path = Path(file.name)
    start = 8 + len(header)
    size = os.fstat(file.fileno()).st_size - start
    tensors = _parse(path, header)
    _check_layout(path, tensors, size)
    return FileLayout(tensors, start, size)


def _missing(path: Path) -> NoReturn:
    if path.with_name(PICKLE).is_file():
        found = Finding(
            str(path.with_name(PICKLE)),
            "HSW006",
            "the weights are a pickle, which can run code when it is loaded and is not read",
            "load the adapter with PEFT and save it again: save_pretrained writes safetensors",
        )
    else:
        found = Finding(
            str(path),
            "HSW004",
            f"no {path.name} in the adapter folder",
            "save the adapter with model.save_pretrained(folder)",
        )
    raise UnreadableAdapterError([found])


def _refuse(path: Path, message: str, remedy: str = "save or download the file again") -> NoReturn:
    raise UnreadableAdapterError([Finding(str(path), "HSW005", message, remedy)])


def _header_length(path: Path, prefix: bytes, size: int) -> int:
    if len(prefix) < 8:
        _refuse(path, f"the file is truncated: {size} bytes, a safetensors header needs at least 8")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        _refuse(path, f"the header claims {length} bytes, more than {MAX_HEADER}: not safetensors")
    if length > size - 8:
        _refuse(
            path, f"the file is truncated: its header claims {length} bytes, {size - 8} are left"
        )
    return length


def _parse(path: Path, text: bytes) -> dict[str, TensorInfo]:
    if not text.startswith(b"{"):
        _refuse(path, "the header is not a JSON object")
    try:
        raw: dict[str, Any] = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"the header is not valid JSON: {_short(error)}")
    return {
        name: _tensor(path, name, entry) for name, entry in raw.items() if name != "__metadata__"
    }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:120]


def _tensor(path: Path, name: str, entry: Any) -> TensorInfo:
    label = ascii(name[:200])
    if not name.isprintable():  # also lone surrogates, which no terminal or UTF-8 file can show
        _refuse(path, f"tensor {label}: the name has characters that cannot be printed")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        _refuse(path, f"tensor {label}: dtype, shape or data_offsets is missing")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        _refuse(path, f"tensor {label}: unknown dtype {ascii(dtype)[:40]}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        _refuse(path, f"tensor {label}: shape and data_offsets must be lists of sizes")
    start, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    if bits != (end - start) * 8:
        _refuse(
            path,
            f"tensor {label}: shape {shape} of {dtype} takes {bits // 8} bytes, "
            f"data_offsets {offsets} span {end - start}",
        )
    return TensorInfo(dtype, tuple(shape), start, end)


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


def _check_layout(path: Path, tensors: dict[str, TensorInfo], size: int) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.end > size:
            _refuse(
                path,
                f"tensor {name!r} ends at byte {info.end} of the data, but only {size} are there: "
                "the file is truncated",
            )
        if info.start != position:
            what = "overlaps the one before it" if info.start < position else "follows a hole"
            _refuse(path, f"tensor {name!r} {what}: it starts at {info.start}, expected {position}")
        position = info.end
    if position != size:
        _refuse(path, f"{size - position} bytes at the end of the file belong to no tensor")
