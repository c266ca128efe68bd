"""The safetensors header: names, dtypes, shapes and offsets, without reading a weight."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from dataclasses import dataclass, field
from functools import _lru_cache_wrapper, lru_cache
from io import BufferedReader
from itertools import chain, repeat
from operator import itemgetter, sub
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
MAX_HEADER = 25_000_000
"""Bytes; a hundred times what adapters have, and a quarter of what the safetensors library reads."""
MAX_NAME = 256
"""Characters of a tensor's name."""
_FIELDS = itemgetter("dtype", "shape", "data_offsets")
_MOST_NAMES = 10_000  # of a file whose names are remembered
_T = TypeVar("_T")

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


class TensorInfo(NamedTuple):
    """One tensor of a file; ``start`` and ``end`` are byte offsets within the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A file's tensors, where its data part starts, how many bytes it has, and its own remarks."""

    tensors: dict[str, TensorInfo]
    start: int
    size: int
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """Read what a safetensors file (or the one in an adapter folder) contains.

    The format: the header's length as 8 little-endian bytes, a JSON object, the data without holes
    (https://huggingface.co/docs/safetensors). Raises UnreadableAdapterError (HSW004/005/006/007/009).
    """
    with open_weights(path) as file:
        return parse_layout(file, read_raw_header(file)).tensors


def open_weights(path: str | Path) -> BufferedReader:
    """Open a safetensors file, or the one in an adapter folder; raises UnreadableAdapterError."""
    path = Path(path)
    if os.path.isdir(path):
        path = path / WEIGHTS
    try:
        return open_regular(path)
    except FileNotFoundError:
        _missing(path)
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror or error}", "check the file's permissions")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, never waiting for a pipe; raises OSError or UnreadableAdapterError (HSW007)."""
    try:
        file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EISDIR):
            raise
        _special(path, "socket" if error.errno == errno.ENXIO else "folder")
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        _special(path, "pipe" if stat.S_ISFIFO(mode) else "device")
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # else a pipe waits for a writer


def unchanged(file: BufferedReader, before: os.stat_result) -> None:
    """Raise UnreadableAdapterError (HSW009) if an open file was written to since ``before``."""
    now = os.fstat(file.fileno())
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise changed(file.name)


def changed(path: str | Path) -> UnreadableAdapterError:
    """The error for a file that is not what it was when it was opened (HSW009)."""
    text, remedy = "the file changed while it was read", "read it again when it is complete"
    return UnreadableAdapterError([Finding(str(path), "HSW009", text, remedy)])


def read_raw_header(file: BufferedReader) -> bytes:
    """Read the header's text from the start of an open file; raises UnreadableAdapterError (HSW005)."""
    path = Path(file.name)
    try:
        size = os.fstat(file.fileno()).st_size
        length = _header_length(path, file.read(8), size)
        header = file.read(length)
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror or error}", "check the file's permissions")
    if len(header) != length:
        raise changed(path)
    return header


def parse_layout(file: BufferedReader, header: bytes) -> FileLayout:
    """Check a header against its open file; raises UnreadableAdapterError (HSW005)."""
    path = Path(file.name)
    start = 8 + len(header)
    size = os.fstat(file.fileno()).st_size - start
    tensors, metadata = _parse(path, header)
    _check_layout(path, tensors, size)
    return FileLayout(tensors, start, size, metadata)


def layout_of(where: str, entries: dict[str, Any], metadata: dict[str, str]) -> FileLayout:
    """Check the entries of a header that came without its file; raises UnreadableAdapterError (HSW005)."""
    tensors = _tensors(Path(where), entries)
    size = max((info.end for info in tensors.values()), default=0)
    _check_layout(Path(where), tensors, size)
    return FileLayout(tensors, 0, size, metadata)


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


def _special(path: Path, kind: str) -> NoReturn:
    text, remedy = f"is a {kind}, expected a regular file", "put a safetensors file in its place"
    raise UnreadableAdapterError([Finding(str(path), "HSW007", text, remedy)])


def _parse(path: Path, text: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if not text.startswith(b"{"):
        _refuse(path, "the header is not a JSON object")
    try:
        raw: dict[str, Any] = _loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"the header is not valid JSON: {_short(error)}")
    metadata = raw.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        _refuse(path, "the header's __metadata__ is not an object of texts")
    return _tensors(path, raw), metadata


