"""The safetensors header: names, dtypes, shapes and offsets, without reading a weight."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from functools import _lru_cache_wrapper, cache, lru_cache
from io import BufferedReader
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hotswap.adapters.files import damaged, open_weights, parse_json, read_raw_header, unique

MAX_NAME = 256
"""Characters of a tensor's name."""
_MOST_NAMES = 5_000  # of a file whose names are remembered
_SHORTEST = 25  # characters of half an entry: "":{"dtype":"F4","shape":[],"data_offsets":[0,0]},
_METADATA = re.compile(r'\{"__metadata__": ?')
_HEAD = re.compile(r'\}, ?"([^"\\]*)": ?\{"dtype": ?"(\w+)", ?"shape": ?')
_OFFSETS = re.compile(r'(, ?"data_offsets": ?\[)0(, ?)\d+')
_DECODER = json.JSONDecoder(object_pairs_hook=unique)
_T = TypeVar("_T")

BITS: dict[str, int] = {
    dtype: bits
    for bits, dtypes in (
        (8, "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ"),
        (16, "I16 U16 F16 BF16"),
        (32, "I32 U32 F32"),
        (64, "I64 U64 F64 C64"),
        (4, "F4"),
        (6, "F6_E2M3 F6_E3M2"),
    )
    for dtype in dtypes.split()
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


def parse_layout(file: BufferedReader, header: bytes) -> FileLayout:
    """Check a header against its open file; raises UnreadableAdapterError (HSW005)."""
    size = os.fstat(file.fileno()).st_size
    return layout_of(file.name, header, size - 8 - len(header))


def layout_of(where: str, header: bytes, size: int) -> FileLayout:
    """Check a header against the bytes of its data; raises UnreadableAdapterError (HSW005)."""
    tensors, metadata = _usual(header, size) or _parse(where, header, size)
    return FileLayout(tensors, 8 + len(header), size, metadata)


def _parse(where: str, header: bytes, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Parse any header, entry by entry, so that a finding can name the tensor."""
    if not header.startswith(b"{"):
        raise damaged(where, "the header is not a JSON object")
    try:
        raw = parse_json(header)
    except ValueError as error:
        raise damaged(where, f"the header is not valid JSON: {error}") from error
    metadata = raw.pop("__metadata__", None) or {}
    if not _is_metadata(metadata):
        raise damaged(where, "the header's __metadata__ is not an object of texts")
    tensors = {}
    for name, entry in raw.items():
        problem = _name_problem(name) or _entry_problem(entry)
        if problem:
            raise damaged(where, f"tensor {name[:200]!a}: {problem}")
        tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
    problem = _layout_problem(tensors, size)
    if problem:
        raise damaged(where, problem)
    return tensors, metadata


def _usual(header: bytes, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]] | None:
    """Parse a header that is written as the safetensors library and json.dumps do; None for any other.

    Every character is looked at: a name with its dtype by a pattern, a shape as JSON, and offsets are
    compared with those that follow from dtypes and shapes when tensors lie in the header's order.
    """
    try:
        text = header.decode("utf-8")
        start = _METADATA.match(text)
        metadata, at = _DECODER.raw_decode(text, start.end()) if start else ({}, 1)
        rest = text[at:] if start else f",{text[1:]}"
        # '},"name":{"dtype":"F32","shape":[2,3', ',"data_offsets":[0,24', '},"name":..., '}}'
        pieces = f"}}{rest}".split("]", len(text) // _SHORTEST)
        if pieces[-1].rstrip(" ") != "}}":
            return None
        heads, _, lists = zip(*[piece.rpartition("[") for piece in pieces[:-1:2]], strict=True)
        names, dtypes = for_names(_names_and_dtypes, heads)
        shapes, sizes = zip(*map(cache(_shape_and_size), dtypes, lists), strict=True)
    except (ValueError, RecursionError):
        return None
    ends = [*accumulate(sizes)]
    offsets = _OFFSETS.fullmatch(pieces[1])
    if offsets is None or not _is_metadata(metadata) or ends[-1] != size:
        return None
    starts = [0, *ends[:-1]]
    expected = "{}%d{}%d]".format(*offsets.groups()) * len(ends)
    expected %= (*chain.from_iterable(zip(starts, ends, strict=True)),)
    if text[0] != "{" or "]".join(pieces[1::2]) + "]" != expected:
        return None
    rows = zip(dtypes, shapes, starts, ends, strict=True)
    infos = map(tuple.__new__, repeat(TensorInfo), rows)  # half the time of calling TensorInfo
    return dict(zip(names, infos, strict=True)), metadata


@lru_cache(maxsize=32)
def _names_and_dtypes(heads: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and dtypes in what stands before the shapes; raises ValueError when one may be wrong."""
    found = [*map(_HEAD.fullmatch, heads)]
    pairs = [match.groups() for match in found if match is not None]
    names, dtypes = zip(*pairs, strict=True)
    distinct = {*names} - {"__metadata__"}
    if len(distinct) != len(heads) or any(map(_name_problem, names)) or not {*dtypes} <= {*BITS}:
        raise ValueError("not the usual names and dtypes")
    return names, dtypes


def _shape_and_size(dtype: str, listed: str) -> tuple[tuple[int, ...], int]:
    """A shape and its bytes; raises ValueError when it is not one."""
    shape = json.loads(f"[{listed}]")
    size, part = divmod(math.prod(shape) * BITS[dtype], 8) if _sizes(shape) else (0, 1)
    if part:
        raise ValueError("not a shape of whole bytes")
    return tuple(shape), size


def for_names(judge: _lru_cache_wrapper[_T], names: tuple[str, ...]) -> _T:
    """Ask a cached function about the names of a file, which are those of many adapters; not of huge ones."""
    return judge(names) if len(names) <= _MOST_NAMES else judge.__wrapped__(names)


def _is_metadata(value: Any) -> bool:
    return isinstance(value, dict) and all(type(text) is str for text in value.values())


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
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _sizes(offsets) or len(offsets) != 2:
        return "data_offsets must be a list of sizes, two of them"
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"unknown dtype {ascii(dtype)[:40]}"
    if not _sizes(shape):
        return "shape must be a list of sizes"
    bits, span = math.prod(shape) * BITS[dtype], offsets[1] - offsets[0]
    if bits != span * 8:
        return (
            f"shape {shape} of {dtype} takes {bits // 8} bytes, data_offsets {offsets} span {span}"
        )
    return None


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and {*map(type, value)} <= {int}
        and 0 <= min(value, default=0) <= max(value, default=0) < 2**63
    )


def _layout_problem(tensors: dict[str, TensorInfo], size: int) -> str | None:
    position = 0
    for name, (_, _, start, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if end > size:
            text = f"tensor {name!r} ends at byte {end} of the data, but only {size} are there: "
            return text + "the file is truncated"
        if start != position:
            what = "overlaps the one before it" if start < position else "follows a hole"
            return f"tensor {name!r} {what}: it starts at {start}, expected {position}"
        position = end
    if position != size:
        return f"{size - position} bytes at the end of the file belong to no tensor"
    return None
