"""The document as GitHub annotations: one a refused adapter and a failed law, then the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hotswap.report.findings import Level, annotation


def github(document: dict[str, Any]) -> str:
    """Render a document; what is not ready is an error, a warning a warning."""
    return "\n".join(_lines(document))


def _lines(document: dict[str, Any]) -> Iterator[str]:
    told = document["verdict"]
    places = {a["name"]: a["path"] or "" for a in document["adapters"]}
    for reason in told["reasons"]:
        title = f"adapter {reason['adapter']}" if reason["adapter"] else "hotswap verify"
        text = "; ".join(filter(None, (reason["text"], reason["remedy"])))
        yield annotation("error", places.get(reason["adapter"], ""), title, text)
    for warning in told["warnings"]:
        yield annotation("warning", "", "hotswap verify", warning)
    level: Level = "notice" if told["outcome"] == "ready" else "error"
    yield annotation(level, "", "hotswap verify", told["line"])
