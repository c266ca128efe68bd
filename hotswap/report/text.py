"""The report of ``hotswap verify`` in the terminal: tables of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hotswap.report.records import Record


def printable(words: str) -> str:
    """Replace what a terminal would obey and XML has no place for: control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in words)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out cells in columns as wide as their widest cell, whatever the terminal."""
    cells = [head, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join([title, *(f"  {'  '.join(row)}".rstrip() for row in padded)])


def adapter_table(rows: Iterable[Record]) -> str:
    """Render what was found about each adapter."""
    head = ("adapter", "swapped = fresh load", "effect", "recompiles", "compiled ran", "storage")
    return table("Adapters", head, map(_adapter_cells, rows))


def law_table(rows: Sequence[Record]) -> str:
    """Render what became of the laws, and below them why any of them failed."""
    head = ("law", "state", "control", "statement")
    text = table(
        "Laws", ("law", "outcome", *head[2:]), [[row[key] for key in head] for row in rows]
    )
    return "\n".join([text, *(f"  {r['law']}: {r['message']}" for r in rows if r["message"])])


def timing_table(timing: Record) -> str:
    """Render what hotswap.bench.timing measured; a row that failed says why."""
    head = ("", "first inference", "adapter swap", "slowest swap", "recompiles")
    rows = timing.get("rows", ())
    title = f"Timing (backend {timing.get('backend', '?')}; a swap includes the next inference)"
    text = table(title, head, map(_timing_cells, rows)) if rows else title
    reasons = [f"  {r['row']}: {r['error']}" for r in rows if r.get("error")]
    if timing.get("error"):
        reasons.append(f"  not measured: {timing['error']}")
    return "\n".join([text, *reasons])


def _adapter_cells(row: Record) -> list[str]:
    error, effect, hits, moved = (row[key] for key in ("max_error", "effect", "hits", "moved"))
    storage = {"passed": "stayed put", "failed": f"moved ({moved or '?'})"}
    return [
        row["name"],
        row["equals_load"] + _of(error, f" of {row['tolerance'] or 0:.1e}"),
        row["has_effect"] + _of(effect),
        "not run" if row["recompiles"] is None else str(row["recompiles"]),
        "not run" if hits is None else f"{hits} times",
        storage.get(row["in_place"], row["in_place"]),
    ]


def _of(size: float | None, more: str = "") -> str:
    return "" if size is None else f" ({size:.1e}{more})"


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
