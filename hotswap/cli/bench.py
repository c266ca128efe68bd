"""``hotswap bench``: what a swap costs on this machine, beside PEFT's functions and a plain copy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click import option

from hotswap.adapters.planner import plan as plan_fleet
from hotswap.cli.command import FILE, SEVERAL, Command, Exit
from hotswap.cli.cuts import cuts_given
from hotswap.cli.folders import adapter_folders
from hotswap.cli.plan_text import shared_memory
from hotswap.cli.terminal import say
from hotswap.documents import read_document
from hotswap.errors import HotswapError
from hotswap.report import text

ONE, FIVE, RATIO = click.IntRange(min=1), click.IntRange(min=5), click.FloatRange(min=1.0)


@click.command(cls=Command)
@option("--base", metavar="PATH", help="Your own base model: a folder or a hub id.")
@option(
    "--adapters", multiple=True, metavar="PATTERN", help="Two or more adapters of it (repeatable)."
)
@option("--tp", type=SEVERAL, help="Say what each of so many devices holds that share --base.")
@option("--runs", type=FIVE, default=30, help="Alternating runs of each side of a comparison.")
@option("--swaps", type=ONE, default=10_000, help="Swaps after which growth is measured.")
@option("--threads", type=ONE, default=2, help="Threads of torch.")
@option(
    "--forward/--no-forward", default=True, help="Compile and time forwards too (some minutes)."
)
@option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@option("--output", "-o", type=FILE, help="Write the JSON there.")
@option(
    "--compare",
    type=FILE,
    metavar="OLD",
    help="Compare with an earlier JSON; exit with 1 if slower.",
)
@option(
    "--threshold", type=RATIO, default=1.25, help="How many times slower a row may be than in OLD."
)
@option("--targets", is_flag=True, hidden=True)  # for developers: what each row is held to
def bench(
    *,
    tp: int | None,
    threads: int,
    as_json: bool,
    output: Path | None,
    compare: Path | None,
    threshold: float,
    targets: bool,
    **wanted: Any,
) -> None:
    """Measure swaps of LoRA adapters of 13.4 and 53.5 MB, or of your own.

    Both sides of a row run in turn in one process; a ratio is the median of those of the pairs, with its
    95 % confidence interval. With --compare the exit code is 1 when a row has become slower, beside what
    it is compared with, than the threshold allows: the whole interval has to lie past it, and the speed of
    the machine cancels out.
    """
    old = _read(compare) if compare else None
    wanted["adapters"] = folders = adapter_folders("bench", wanted["adapters"])
    if (wanted["base"] is None) != (not folders) or len(folders) == 1:
        say("hotswap bench: give --base with at least two --adapters, or neither", error=True)
        raise Exit(2)
    shared = _shared(wanted["base"], folders, tp) if tp is not None else {}
    import torch

    from hotswap.bench.swaps import measure

    torch.set_num_threads(threads)
    document = measure(**wanted, told=lambda name: say(f"measured: {name}", error=True)) | shared
    told = json.dumps(document, indent=2)
    if output is not None:
        output.write_text(f"{told}\n", encoding="utf-8")
    say(told if as_json else _table(document, targets=targets))
    if old is not None:
        lines, slower = compared(old, document, threshold)
        say("", *lines, error=as_json)
        raise Exit(1 if slower else 0)


def _shared(base: str | None, folders: Sequence[str], devices: int) -> dict[str, Any]:
    """What each of some devices would hold; before anything is measured, as it may be refused."""
    if base is None:
        say(
            f"hotswap bench: --tp {devices}: give the model that is cut with --base and --adapters",
            error=True,
        )
        raise Exit(2)
    cuts = cuts_given("bench", base, devices)
    return {"tensor_parallel": shared_memory(plan_fleet(folders), cuts, devices)}


def compared(
    old: dict[str, Any], new: dict[str, Any], threshold: float
) -> tuple[list[str], list[str]]:
    """Say of each row how many times slower it is than it was; give the names of those past it.

    A row is past it when even the least that the two intervals of its ratio leave open is.
    """
    before = {row["name"]: row for row in old["rows"]}
    cells, slower = [], []
    for row in new["rows"]:
        was = before.get(row["name"])
        if was is None:
            cells.append((row["name"], "-", "-", "new"))
            continue
        then, now = (was, row) if row["faster"] else (row, was)
        (then_low, then_high), (now_low, now_high) = then["interval"], now["interval"]
        times, low, high = then["ratio"] / now["ratio"], then_low / now_high, then_high / now_low
        past = low > threshold
        slower += [row["name"]] if past else []
        told = f"slower than {threshold:g} x" if past else ""
        cells.append((row["name"], f"{times:.2f}", f"{low:.2f} to {high:.2f}", told))
    gone = before.keys() - {row["name"] for row in new["rows"]}
    cells += [(name, "-", "-", "not measured any more") for name in sorted(gone)]
    head = ("", "times slower", "interval", "")
    return [text.table("Compared with before, each beside its other side", head, cells)], slower


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(read_document(path))
        _ = [(row["name"], row["ratio"], *row["interval"]) for row in document["rows"]]
    except HotswapError as error:
        raise HotswapError(f"--compare {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = "is not what hotswap bench --json writes; give such a file"
        raise HotswapError(f"--compare {path}: {problem}") from error
    return document


def _table(found: dict[str, Any], *, targets: bool) -> str:
    head = ("", "hotswap", "beside", "ratio", "95 % interval", *(("bar", "aim") if targets else ()))
    title = f"Swaps ({found['threads']} threads; medians of alternating runs)"
    cells = [[*_cells(row), *(_held_to(row) if targets else ())] for row in found["rows"]]
    lines = [text.table(title, head, cells), ""]
    backend, held, planned = found["backend"], found["held"], found["planned"]
    if found["padding"]:
        title = f"Room for more: the smallest adapter over target rank (backend {backend})"
        rows = []
        for p in found["padding"]:
            median, low, high = (f"{seconds * 1e3:.2f}" for seconds in (p["forward"], *p["spread"]))
            size = f"{p['bytes'] / 1e6:.1f} MB"
            rows.append((str(p["target_rank"]), f"{median} ms", f"{low} to {high} ms", size))
        lines += [text.table(title, ("target rank", "forward", "quartiles", "held"), rows), ""]
    if found["serving"]:
        lines += [text.timing_table({"backend": backend, "rows": found["serving"]}), ""]
    same = "as planned" if held == planned else f"planned: {planned}"
    lines.append(f"A prepared model holds {held} bytes for its adapter ({same}).")
    if (cut := found.get("tensor_parallel")) is not None:
        per = f"{cut['bytes_per_rank']} of {cut['bytes']} bytes"
        lines.append(f"Cut over {cut['ranks']} ranks, as transformers does, each holds {per}.")
    lines.append(f"{found['swaps']} swaps later tensors take {found['growth']} bytes more.")
    return "\n".join([*lines, *(f"not measured: {note}" for note in found["notes"])])


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["interval"]
    return [
        row["name"],
        f"{row['ours'] * 1e3:.2f} ms",
        f"{row['theirs'] * 1e3:.2f} ms",
        f"{row['ratio']:.2f} x{' faster' if row['faster'] else ''}",
        f"{low:.2f} to {high:.2f}",
    ]


def _held_to(row: dict[str, Any]) -> list[str]:
    """The bar, whether the ratio reaches it, and the aim behind it."""
    bar, ratio = row["bar"], row["ratio"]
    reached = bar is None or (ratio >= bar if row["faster"] else ratio <= bar)
    sign, missed = ">=" if row["faster"] else "<=", "" if reached else " (not reached)"
    return [
        "-" if bar is None else f"{sign} {bar:g}{missed}",
        "-" if row["aim"] is None else f"{row['aim']:g}",
    ]
