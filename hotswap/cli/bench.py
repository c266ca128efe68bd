"""``hotswap bench``: what a swap costs on this machine, beside PEFT's functions and a plain copy."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hotswap.cli.command import Exit, Option
from hotswap.cli.folders import adapter_folders
from hotswap.cli.terminal import say
from hotswap.errors import HotswapError
from hotswap.report import text

if TYPE_CHECKING:
    from hotswap.bench.swaps import Bench, Row


def bench(
    base: Annotated[
        str | None, Option(metavar="PATH", help="Your own base model: a folder or a hub id.")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        Option(metavar="PATTERN", help="Two or more adapters of it (repeatable)."),
    ] = None,
    runs: Annotated[
        int, Option("--runs", min=5, help="Alternating runs of each side of a comparison.")
    ] = 30,
    swaps: Annotated[
        int, Option("--swaps", min=1, help="Swaps after which growth is measured.")
    ] = 10_000,
    threads: Annotated[int, Option("--threads", min=1, help="Threads of torch.")] = 2,
    forward: Annotated[bool, Option(help="Compile and time forwards too (some minutes).")] = True,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="Write the JSON there.")
    ] = None,
    compare: Annotated[
        Path | None,
        Option(metavar="OLD", help="Print ratios to an earlier JSON; exit with 1 past it."),
    ] = None,
    threshold: Annotated[
        float, Option(min=1.0, help="How many times slower a row may be than in OLD.")
    ] = 1.25,
) -> None:
    """Measure swaps of LoRA adapters of 13.4 and 53.5 MB, or of your own.

    Both sides of a row run in turn in one process; the figures are medians, with quartiles. Rows with
    a bar say whether it is reached; the exit code is 0 either way: a figure is no test. With --compare
    it is 1 when a row has become slower, beside what it is compared with, than the threshold allows:
    the speed of the machine cancels out.
    """
    old = _read(compare) if compare else None
    folders = _folders(base, adapters or [])
    import torch

    from hotswap.bench.swaps import Bench, measure

    torch.set_num_threads(threads)
    for found in measure(runs=runs, swaps=swaps, forward=forward, base=base, adapters=folders):
        if not isinstance(found, Bench):
            print(f"measured: {found.name}", file=sys.stderr, flush=True)
            continue
        document = found.as_dict()
        if output is not None:
            output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        say(json.dumps(document, indent=2) if as_json else _table(found))
        if old is not None:
            lines, slower = compared(old, document, threshold)
            say("", *lines, error=as_json)
            raise Exit(1 if slower else 0)


def compared(
    old: dict[str, Any], new: dict[str, Any], threshold: float
) -> tuple[list[str], list[str]]:
    """Say of each row how many times slower it is than it was; give the names of those past it."""
    before = {row["name"]: row for row in old["rows"]}
    cells, slower = [], []
    for row in new["rows"]:
        was = before.get(row["name"])
        if was is None:
            cells.append((row["name"], "-", "-", "new"))
            continue
        seconds = row["ours"] / was["ours"]
        relative = seconds / (row["theirs"] / was["theirs"])
        past = relative > threshold
        slower += [row["name"]] if past else []
        told = f"slower than {threshold:g} x" if past else ""
        cells.append((row["name"], f"{seconds:.2f}", f"{relative:.2f}", told))
    gone = before.keys() - {row["name"] for row in new["rows"]}
    cells += [(name, "-", "-", "not measured any more") for name in sorted(gone)]
    head = ("", "seconds, new / old", "beside the other side", "")
    return [text.table("Compared with before", head, cells)], slower


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        _ = [(row["name"], row["ours"], row["theirs"]) for row in document["rows"]]
    except OSError as error:
        raise HotswapError(f"--compare {path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HotswapError(
            f"--compare {path}: is not what hotswap bench --json writes; give such a file"
        ) from error
    found: dict[str, Any] = document
    return found


def _folders(base: str | None, patterns: list[str]) -> list[str]:
    folders = adapter_folders("bench", patterns)
    if (base is None) != (not folders) or len(folders) == 1:
        say("hotswap bench: give --base with at least two --adapters, or neither", error=True)
        raise Exit(2)
    return folders


def _table(found: Bench) -> str:
    head = ("", "hotswap", "compared with", "ratio", "quartiles", "bar", "aim")
    title = f"Swaps ({found.threads} threads; medians of alternating runs)"
    lines = [text.table(title, head, [_cells(row) for row in found.rows]), ""]
    if found.padding:
        title = f"Room for more: the smallest adapter over target rank (backend {found.backend})"
        rows = [
            (
                str(p.target_rank),
                f"{p.forward * 1e3:.2f} ms",
                f"{p.spread[0] * 1e3:.2f} to {p.spread[1] * 1e3:.2f} ms",
                f"{p.bytes / 1e6:.1f} MB",
            )
            for p in found.padding
        ]
        lines += [text.table(title, ("target rank", "forward", "quartiles", "held"), rows), ""]
    if found.serving:
        serving = {"backend": found.backend, "rows": [asdict(row) for row in found.serving]}
        lines += [text.timing_table(serving), ""]
    same = "as planned" if found.held == found.planned else f"planned: {found.planned}"
    lines.append(f"A prepared model holds {found.held} bytes for its adapter ({same}).")
    lines.append(f"{found.swaps} swaps later tensors take {found.growth} bytes more.")
    return "\n".join([*lines, *(f"not measured: {note}" for note in found.notes)])


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
        "-" if row.bar is None else f"{'>=' if row.faster else '<='} {row.bar:g}{missed}",
        "-" if row.aim is None else f"{row.aim:g}",
    )
