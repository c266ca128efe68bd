"""The adapter folders that a command is given."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

import typer

from hotswap.cli.terminal import say


def adapter_folders(command: str, words: Iterable[str]) -> list[str]:
    """Expand the patterns that the shell left alone; exit with 2 when one matches no folder."""
    folders: list[str] = []
    unmatched: list[str] = []
    for word in words:
        if not glob.has_magic(word) or Path(word).exists():
            folders.append(word)
            continue
        found = sorted(path for path in glob.glob(word, recursive=True) if Path(path).is_dir())
        folders += found
        if not found:
            unmatched.append(word)
    for pattern in unmatched:
        say(f"hotswap {command}: no folder matches {pattern!r}", error=True)
    if unmatched:
        raise typer.Exit(2)
    return folders
