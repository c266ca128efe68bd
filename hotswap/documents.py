"""Documents that hotswap wrote (plans, reports), read from regular files only and up to a size."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hotswap.errors import HotswapError

LIMIT = 2**28
"""Bytes; a plan of 1,000 adapters has less than a hundredth of it."""


def read_document(path: str | Path) -> str:
    """Read a text, never waiting for a pipe or a device; raises HotswapError in one sentence."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise HotswapError(f"{path}: is no regular file; give a file that hotswap wrote")
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise HotswapError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > LIMIT:
        raise HotswapError(f"{path}: has more than {LIMIT} bytes; give a file that hotswap wrote")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HotswapError(f"{path}: is not UTF-8; give a file that hotswap wrote") from error


def _at_once(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
