"""The curve of a plan as a picture."""

from __future__ import annotations

import io
from pathlib import Path

from hotswap.adapters.output import write_atomically
from hotswap.adapters.plan import SwapPlan
from hotswap.cli.curve import curve
from hotswap.errors import MissingExtraError

FORMATS = (".svg", ".png")


def plot(plan: SwapPlan, path: Path) -> None:
    """Draw target rank against memory and adapters admitted; raises MissingExtraError or OSError."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingExtraError("--plot", "matplotlib", "report") from error
    points = curve(plan)
    ranks = [point.target_rank for point in points]
    figure = Figure(figsize=(7, 4), layout="constrained")
    memory = figure.subplots()
    for label, sizes in (
        ("rank per module", [point.fitted for point in points]),
        ("uniform rank", [point.uniform for point in points]),
    ):
        memory.plot(ranks, [size / 2**20 for size in sizes], marker="o", label=label)
    memory.set_xlabel("target rank")
    memory.set_ylabel("memory of a prepared adapter (MiB)")
    memory.set_xticks(ranks)
    memory.set_ylim(bottom=0)
    admitted = memory.twinx()
    admitted.step(
        ranks,
        [point.admitted for point in points],
        where="post",
        color="gray",
        linestyle=":",
        marker="x",
        label="adapters admitted",
    )
    admitted.set_ylabel("adapters admitted")
    admitted.yaxis.set_major_locator(MaxNLocator(integer=True))
    admitted.set_ylim(0, len(plan.adapters) + 0.5)
    memory.legend(handles=[*memory.lines, *admitted.lines], loc="lower right")
    data = io.BytesIO()
    figure.savefig(
        data, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None
    )
    write_atomically(path, data.getvalue())
