"""The options of the commands that print findings: format, file, and which rules."""

from __future__ import annotations

from collections.abc import Callable

from click import option

from hotswap.cli.command import FILE
from hotswap.report.findings import FORMATS

OPTIONS = (
    option(
        "--format", "form", default="text", metavar="FORMAT", help=f"One of {', '.join(FORMATS)}."
    ),
    option("--output", "-o", type=FILE, help="Write there instead."),
    option(
        "--select",
        multiple=True,
        metavar="CODES",
        help="Only these rules: codes, prefixes or names.",
    ),
    option("--ignore", multiple=True, metavar="CODES", help="Not these rules."),
)


def finding_options(function: Callable[..., None]) -> Callable[..., None]:
    """Declare ``form``, ``output``, ``select`` and ``ignore``."""
    for declare in reversed(OPTIONS):
        function = declare(function)
    return function
