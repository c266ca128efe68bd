"""Files of strangers: opened without waiting for anybody, never changed while read, or a finding."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import NoReturn

from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
MAX_HEADER = 25_000_000
"""Bytes; a hundred times what adapters have, and a quarter of what the safetensors library reads."""


def open_weights(path: str | Path) -> BufferedReader:
    """Open a safetensors file, or the one in an adapter folder; raises UnreadableAdapterError."""
    place = os.path.join(path, WEIGHTS) if os.path.isdir(path) else str(path)
    try:
        return open_regular(place)
    except FileNotFoundError:
        _missing(Path(place))
    except OSError as error:
        _unreadable(place, error)


def open_regular(path: str | Path) -> BufferedReader:
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


def changed(path: str) -> UnreadableAdapterError:
    """The error for a file that is not what it was when it was opened (HSW009)."""
    text, remedy = "the file changed while it was read", "read it again when it is complete"
    return UnreadableAdapterError([Finding(path, "HSW009", text, remedy)])


def read_raw_header(file: BufferedReader) -> bytes:
    """Read the header's text from the start of an open file; raises UnreadableAdapterError (HSW005)."""
    try:
        size = os.fstat(file.fileno()).st_size
        length = _header_length(file.name, file.read(8), size)
        header = file.read(length)
    except OSError as error:
        _unreadable(file.name, error)
    if len(header) != length:
        raise changed(file.name)
    return header


def refuse(path: str, message: str, remedy: str = "save or download the file again") -> NoReturn:
    """Raise UnreadableAdapterError (HSW005) for a weights file."""
    raise UnreadableAdapterError([Finding(path, "HSW005", message, remedy)])


def _header_length(path: str, prefix: bytes, size: int) -> int:
    if len(prefix) < 8:
        refuse(path, f"the file is truncated: {size} bytes, a safetensors header needs at least 8")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        refuse(path, f"the header claims {length} bytes, more than {MAX_HEADER}: not safetensors")
    if length > size - 8:
        refuse(
            path, f"the file is truncated: its header claims {length} bytes, {size - 8} are left"
        )
    return length


def _unreadable(path: str, error: OSError) -> NoReturn:
    refuse(path, f"cannot be read: {error.strerror or error}", "check the file's permissions")


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


def _special(path: str | Path, kind: str) -> NoReturn:
    text, remedy = f"is a {kind}, expected a regular file", "put a regular file in its place"
    raise UnreadableAdapterError([Finding(str(path), "HSW007", text, remedy)])
