"""``hotswap check``: will a swap accept these adapters, from their files alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
from click import option

import hotswap
from hotswap.adapters.fit import BaseModel
from hotswap.adapters.fleet import judge
from hotswap.adapters.inspect import Inspection
from hotswap.adapters.output import write_atomically
from hotswap.adapters.plan import SwapPlan, size_text
from hotswap.adapters.rules import DOCUMENTATION
from hotswap.cli.command import FILE, Command, Exit
from hotswap.cli.folders import adapter_paths
from hotswap.cli.options import PICKLE, finding_options, words
from hotswap.cli.terminal import progress_bar, say
from hotswap.errors import HotswapError
from hotswap.findings import Finding, chosen
from hotswap.pyproject import read_table
from hotswap.report.findings import FORMATS, render
from hotswap.report.text import table

MOST_ROWS = 40
"""Adapters in the table; of a larger fleet it shows those with findings."""
_SETTINGS = {"plan": str, "select": list, "ignore": list, "lint": object}
"""Of a project, for every run; the plan is found from the folder of the file."""
EPILOG = """\b
Examples:
  hotswap check adapters/* --plan hotswap-plan.json
  hotswap check adapters/new --base path/to/base --weights
  hotswap check 'adapters/*' --format sarif -o adapters.sarif
  hotswap check adapters/* --package model.pt2

Exit codes: 0, a swap accepts every adapter (warnings do not count, unless --strict); 1, it refuses one;
2, wrong usage.
"""


@click.command(
    cls=Command,
    arguments={
        "ADAPTER": "Adapter folders, .safetensors files, hub ids, or patterns like 'adapters/*'."
    },
    epilog=EPILOG,
)
@click.argument("adapters", metavar="ADAPTER...", nargs=-1)
@option("--plan", type=FILE, help="The plan that the model is prepared with.")
@option(
    "--base",
    metavar="PATH",
    help="Folder, config.json or id of the base model, or a pipeline's folder.",
)
@option("--package", type=FILE, help="A .pt2 file: judge it, and hold the adapters to it.")
@option("--weights", is_flag=True, help="Read the values too: NaN, infinity, all zeros.")
@PICKLE
@finding_options
@option("--strict", is_flag=True, help="Exit with 1 on warnings too.")
@option("--jobs", "-j", default=1, metavar="N", help="Processes; 0: one for each core.")
def check(
    *,
    adapters: Sequence[str],
    plan: Path | None,
    package: Path | None,
    base: str | None,
    weights: bool,
    allow_pickle: bool,
    form: str,
    output: Path | None,
    select: Sequence[str],
    ignore: Sequence[str],
    strict: bool,
    jobs: int,
) -> None:
    """Judge adapters from their files alone: would a swap accept them.

    Reads configs and headers. No model is loaded, no code of an adapter is run; --base builds the
    base model without weights.
    """
    paths = adapter_paths("check", adapters)
    try:
        if form not in FORMATS:
            raise ValueError(f"--format is {form!r}; choose from {', '.join(FORMATS)}")
        if jobs < 0:
            raise ValueError(f"--jobs is {jobs}, expected 0 or more")
        if not (adapters or package):
            raise ValueError("no adapters; give adapter folders, or --package FILE")
        if plan and package:
            raise ValueError("a package has a plan of its own; leave out --plan or --package")
        file, table = read_table(Path.cwd(), "hotswap", _SETTINGS) or (Path(), {})
        given = [words(select) or table.get("select", ()), words(ignore) or table.get("ignore", ())]
        codes = chosen(*given)
        where = package or plan or (file.parent / table["plan"] if table.get("plan") else None)
        room, of_package = _room(where, is_package=package is not None)
        model = _base(base)
    except (ValueError, HotswapError) as error:
        say(f"hotswap check: {error}", error=True)
        raise Exit(2) from None
    with progress_bar(len(paths)) as progress:
        fleet, findings = judge(
            paths,
            codes,
            plan=room,
            base=model,
            weights=weights,
            allow_pickle=allow_pickle,
            jobs=jobs or os.cpu_count() or 1,
            progress=progress,
        )
    findings = [*(finding for finding in of_package if finding.code in codes), *findings]
    _show(fleet, findings, form, output)
    refused = any(finding.severity == "error" or strict for finding in findings)
    raise Exit(1 if refused else 0)


def _room(path: Path | None, *, is_package: bool) -> tuple[SwapPlan | None, list[Finding]]:
    """What the adapters are held to, and what is wrong with the package that says so."""
    if is_package and path is not None:
        from hotswap.checks.package import read_room

        return read_room(path)
    return (None if path is None else SwapPlan.read(path)), []


def _base(base: str | None) -> BaseModel | None:
    if base is None:
        return None
    from hotswap.checks.base_model import read_base

    return read_base(base)


def _show(
    fleet: Sequence[Inspection], findings: Sequence[Finding], form: str, output: Path | None
) -> None:
    text = render(
        findings,
        form,  # type: ignore[arg-type]
        tool="hotswap",
        version=hotswap.__version__,
        documentation=DOCUMENTATION,
    )
    if form == "text":
        text = "\n\n".join(part for part in (text, _table(fleet, findings)) if part)
    if output is not None:
        write_atomically(output, f"{text}\n")
    elif text:
        say(text)
    if form == "text":
        say(_count(fleet, findings), error=True)


def _table(fleet: Sequence[Inspection], findings: Sequence[Finding]) -> str:
    codes: dict[str, list[str]] = {}
    for finding in findings:
        path = finding.where
        codes.setdefault(path.partition("::")[0], []).append(finding.code)
    shown = [one for one in fleet if len(fleet) <= MOST_ROWS or _codes_of(one, codes)]
    head = ("adapter", "rank", "modules", "size", "findings")
    rows = [
        (
            one.path,
            str(one.rank or "-"),
            str(one.modules or "-"),
            size_text(one.size) if one.size else "-",
            ", ".join(sorted(set(_codes_of(one, codes)))) or "fits",
        )
        for one in shown[:MOST_ROWS]
    ]
    more = len(shown) - len(rows)
    lines = table("Adapters", head, rows) if rows else ""
    return f"{lines}\n  and {more} more" if more > 0 else lines


def _codes_of(one: Inspection, codes: dict[str, list[str]]) -> list[str]:
    """The codes of an adapter's findings, which may also name a file in its folder."""
    inside = [c for f in one.findings for c in codes.get(f.where.partition("::")[0], ())]
    return [*inside, *codes.get(one.path, ())]


def _count(fleet: Sequence[Inspection], findings: Sequence[Finding]) -> str:
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    parts = [f"{len(fleet)} adapter{'' if len(fleet) == 1 else 's'}"]
    parts += [f"{errors or 'no'} error{'' if errors == 1 else 's'}"]
    parts += [f"{warnings} warning{'' if warnings == 1 else 's'}"] if warnings else []
    return ", ".join(parts)
