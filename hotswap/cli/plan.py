"""``hotswap plan``: what a fleet of adapters needs in order to be swapped without a recompile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from click import option

from hotswap.adapters.pipeline_folder import read_pipeline_folder
from hotswap.adapters.plan import SwapPlan
from hotswap.adapters.planner import plan as plan_fleet
from hotswap.cli import plot as picture
from hotswap.cli.command import FILE, FOLDER, SEVERAL, Command, Exit
from hotswap.cli.cuts import cuts_given
from hotswap.cli.folders import adapter_paths
from hotswap.cli.options import PICKLE
from hotswap.cli.plan_text import per_rank, sections, shared_memory
from hotswap.cli.terminal import progress_bar, say

EPILOG = """\b
Examples:
  hotswap plan adapters/a adapters/b
  hotswap plan 'adapters/*' -o hotswap-plan.json --plot plan.svg
  hotswap plan 'adapters/*' --base path/to/base --tp 2

Exit codes: 0, every adapter fits; 1, one cannot be read or does not fit the others; 2, wrong usage.
"""
_TP_NEEDS = "the config of the model says along which axes it is cut; give its folder with --base"


@click.command(
    cls=Command,
    arguments={"ADAPTER": "Adapter folders, files, hub ids, or patterns."},
    epilog=EPILOG,
)
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
@option("--output", "-o", type=FILE, help="Save the plan (hotswap-plan.json).")
@option("--plot", type=FILE, help="Draw the curve: FILE.svg or FILE.png.")
@option(
    "--base",
    type=FOLDER,
    help="Folder of the pipeline that the files are for, or with --tp of the model.",
)
@option("--tp", type=SEVERAL, help="Say what each of so many devices holds that share the model.")
@PICKLE
@option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(
    adapters: tuple[str, ...],
    output: Path | None,
    plot: Path | None,
    base: Path | None,
    tp: int | None,
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
    if tp is not None and (base is None or read_pipeline_folder(base)):
        say(f"hotswap plan: --tp {tp}: {_TP_NEEDS}", error=True)
        raise Exit(2)
    paths = adapter_paths("plan", adapters)
    with progress_bar(len(paths)) as progress:
        found = plan_fleet(
            _counted(paths, progress),
            base=base if tp is None else None,
            allow_pickle=allow_pickle,
        )
    if not found.conflicts:  # files first: whoever reads the text may stop reading
        if plot is not None:
            _write(plot, lambda: picture.plot(found, plot), "--plot")
        if output is not None:
            _write(output, lambda: found.save(output), "-o")
    shared = _shared(found, base, tp) if tp is not None and base is not None else {}
    if as_json:
        say(json.dumps(found.to_dict() | shared, indent=2))
    else:
        say(
            found,
            "",
            *([per_rank(shared["tensor_parallel"]), ""] if shared else []),
            sections(found),
        )
    if found.conflicts:
        if as_json:
            say(*found.conflicts, error=True)
        if output is not None:
            say(f"hotswap plan: {output} is not written, there are conflicts", error=True)
        raise Exit(1)


def _shared(found: SwapPlan, base: Path, devices: int) -> dict[str, Any]:
    cuts = cuts_given("plan", base, devices)
    return {"tensor_parallel": shared_memory(found, cuts, devices)}


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
