"""The document as one HTML page that needs nothing else: no network, no fonts, no other file."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from hotswap.errors import MissingExtraError
from hotswap.findings import printable
from hotswap.report import charts

EXTRA = ("jinja2", "matplotlib")
MOST_LISTED = 40
"""Adapters of a fleet whose passed rows are listed; of a larger one the filter leaves them out."""
_MAPPED = "The rank of each module in each adapter. An adapter leaves modules with an empty cell as they are."
_COUNTED = (
    "How many adapters have which rank in each family of modules, by the largest in the family."
)
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
        autoescape=True,
        finalize=_shown,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(ms=_milliseconds, size=_size, listed=_listed, error=_error)
    template = files("hotswap.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    pictures = {
        "ranks": charts.ranks(document["adapters"]),
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
        collapsed=len(document["adapters"]) > MOST_LISTED,
        rank_words=_COUNTED if charts.is_counted(document["adapters"]) else _MAPPED,
        remedies={r["law"]: r["remedy"] for r in document["verdict"]["reasons"] if "law" in r},
        **_links(document),
    )


def _links(document: dict[str, Any]) -> dict[str, Any]:
    """What leads where: the places on the page of adapters and laws, and which broke which."""
    adapters = {row["name"]: f"adapter-{n}" for n, row in enumerate(document["adapters"])}
    laws = {row["law"]: f"law-{n}" for n, row in enumerate(document["laws"])}
    broken: dict[str, list[str]] = {name: [] for name in adapters}
    breaking: dict[str, list[str]] = {law: [] for law in laws}
    failed = ((t["adapter"], t["law"]) for t in document["tests"] if t["outcome"] == "failed")
    for name, law in dict.fromkeys(failed):
        if name in broken and law in breaking:
            broken[name].append(law)
            breaking[law].append(name)
    return {"places": {"adapters": adapters, "laws": laws}, "broken": broken, "breaking": breaking}


def _shown(value: Any) -> Any:
    """What a name brings along to control a terminal has no place on a page."""
    return printable(value) if type(value) is str else value


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _size(count: int | None) -> str:
    if count is None:
        return "–"
    unit, word = charts.unit_of(count)
    return f"{count} {word}" if unit == 1 else f"{count / unit:.1f} {word}"


def _error(value: float | str | None) -> str:
    return "–" if value is None else f"{float(value):.1e}"


def _listed(values: list[float]) -> str:
    """Few values as they are, many as a range."""
    if len(values) > 3:
        return f"{min(values):g} to {max(values):g}"
    return ", ".join(f"{value:g}" for value in values) or "–"