def _tensors(path: Path, raw: dict[str, Any]) -> dict[str, TensorInfo]:
    """Check the entries: all at once, and one by one where that does not do, to name the tensor."""
    found = _columns(raw)
    if found is None:
        found = {name: _tensor(path, name, entry) for name, entry in raw.items()}
    return found


def _columns(raw: dict[str, Any]) -> dict[str, TensorInfo] | None:
    """Check names, dtypes, shapes and offsets each as one column; None when one may be wrong."""
    if not for_names(_good_names, tuple(raw)):
        return None
    try:
        dtypes, lists, offsets = zip(*map(_FIELDS, raw.values()), strict=True)
        shapes = list(map(tuple, lists))
        starts, ends = zip(*offsets, strict=True)
        sizes = {*zip(dtypes, shapes, map(sub, ends, starts), strict=True)}
    except (KeyError, TypeError, ValueError):
        return None
    if {*map(type, chain(starts, ends, *shapes))} != {int}:
        return None
    if any(_size_problem(dtype, list(shape), 0, length) for dtype, shape, length in sizes):
        return None
    rows = zip(dtypes, shapes, starts, ends, strict=True)
    infos = map(tuple.__new__, repeat(TensorInfo), rows)  # half the time of calling TensorInfo
    return dict(zip(raw, infos, strict=True))


@lru_cache(maxsize=64)
def _good_names(names: tuple[str, ...]) -> bool:
    return not any(map(_name_problem, names))


def for_names(judge: _lru_cache_wrapper[_T], names: tuple[str, ...]) -> _T:
    """Ask a cached function about the names of a file, which are those of many adapters; not of huge ones."""
    return judge(names) if len(names) <= _MOST_NAMES else judge.__wrapped__(names)


def _loads(text: bytes) -> dict[str, Any]:
    """Parse a header, in which no name may occur twice.

    Counting colons is quicker than looking at pairs: a pair that is lost has one, and without escapes
    there are only more of them than pairs.
    """
    decoded = text.decode("utf-8")
    raw: dict[str, Any] = json.loads(decoded)
    pairs = len(raw) + sum([len(entry) for entry in raw.values() if isinstance(entry, dict)])
    if text.count(b":") != pairs or b"\\" in text:
        raw = json.loads(decoded, object_pairs_hook=unique)
    return raw


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; raises ValueError when a name occurs twice, which parsers read differently."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {ascii(twice)[:60]} occurs twice")
    return found


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:120]


def _tensor(path: Path, name: str, entry: Any) -> TensorInfo:
    problem = _name_problem(name) or _entry_problem(entry)
    if problem:
        _refuse(path, f"tensor {name[:200]!a}: {problem}")
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    return TensorInfo(dtype, tuple(shape), start, end)


def _name_problem(name: str) -> str | None:
    if not name.isprintable():  # also lone surrogates, which no terminal or UTF-8 file can show
        return "the name has characters that cannot be printed"
    if len(name) > MAX_NAME:
        return f"the name has {len(name)} characters, more than {MAX_NAME}"
    if ".." in name or name.startswith("/"):
        return "the name reads like a path, not like a module's"
    return None


def _entry_problem(entry: Any) -> str | None:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "dtype, shape or data_offsets is missing"
    offsets = entry["data_offsets"]
    if not _sizes(offsets) or len(offsets) != 2:
        return "data_offsets must be a list of sizes, two of them"
    return _size_problem(entry["dtype"], entry["shape"], *offsets)


def _size_problem(dtype: Any, shape: Any, start: int, end: int) -> str | None:
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"unknown dtype {ascii(dtype)[:40]}"
    if not _sizes(shape):
        return "shape must be a list of sizes"
    bits = math.prod(shape) * BITS[dtype]
    if bits != (end - start) * 8:
        return (
            f"shape {shape} of {dtype} takes {bits // 8} bytes, "
            f"data_offsets {[start, end]} span {end - start}"
        )
    return None


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


def _check_layout(path: Path, tensors: dict[str, TensorInfo], size: int) -> None:
    starts, ends = ([info[place] for info in tensors.values()] for place in (2, 3))
    if [0, *ends] == [*starts, size]:  # most files are written in the order of their header
        return
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
