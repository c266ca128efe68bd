"""The options of the commands that print findings: format, file, and which rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hotswap.cli.command import Option
from hotswap.report.findings import FORMATS

Form = Annotated[str, Option("--format", metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")]
Output = Annotated[
    Path | None, Option("--output", "-o", metavar="FILE", help="Write there instead.")
]
Select = Annotated[
    list[str] | None,
    Option(metavar="CODES", help="Only these rules: codes, prefixes or names."),
]
Ignore = Annotated[list[str] | None, Option(metavar="CODES", help="Not these rules.")]
