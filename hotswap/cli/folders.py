"""The adapter folders that a command is given."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import WEIGHTS
from hotswap.cli.command import Exit
from hotswap.cli.terminal import say


def adapter_folders(command: str, words: Iterable[str]) -> list[str]:
    """Expand the patterns that the shell left alone to folders; exit with 2 when one matches none."""
    return _expanded(command, words, lambda path: path.is_dir())


def adapter_paths(command: str, words: Iterable[str]) -> list[str]:
    """The same for commands that take folders and ``.safetensors`` files; no adapter is named twice.

    A file of a PEFT folder means the folder: pre-commit passes the files that changed.
    """
    found = _expanded(command, words, lambda path: path.is_dir() or path.suffix == ".safetensors")
    return list(dict.fromkeys(map(_adapter, found)))


def as_patterns(words: Iterable[str]) -> list[str]:
    """The words with a pattern for those that are all folders of one place, or all that begin alike."""
    together: dict[str, list[str]] = {}
    for word in words:
        together.setdefault(os.path.dirname(word), []).append(word)
    found: list[str] = []
    for place, some in together.items():
        starts = dict.fromkeys((os.path.join(place, ""), os.path.commonprefix(some)))  # noqa: RUF071  (of characters)
        patterns = [f"{glob.escape(start)}*" for start in starts] if len(some) > 1 else []
        found += next(([one] for one in patterns if _folders_of(one) == set(some)), some)
    return found


def _folders_of(pattern: str) -> set[str]:
    return {path for path in glob.glob(pattern) if os.path.isdir(path)}


def _adapter(word: str) -> str:
    folder, name = os.path.split(word)
    return (folder or ".") if name in (CONFIG, WEIGHTS) and os.path.isfile(word) else word


def _expanded(command: str, words: Iterable[str], wanted: Callable[[Path], bool]) -> list[str]:
    folders: list[str] = []
    unmatched: list[str] = []
    for word in words:
        if not glob.has_magic(word) or Path(word).exists():
            folders.append(word)
            continue
        found = sorted(path for path in glob.glob(word, recursive=True) if wanted(Path(path)))
        folders += found
        if not found:
            unmatched.append(word)
    for pattern in unmatched:
        say(f"hotswap {command}: no folder matches {pattern!r}", error=True)
    if unmatched:
        raise Exit(2)
    return folders
