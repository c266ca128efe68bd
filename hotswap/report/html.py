"""The document as one HTML page that needs nothing else: no network, no fonts, no other file."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from hotswap.errors import MissingExtraError
from hotswap.report import charts

EXTRA = ("jinja2", "matplotlib")
_SYMBOLS = {
    **dict.fromkeys(("passed", "ready"), "✓"),
    **dict.fromkeys(("failed", "refused", "not ready"), "✕"),
    **dict.fromkeys(("incomplete", "not run"), "…"),
    "not applicable": "–",
}


def require_extra() -> None:
    """Raise MissingExtraError when a package of the extra ``report`` is not installed."""
    for package in EXTRA:
        if find_spec(package) is None:
            raise MissingExtraError("an HTML report", package, "report")


def html(document: dict[str, Any]) -> str:
    """Render a document."""
    require_extra()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(ms=_milliseconds, size=_size, listed=_listed)
    template = files("hotswap.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    pictures = {
        "ranks": charts.rank_map(document["adapters"]),
        "memory": charts.memory_curve(document["curve"], document["plan"]),
        "latency": charts.latency_curves(document["latency"]),
        "compiles": charts.compile_timeline(document["compiles"]),
    }
    swap = next((s for s in document["latency"] if s["series"] == "hotswap, swap"), None)
    return environment.from_string(template).render(
        **document,
        charts={name: Markup(svg) for name, svg in pictures.items()},  # noqa: S704  (our own SVG)
        symbols=_SYMBOLS,
        swap=swap,
    )


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _size(count: int | None) -> str:
    if count is None:
        return "–"
    unit, word = charts.unit_of(count)
    return f"{count} {word}" if unit == 1 else f"{count / unit:.1f} {word}"


def _listed(values: list[float]) -> str:
    """Few values as they are, many as a range."""
    if len(values) > 3:
        return f"{min(values):g} to {max(values):g}"
    return ", ".join(f"{value:g}" for value in values) or "–"
