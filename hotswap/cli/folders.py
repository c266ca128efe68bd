"""The adapter folders that a command is given."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from pathlib import Path

from hotswap.cli.command import Exit
from hotswap.cli.terminal import say


def adapter_folders(command: str, words: Iterable[str]) -> list[str]:
    """Expand the patterns that the shell left alone to folders; exit with 2 when one matches none."""
    return _expanded(command, words, lambda path: path.is_dir())


def adapter_paths(command: str, words: Iterable[str]) -> list[str]:
    """The same for commands that take folders and ``.safetensors`` files."""
    return _expanded(command, words, lambda path: path.is_dir() or path.suffix == ".safetensors")


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
