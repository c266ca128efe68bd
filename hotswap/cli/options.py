"""The options of the commands that print findings: format, file, and which rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from click import option

from hotswap.cli.command import FILE
from hotswap.report.findings import FORMATS

CODES: dict[str, Any] = {"multiple": True, "metavar": "CODES"}
OPTIONS = (
    option(
        "--format", "form", default="text", metavar="FORMAT", help=f"One of {', '.join(FORMATS)}."
    ),
    option("--output", "-o", type=FILE, help="Write there instead."),
    option("--select", **CODES, help="Only these rules: codes, prefixes or names."),
    option("--ignore", **CODES, help="Not these rules."),
)

PICKLE = option(
    "--allow-pickle",
    is_flag=True,
    help="Read files of torch.save too (.bin), by torch.load(weights_only=True); imports torch.",
)


def finding_options(function: Callable[..., None]) -> Callable[..., None]:
    """Declare ``form``, ``output``, ``select`` and ``ignore``."""
    for declare in reversed(OPTIONS):
        function = declare(function)
    return function


def words(given: Sequence[str]) -> list[str]:
    """Return the words of an option that may be given several times, with commas in each."""
    return [word for part in given for word in part.split(",") if word]
