"""The report of ``hotswap verify`` in the terminal: tables of plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from textwrap import wrap

from hotswap.findings import printable
from hotswap.report.records import Record

WIDTH = 80
"""Columns that a table takes, unless a single word needs more."""

MOST = 20
"""Adapters, and warnings, that a terminal shows; the report has all."""

_STATES = {"failed": "failed", "not run": "did not run", "passed": "passed"}
"""The states of an adapter, the worst first."""


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out cells in columns; cells of the widest ones are broken between words to keep to 80."""
    cells = [head, *([printable(cell) for cell in row] for row in rows)]
    columns = [*zip(*cells, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    least = [
        max(len(word) for cell in column for word in [*cell.split(), ""]) for column in columns
    ]
    over = sum(widths) + 2 * len(widths) - WIDTH
    for _ in range(over if sum(widths) - sum(least) >= over else 0):
        widths[max(range(len(widths)), key=lambda n: (widths[n] > least[n], widths[n]))] -= 1
    lines = [line for row in cells for line in _broken(row, widths)]
    at = len(_broken(head, widths))
    lines.insert(at, ["-" * width for width in widths])
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join([title, *(f"  {'  '.join(line)}".rstrip() for line in padded)])


def _broken(row: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """The lines of a row; spaces within a cell that fits stay."""
    parts = [
        [cell] if len(cell) <= width else wrap(cell, width, break_on_hyphens=False)
        for cell, width in zip(row, widths, strict=True)
    ]
    return [list(line) for line in zip_longest(*parts, fillvalue="")]


def adapter_table(rows: Iterable[Record]) -> str:
    """Render what was found about each adapter; of many, what is wrong comes first, and few are shown."""
    head = ("adapter", "swapped = fresh load", "effect", "recompiles", "storage")
    found = [*rows]
    if len(found) > MOST:
        found.sort(key=lambda row: [*_STATES].index(row["verdict"]))
    told = table("Adapters", head, map(_adapter_cells, found[:MOST]))
    states = Counter(row["verdict"] for row in found[MOST:])
    more = ", ".join(f"{count} that {_STATES[state]}" for state, count in states.items())
    return f"{told}\n  and {more}" if more else told


def warning_lines(warnings: Sequence[str]) -> list[str]:
    """Render warnings; of many, few are shown."""
    more = len(warnings) - MOST
    lines = [f"warning: {warning}" for warning in warnings[:MOST]]
    return [*lines, f"and {more} more warning{'s' if more > 1 else ''}"] if more > 0 else lines


def law_table(rows: Sequence[Record], reasons: Sequence[Record] = ()) -> str:
    """Render what became of the laws, and below them why any of them failed, and what to do."""
    cells = [(row["law"], row["state"], row["control"]) for row in rows]
    lines = [table("Laws", ("law", "outcome", "control"), cells)]
    remedies = {reason.get("law"): reason["remedy"] for reason in reasons}
    for row in rows:
        if row["message"]:
            lines.append(f"  {row['law']}: {row['message']}")
            lines += [f"    to do: {remedies[row['law']]}"] if remedies.get(row["law"]) else []
    return "\n".join(lines)


def timing_table(timing: Record) -> str:
    """Render what hotswap.bench.timing measured; a row that failed says why."""
    head = ("", "first inference", "adapter swap", "slowest swap", "recompiles")
    rows = timing.get("rows", ())
    title = f"Timing (backend {timing.get('backend', '?')}; a swap includes the next inference)"
    text = table(title, head, map(_timing_cells, rows)) if rows else "Timing"
    reasons = [f"  {r['row']}: {r['error']}" for r in rows if r.get("error")]
    if timing.get("error"):
        reasons.append(f"  not measured: {timing['error']}")
    return "\n".join([text, *reasons])


def _adapter_cells(row: Record) -> list[str]:
    error, effect, hits, moved = (row[key] for key in ("max_error", "effect", "hits", "moved"))
    storage = {"passed": "stayed put", "failed": f"moved ({moved or '?'})"}
    return [
        row["name"],
        row["equals_load"] + _of(error, f" of {row['tolerance'] or 0:.0e}"),
        row["has_effect"] + _of(effect),
        "not run" if row["recompiles"] is None else f"{row['recompiles']} in {hits or 0} calls",
        storage.get(row["in_place"], row["in_place"]),
    ]


def _of(size: float | None, more: str = "") -> str:
    return "" if size is None else f" ({size:.0e}{more})"


def _timing_cells(row: Record) -> list[str]:
    if row.get("error"):
        return [row["row"], *["failed"] * 4]
    seconds = [_duration(row[key]) for key in ("first_inference", "swap", "slowest_swap")]
    recompiles = row.get("recompiles")
    return [
        row["row"],
        *seconds,
        "-" if recompiles is None else f"{recompiles} in {row['swaps']} swaps",
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
