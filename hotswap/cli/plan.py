"""``hotswap plan``: what a fleet of adapters needs in order to be swapped without a recompile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hotswap.adapters.plan import plan as plan_fleet
from hotswap.cli.folders import adapter_folders
from hotswap.cli.terminal import say

EPILOG = """\b
Examples:
  hotswap plan adapters/a adapters/b
  hotswap plan 'adapters/*' -o hotswap-plan.json

Exit codes: 0, every adapter fits; 1, one cannot be read or does not fit the others; 2, wrong usage.
"""


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
    """Find what a fleet of adapters needs to be hot-swapped.

    Says the target rank to prepare for, whether preparation is needed and why, the memory it
    costs, and which adapters do not fit. Reads headers only: no model is loaded.
    """
    found = plan_fleet(adapter_folders("plan", adapters))
    say(json.dumps(found.to_dict(), indent=2) if as_json else found)
    if found.conflicts:
        if as_json:
            say(*found.conflicts, error=True)
        if output is not None:
            say(f"hotswap plan: {output} is not written, there are conflicts", error=True)
        raise typer.Exit(1)
    if output is not None:
        try:
            found.save(output)
        except OSError as error:
            reason = f"cannot write {output}: {error.strerror}"
            say(f"hotswap plan: {reason}; give -o another file", error=True)
            raise typer.Exit(1) from error
        say(f"saved {output}", error=True)
