"""The report's pictures: SVG that takes its colours from the page, drawn with matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hotswap.findings import printable
from hotswap.report.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

STYLE = ("ink", "line", "good", "bad", "one", "two", "three")
INK, GRID, GOOD, BAD, ONE, TWO, THREE = STAND_INS = [f"#0{n}0{n}0{n}" for n in range(1, 8)]
"""Stand-ins that no one sees: each becomes a variable of the page's style, so dark mode is a rule."""
MOST_ROWS, MOST_COLUMNS = 40, 24
"""Modules and adapters that the picture of ranks has room for; above, it joins them."""
LONGEST_ROW, LONGEST_COLUMN = 32, 20
"""Characters of a label."""
WIDTH = 6.0
"""Inches: text of 10 points is legible at the width of a phone, and not large at that of a page."""
CELL = "cell"


def ranks(adapters: Sequence[Record]) -> str:
    """Draw the rank of each module in each adapter; many modules are joined to families.

    Of more adapters than there is room for, each cell counts those that have a rank in a family.
    """
    named = [adapter for adapter in adapters if adapter["module_ranks"]]
    modules = sorted({m for adapter in named for m in adapter["module_ranks"]}, key=_natural)
    if not modules:
        return ""
    counted = is_counted(adapters)
    joins = _JOINS[1:] if counted else _JOINS
    join = next((j for j in joins if len({j(m) for m in modules}) <= MOST_ROWS), joins[-1])
    rows = {row: n for n, row in enumerate(list(dict.fromkeys(map(join, modules)))[:MOST_ROWS])}
    cells: dict[tuple[int, int], int] = {}
    for column, adapter in enumerate(named):
        for module, rank in adapter["module_ranks"].items():
            if (row := rows.get(join(module))) is not None:
                cells[row, column] = max(rank, cells.get((row, column), 0))
    if counted:
        present = sorted(set(cells.values()))
        counts = Counter((row, present.index(rank)) for (row, _), rank in cells.items())
        columns, of = [str(rank) for rank in present], f"Adapters by rank in {len(rows)} families"
        return _heat(list(rows), columns, counts, "adapters", f"{of} of modules", axis="rank")
    columns = [str(adapter["name"]) for adapter in named]
    title = f"Rank of {len(rows)} modules in {len(columns)} adapters"
    return _heat(list(rows), columns, cells, "rank", title)


def is_counted(adapters: Sequence[Record]) -> bool:
    """Tell whether there are more adapters than the picture of ranks has columns for."""
    return sum(bool(adapter["module_ranks"]) for adapter in adapters) > MOST_COLUMNS


def _heat(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], int],
    unit: str,
    title: str,
    axis: str | None = None,
) -> str:
    """Draw numbers by row and column, each as a colour; they are written too where they fit."""
    labels = [_label(column, LONGEST_COLUMN) for column in columns]
    longest = max(map(len, labels))
    turned = 0.06 * longest if longest > 4 else 0  # inches that labels on the slant take
    figure, axes = _figure(WIDTH, 1 + 0.2 * len(rows) + turned)
    values = [
        [float(cells.get((r, c), "nan")) for c in range(len(columns))] for r in range(len(rows))
    ]
    picture = axes.pcolormesh(values, cmap="viridis", edgecolors="none")
    picture.set_linewidth(0)
    axes.grid(visible=False)
    axes.invert_yaxis()
    lowest, highest = min(cells.values()), max(cells.values())
    for (row, column), number in cells.items() if len(columns) <= MOST_COLUMNS else ():
        tone = "white" if number - lowest < 0.6 * (highest - lowest) else "black"
        place = (column + 0.5, row + 0.5)
        axes.text(*place, str(number), ha="center", va="center", color=tone, gid=CELL, size=7)
    shown = [_label(row, LONGEST_ROW) for row in rows]
    turn: dict[str, Any] = {"rotation": 45, "ha": "right"} if turned else {}
    axes.set_yticks([n + 0.5 for n in range(len(rows))], shown)
    step = math.ceil(len(columns) / MOST_COLUMNS)
    axes.set_xticks([n + 0.5 for n in range(0, len(columns), step)], labels[::step], **turn)
    axes.set_xlabel(axis or "")
    bar = figure.colorbar(picture, ax=axes, label=unit, pad=0.02)
    bar.outline.set_visible(False)
    axes.tick_params(length=0)
    return _svg(figure, "ranks", title)


def memory_curve(curve: Sequence[dict[str, int]], plan: dict[str, Any] | None) -> str:
    """Draw bytes over target rank, uniform and per module, with adapters admitted and the choice."""
    if not curve or plan is None:
        return ""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(WIDTH, 3.4)
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
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = _figure(WIDTH, 3.4)
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
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own is mathematics
    axes.xaxis.set_minor_formatter(NullFormatter())
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
    figure, axes = _figure(WIDTH, 2.0)
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


_JOINS: tuple[Callable[[str], str], ...] = (
    str,
    _family,
    lambda module: f"…{module.rpartition('.')[2]}",
)
"""What modules are called by, from each by itself to those of one last name together."""


def _label(name: str, longest: int) -> str:
    """A name as a picture has room for: its end tells it apart."""
    told = printable(name)
    return told if len(told) <= longest else f"…{told[1 - longest :]}"


def _natural(module: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    parts = re.split(r"(\d+)", module)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def unit_of(size: int) -> tuple[int, str]:
    """The largest unit that a number of bytes reaches, in bytes, and its name."""
    units = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
    return next((unit for unit in units if size >= unit[0]), (1, "bytes"))
