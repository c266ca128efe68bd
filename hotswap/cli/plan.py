"""``hotswap plan``: what a fleet of adapters needs in order to be swapped without a recompile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
from click import option

from hotswap.adapters.planner import plan as plan_fleet
from hotswap.cli import plot as picture
from hotswap.cli.command import FILE, FOLDER, Command, Exit
from hotswap.cli.folders import adapter_paths
from hotswap.cli.options import PICKLE
from hotswap.cli.plan_text import sections
from hotswap.cli.terminal import progress_bar, say

EPILOG = """\b
Examples:
  hotswap plan adapters/a adapters/b
  hotswap plan 'adapters/*' -o hotswap-plan.json --plot plan.svg

Exit codes: 0, every adapter fits; 1, one cannot be read or does not fit the others; 2, wrong usage.
"""


@click.command(
    cls=Command,
    arguments={"ADAPTER": "Adapter folders, files, hub ids, or patterns."},
    epilog=EPILOG,
)
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
@option("--output", "-o", type=FILE, help="Save the plan (hotswap-plan.json).")
@option("--plot", type=FILE, help="Draw the curve: FILE.svg or FILE.png.")
@option("--base", type=FOLDER, help="Folder of the pipeline that the files are for.")
@PICKLE
@option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(
    adapters: tuple[str, ...],
    output: Path | None,
    plot: Path | None,
    base: Path | None,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Find what a fleet of adapters needs to be hot-swapped.

    Says the target rank to prepare for, whether preparation is needed and why, which adapter to load
    first, the memory it costs for any number of adapters, what to write, and which adapters do not
    fit. Reads headers only: no model is loaded.
    """
    if plot is not None and plot.suffix not in picture.FORMATS:
        say(f"hotswap plan: --plot {plot}: expected a name in .svg or .png", error=True)
        raise Exit(2)
    paths = adapter_paths("plan", adapters)
    with progress_bar(len(paths)) as progress:
        found = plan_fleet(_counted(paths, progress), base=base, allow_pickle=allow_pickle)
    if not found.conflicts:  # files first: whoever reads the text may stop reading
        if plot is not None:
            _write(plot, lambda: picture.plot(found, plot), "--plot")
        if output is not None:
            _write(output, lambda: found.save(output), "-o")
    say(json.dumps(found.to_dict(), indent=2) if as_json else f"{found}\n\n{sections(found)}")
    if found.conflicts:
        if as_json:
            say(*found.conflicts, error=True)
        if output is not None:
            say(f"hotswap plan: {output} is not written, there are conflicts", error=True)
        raise Exit(1)


def _counted(paths: Iterable[str], progress: Callable[[int], None]) -> Iterator[str]:
    for done, path in enumerate(paths, 1):
        yield path
        progress(done)


def _write(path: Path, write: Callable[[], None], option: str) -> None:
    try:
        write()
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror or error}"
        say(f"hotswap plan: {reason}; give {option} another file", error=True)
        raise Exit(1) from error
    say(f"saved {path}", error=True)
