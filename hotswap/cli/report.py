"""``hotswap report``: the reports of shards as one, and the page of a report anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hotswap.cli.command import Argument, Exit, Option, command, group
from hotswap.cli.terminal import say
from hotswap.cli.verify.command import exit_code, write_report
from hotswap.cli.verify.request import Level
from hotswap.report.document import merge as merge_documents
from hotswap.report.document import read
from hotswap.report.html import require_extra


def merge(
    reports: Annotated[
        list[Path], Argument(metavar="REPORT", help="Folders of reports, or report.json.")
    ],
    output: Annotated[
        Path, Option("--output", "-o", metavar="FOLDER", help="Where the report goes.")
    ],
    fail_on: Annotated[
        Level, Option(help="Exit with 1 at an error only, or at a warning too.")
    ] = "error",
) -> None:
    """Join the reports of shards into one; its verdict is on the last line, its exit code verify's.

    A shard that is missing makes the verdict incomplete.
    """
    require_extra()
    document = merge_documents([read(path) for path in reports])
    write_report(document, output)
    say(document["verdict"]["line"])
    raise Exit(exit_code(document, fail_on))


report = group("report", "Work with the reports of hotswap verify.", [command(merge)])
