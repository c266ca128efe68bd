"""``hotswap bench``: what a swap costs on this machine, beside PEFT's functions and a plain copy."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hotswap.report import text

if TYPE_CHECKING:
    from hotswap.checks.bench import Bench, Row


def bench(
    runs: Annotated[
        int, typer.Option("--runs", min=5, help="Alternating runs of each side of a comparison.")
    ] = 30,
    swaps: Annotated[
        int, typer.Option("--swaps", min=1, help="Swaps after which growth is measured.")
    ] = 10_000,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of torch.")] = 2,
    forward: Annotated[
        bool, typer.Option(help="Compile and time forwards too (about a minute).")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure swaps of LoRA adapters of 13.4 and 53.5 MB: medians of alternating runs in one process.

    The exit code is 0 whether the bars are reached or not: a figure is no test.
    """
    import torch

    from hotswap.checks.bench import Bench, measure

    torch.set_num_threads(threads)
    for found in measure(runs=runs, swaps=swaps, forward=forward):
        if isinstance(found, Bench):
            print(json.dumps(found.as_dict(), indent=2) if as_json else _table(found))
        else:
            print(f"measured: {found.name}", file=sys.stderr, flush=True)


def _table(found: Bench) -> str:
    head = ("", "hotswap", "compared with", "ratio", "quartiles", "bar", "aim")
    title = f"Swaps ({found.threads} threads; medians of alternating runs)"
    lines = [text.table(title, head, [_cells(row) for row in found.rows]), ""]
    same = "as planned" if found.held == found.planned else f"planned: {found.planned}"
    lines.append(f"A prepared model holds {found.held} bytes for its adapter ({same}).")
    lines.append(f"{found.swaps} swaps later tensors take {found.growth} bytes more.")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    sign, ratio = ("x faster", row.ratio) if row.faster else ("x", row.ratio)
    missed = "" if row.holds else " (not reached)"
    low, high = row.spread
    return (
        row.name,
        f"{row.ours * 1e3:.2f} ms",
        f"{row.theirs * 1e3:.2f} ms",
        f"{ratio:.2f} {sign}",
        f"{low:.2f} to {high:.2f}",
        f"{'>=' if row.faster else '<='} {row.bar:g}{missed}",
        "-" if row.aim is None else f"{row.aim:g}",
    )
