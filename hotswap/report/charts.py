"""The report's pictures: SVG that takes its colours from the page, drawn with matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

STYLE = ("ink", "line", "good", "bad", "one", "two", "three")
INK, GRID, GOOD, BAD, ONE, TWO, THREE = STAND_INS = [f"#0{n}0{n}0{n}" for n in range(1, 8)]
"""Stand-ins that no one sees: each becomes a variable of the page's style, so dark mode is a rule."""
LARGEST = 60
"""Rows and columns that the heat map labels; above, layers are joined and labels left out."""
MOST_ROWS, MOST_NUMBERED, MOST_LABELS = 200, 16, 30
"""Rows and labels of adapters that the heat map has room for, and up to how many each cell says its rank."""
CELL = "cell"


def rank_map(adapters: Sequence[dict[str, Any]]) -> str:
    """Draw module by adapter, coloured by rank; an empty cell is a module that is not targeted."""
    named = [a for a in adapters if a["module_ranks"]]
    rows = sorted({module for a in named for module in a["module_ranks"]}, key=_natural)
    join = len(rows) > LARGEST
    cells: dict[tuple[str, int], int] = {}
    for column, adapter in enumerate(named):
        for module, rank in adapter["module_ranks"].items():
            key = (_family(module) if join else module, column)
            cells[key] = max(rank, cells.get(key, 0))
    rows = list(dict.fromkeys(_family(m) if join else m for m in rows))[:MOST_ROWS]
    cells = {key: rank for key, rank in cells.items() if key[0] in set(rows)}
    if not rows:
        return ""
    small = len(named) <= LARGEST and len(rows) * len(named) <= 1500
    figure, axes = _figure(8, min(1.2 + 0.22 * len(rows), 16))
    values = [[float(cells.get((row, c), "nan")) for c in range(len(named))] for row in rows]
    picture = axes.pcolormesh(values, cmap="viridis", edgecolors="none", rasterized=not small)
    picture.set_linewidth(0)
    axes.grid(visible=False)
    axes.invert_yaxis()
    if len(named) <= MOST_NUMBERED:
        lowest, highest = min(cells.values()), max(cells.values())
        for (row, column), rank in cells.items():
            tone = "white" if rank - lowest < 0.6 * (highest - lowest) else "black"
            place = (column + 0.5, rows.index(row) + 0.5)
            axes.text(*place, str(rank), ha="center", va="center", color=tone, gid=CELL, size=8)
    shown = [row if len(row) <= 40 else f"…{row[-39:]}" for row in rows]
    axes.set_yticks([n + 0.5 for n in range(len(rows))], shown)
    if small:
        labelled = range(0, len(named), math.ceil(len(named) / MOST_LABELS))
        labels = [named[n]["name"] for n in labelled]
        axes.set_xticks([n + 0.5 for n in labelled], labels, rotation=45, ha="right")
    else:
        axes.set_xlabel(f"{len(named)} adapters, in the order of the table")
    bar = figure.colorbar(picture, ax=axes, label="rank", pad=0.02)
    bar.outline.set_visible(False)
    axes.tick_params(length=0)
    return _svg(figure, "ranks", f"Rank of {len(rows)} modules in {len(named)} adapters")


def memory_curve(curve: Sequence[dict[str, int]], plan: dict[str, Any] | None) -> str:
    """Draw bytes over target rank, uniform and per module, with adapters admitted and the choice."""
    if not curve or plan is None:
        return ""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(8, 4.2)
    ranks = [point["rank"] for point in curve]
    unit, word = unit_of(max(point["uniform_bytes"] for point in curve))
    for key, label, colour, style in (
        ("uniform_bytes", "the same rank in every module", TWO, "--"),
        ("per_module_bytes", "a rank per module", ONE, "-"),
    ):
        axes.plot(ranks, [p[key] / unit for p in curve], style, color=colour, label=label)
    chosen, size = plan["target_rank"], plan["bytes"]["padded"] / unit
    axes.plot([chosen], [size], "o", color=GOOD, label=f"chosen: rank {chosen}, {size:.3g} {word}")
    axes.set(xlabel="target rank", ylabel=f"{word} held by the model")
    axes.set_ylim(bottom=0)
    other: Axes = axes.twinx()
    admitted = [p["admitted"] for p in curve]
    other.step(ranks, admitted, where="post", color=THREE, linestyle=":", label="adapters admitted")
    other.set(ylabel="adapters admitted", ylim=(0, max(admitted) * 1.08 + 0.1))
    other.yaxis.set_major_locator(MaxNLocator(integer=True))
    _bare(other)
    _legend(figure, [*axes.get_lines(), *other.get_lines()])
    return _svg(figure, "memory", "Memory of a prepared model over its target rank")


