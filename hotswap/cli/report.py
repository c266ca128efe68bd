"""``hotswap report``: the reports of shards as one, and the page of a report anew."""

from __future__ import annotations

from pathlib import Path

import click
from click import option

from hotswap.cli.command import FILE, FOLDER, SETTINGS, Command, Exit
from hotswap.cli.terminal import say
from hotswap.cli.verify.command import exit_code, fail_on_option, write_report
from hotswap.report.document import merge as merge_documents
from hotswap.report.document import read


@click.group(no_args_is_help=True, context_settings=SETTINGS)
def report() -> None:
    """Work with the reports of hotswap verify."""


@report.command(cls=Command, arguments={"REPORT": "Folders of reports, or report.json."})
@click.argument("reports", type=FILE, metavar="REPORT...", nargs=-1, required=True)
@option("--output", "-o", type=FOLDER, required=True, help="Where the report goes.")
@fail_on_option
def merge(reports: tuple[Path, ...], output: Path, fail_on: str) -> None:
    """Join the reports of shards into one; its verdict is on the last line, its exit code verify's.

    A shard that is missing makes the verdict incomplete.
    """
    document = merge_documents([read(path) for path in reports], fail_on=fail_on)
    write_report(document, output)
    say(document["verdict"]["line"])
    raise Exit(exit_code(document))
