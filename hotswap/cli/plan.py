"""``hotswap plan``: what a fleet of adapters needs in order to be swapped without a recompile."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from hotswap.adapters.plan import plan as plan_fleet


def plan(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER", help="Adapter folders, or patterns like 'adapters/*'."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Save the plan (hotswap-plan.json)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Find the smallest preparation that every adapter fits in: target rank, need, memory, conflicts.

    Reads headers only. Exits with 1 when an adapter cannot be read or does not fit the others.
    """
    folders, unmatched = expand(adapters)
    if unmatched:
        for pattern in unmatched:
            say(f"hotswap plan: no folder matches {pattern!r}", error=True)
        raise typer.Exit(2)
    found = plan_fleet(folders)
    say(json.dumps(found.to_dict(), indent=2) if as_json else found)
    if found.conflicts:
        if as_json:
            say(*found.conflicts, error=True)
        if output is not None:
            say(f"hotswap plan: {output} is not written, there are conflicts", error=True)
        raise typer.Exit(1)
    if output is not None:
        found.save(output)
        say(f"saved {output}", error=True)


def expand(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Expand patterns that the shell left alone to folders; return those and the words that match none."""
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
    return folders, unmatched


def say(*lines: object, error: bool = False) -> None:
    """Print lines, with escapes for what the terminal's encoding lacks."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    for line in lines:
        print(str(line).encode(encoding, "backslashreplace").decode(encoding), file=stream)