def latency_curves(series: Sequence[dict[str, Any]]) -> str:
    """Draw which share of the calls took how long, with p50, p95 and p99 marked on every line."""
    if not series:
        return ""
    figure, axes = _figure(8, 4.2)
    lines: list[Line2D] = []
    styles = {"hotswap": ONE, "PEFT": TWO, "a plain copy": THREE}
    for one in series:
        times = sorted(seconds * 1e3 for seconds in one["samples"])
        shares = [(n + 1) / len(times) for n in range(len(times))]
        colour = next((c for name, c in styles.items() if name in one["series"]), INK)
        line = "--" if "forward" in one["series"] else ":" if "bank" in one["series"] else "-"
        lines += axes.plot(times, shares, line, color=colour, label=one["series"])
        marks = [one[p] * 1e3 for p in ("p50", "p95", "p99")]
        axes.plot(marks, [0.5, 0.95, 0.99], "o", color=colour, markersize=4)
    axes.set(xlabel="milliseconds (log scale); dots: p50, p95, p99", ylabel="share of calls")
    axes.set(xscale="log", ylim=(0, 1.03))
    _legend(figure, lines)
    return _svg(figure, "latency", "Distribution of swap times")


def compile_timeline(compiles: Sequence[dict[str, Any]]) -> str:
    """Draw when what was compiled: first compiles, recompiles that a control provokes, and others."""
    if not compiles:
        return ""
    lanes = {
        "first compile": ([c for c in compiles if c["kind"] == "first"], ONE),
        "recompile, wanted": ([c for c in compiles if c["kind"] != "first" and c["wanted"]], THREE),
        "recompile or failure": ([c for c in compiles if not c["wanted"]], BAD),
    }
    figure, axes = _figure(8, 2.2)
    end = max(c["at"] + c["seconds"] for c in compiles)
    for height, (found, colour) in enumerate(lanes.values()):
        spans = [(c["at"], max(c["seconds"], end / 300)) for c in found]
        axes.broken_barh(spans, (height - 0.3, 0.6), facecolors=colour)
    axes.set_yticks(range(len(lanes)), [f"{name}: {len(f)}" for name, (f, _) in lanes.items()])
    axes.set(xlabel="seconds since the first test", ylim=(len(lanes) - 0.5, -0.5))
    return _svg(figure, "compiles", "When torch.compile compiled what")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "hotswap", "font.size": 10})
    mpl.rcParams["text.parse_math"] = False  # an adapter may be called $$
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    _bare(axes)
    return figure, axes


def _legend(figure: Figure, lines: Sequence[Line2D]) -> None:
    """Below the picture, where it covers nothing."""
    labels = [str(line.get_label()) for line in lines]
    figure.legend(lines, labels, loc="outside lower left", ncols=2, frameon=False)


def _bare(axes: Axes) -> None:
    axes.patch.set_alpha(0.0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _svg(figure: Figure, name: str, title: str) -> str:
    """Inline SVG: colours are the page's, ids carry the picture's name, text stays text."""
    from matplotlib.text import Text

    for words in figure.findobj(Text):
        if words.get_gid() != CELL:
            words.set_color(INK)
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to these
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in zip(STAND_INS, STYLE, strict=True):
        svg = svg.replace(stand_in, f"var(--{variable})")
    opening = f'<svg role="img" aria-label="{title}" class="chart"'
    svg = re.sub(r'^<svg ((?:width|height)="[^"]*" ?)*', f"{opening} ", svg, count=1)
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)


def _family(module: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module)


def _natural(module: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    parts = re.split(r"(\d+)", module)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def unit_of(size: int) -> tuple[int, str]:
    """The largest unit that a number of bytes reaches, in bytes, and its name."""
    units = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
    return next((unit for unit in units if size >= unit[0]), (1, "bytes"))
