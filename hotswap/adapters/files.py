"""Files of strangers: opened without waiting for anybody, never changed while read, or a finding."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

WEIGHTS = "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
PICKLE = "adapter_model.bin"
DIFFUSERS_PICKLE = "pytorch_lora_weights.bin"
PICKLED = "the weights are a pickle, which can run code when it is loaded and is not read"
ALLOW_PICKLE = "save the adapter again as safetensors, or pass --allow-pickle (allow_pickle=True)"
_FETCH_AGAIN = "save or download the file again"
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # else a pipe waits for a writer
MAX_HEADER = 25_000_000
"""Bytes; a hundred times what adapters have, and a quarter of what the safetensors library reads."""
_OTHERS = (
    (b"version ", "is a Git LFS pointer, not the file itself", "run git lfs pull"),
    (
        b"<!doctyp",
        "is an HTML page, not the file itself",
        "download the file itself, and log in if it asks",
    ),
    (
        b"<html",
        "is an HTML page, not the file itself",
        "download the file itself, and log in if it asks",
    ),
    (b"gguf", "is a gguf file", "convert the adapter to PEFT's format; gguf is llama.cpp's"),
    (b"pk\x03\x04", PICKLED, "save the adapter again as safetensors: this is a file of torch.save"),
    (b"\x80\x02", PICKLED, "save the adapter again as safetensors: this is a file of torch.save"),
)
"""How files begin that are whole, but no safetensors; in small letters."""


def unreadable(where: str | Path, code: str, message: str, remedy: str) -> UnreadableAdapterError:
    """The error of one finding."""
    return UnreadableAdapterError([Finding(str(where), code, message, remedy)])


def damaged(where: str, message: str, remedy: str = _FETCH_AGAIN) -> UnreadableAdapterError:
    """The error for weights that are no safetensors file (HSW005)."""
    return unreadable(where, "HSW005", message, remedy)


def changed(path: str) -> UnreadableAdapterError:
    """The error for a file that is not what it was when it was opened (HSW009)."""
    text, remedy = "the file changed while it was read", "read it again when it is complete"
    return unreadable(path, "HSW009", text, remedy)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; raises ValueError, in a few words, also for deep nesting and for a name twice."""
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError((str(error) or type(error).__name__)[:120]) from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; raises ValueError when a name occurs twice, which parsers read differently."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {ascii(twice)[:60]} occurs twice")
    return found


def refuse_others(path: str | Path, start: bytes, *, pickles: bool = True) -> None:
    """Raise UnreadableAdapterError (HSW005/006) for the start of a file of another kind."""
    for known, what, remedy in _OTHERS:
        if start.lower().startswith(known) and (pickles or what != PICKLED):
            raise unreadable(path, "HSW006" if what == PICKLED else "HSW005", what, remedy)


def other_weights(folder: str | Path) -> list[str]:
    """The safetensors files in a folder, under names other than PEFT's."""
    try:
        names = sorted(os.listdir(folder))
        return [name for name in names if name.endswith(".safetensors") and name != WEIGHTS]
    except OSError:
        return []


def open_weights(path: str | Path) -> BufferedReader:
    """Open a safetensors file, or the one in an adapter folder; raises UnreadableAdapterError."""
    place = os.path.join(path, WEIGHTS) if os.path.isdir(path) else str(path)
    try:
        return open_regular(place)
    except FileNotFoundError:
        raise _missing(Path(place)) from None
    except OSError as error:
        raise _closed(place, error) from error


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file, never waiting for a pipe; raises OSError or UnreadableAdapterError (HSW007)."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _AT_ONCE))  # noqa: SIM115  (the caller closes it)
    except OSError as error:
        kind = {errno.ENXIO: "socket", errno.EISDIR: "folder"}.get(error.errno or 0)
        if kind is None:
            raise
        raise _special(path, kind) from error
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise _special(path, "pipe" if stat.S_ISFIFO(mode) else "device")
    return file


_SAME = ("st_ino", "st_dev", "st_size", "st_mtime_ns")


def unchanged(file: BufferedReader, before: os.stat_result) -> None:
    """Raise UnreadableAdapterError (HSW009) if an open file was written to since ``before``."""
    now = os.fstat(file.fileno())
    if any(getattr(now, key) != getattr(before, key) for key in _SAME):
        raise changed(file.name)


def read_raw_header(file: BufferedReader) -> bytes:
    """Read the header's text from the start of an open file; raises UnreadableAdapterError (HSW005)."""
    try:
        size = os.fstat(file.fileno()).st_size
        length = _header_length(file.name, file.read(8), size)
        header = file.read(length)
    except OSError as error:
        raise _closed(file.name, error) from error
    if len(header) != length:
        raise changed(file.name)
    return header


def _header_length(path: str, prefix: bytes, size: int) -> int:
    length, left = int.from_bytes(prefix, "little"), size - 8
    if length > min(left, MAX_HEADER):
        refuse_others(path, prefix)
    if len(prefix) < 8:
        text = f"the file is truncated: {size} bytes, a safetensors header needs at least 8"
    elif length > MAX_HEADER:
        text = f"the header claims {length} bytes, more than {MAX_HEADER}: not safetensors"
    elif length > left:
        text = f"the file is truncated: its header claims {length} bytes, {left} are left"
    else:
        return length
    raise damaged(path, text)


def _closed(path: str, error: OSError) -> UnreadableAdapterError:
    text = f"cannot be read: {error.strerror or error}"
    return damaged(path, text, "check the file's permissions")


def _missing(path: Path) -> UnreadableAdapterError:
    pickle = path.with_name(PICKLE)
    if pickle.is_file():
        return unreadable(pickle, "HSW006", PICKLED, ALLOW_PICKLE)
    text, remedy = (
        f"no {path.name} in the adapter folder",
        "save the adapter with model.save_pretrained(folder)",
    )
    if others := other_weights(path.parent):
        text = f"{text}, which has {', '.join(others[:5])}"
        remedy = f"pass {path.with_name(others[0])}"
    return unreadable(path, "HSW004", text, remedy)


def _special(path: str | Path, kind: str) -> UnreadableAdapterError:
    text, remedy = f"is a {kind}, expected a regular file", "put a regular file in its place"
    return unreadable(path, "HSW007", text, remedy)
