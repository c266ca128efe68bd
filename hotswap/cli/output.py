"""The options of the commands that print findings: format, file, and which rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hotswap.report.findings import FORMATS

Form = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead.")
]
Select = Annotated[
    list[str] | None,
    typer.Option(metavar="CODES", help="Only these rules: codes, prefixes or names."),
]
Ignore = Annotated[list[str] | None, typer.Option(metavar="CODES", help="Not these rules.")]
