"""``hotswap lint`` and ``hotswap explain``: misuse of hot-swapping, found in source code."""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from click import option

import hotswap
from hotswap.adapters.rules import DOCUMENTATION as ADAPTER_RULES
from hotswap.adapters.rules import table as adapter_table
from hotswap.cli.command import FILE, Command, Exit
from hotswap.cli.options import finding_options, words
from hotswap.cli.terminal import is_colored, say
from hotswap.errors import HotswapError
from hotswap.findings import RULES as NAMES
from hotswap.findings import Finding
from hotswap.report.findings import FORMATS, render

if TYPE_CHECKING:
    from hotswap.lint.settings import Settings


EPILOG = """\b
Examples:
  hotswap lint src docs
  hotswap lint --diff src
  git show HEAD:serve.py | hotswap lint - --stdin-filename serve.py
  hotswap lint --format sarif -o lint.sarif

Exit codes: 0, nothing was found (warnings do not count, unless --strict); 1, something was; 2, wrong usage.
"""


@click.command(
    cls=Command,
    arguments={"PATH": "Files or folders, or - for standard input; without, the current folder."},
    epilog=EPILOG,
)
@click.argument("paths", type=FILE, metavar="[PATH...]", nargs=-1)
@finding_options
@option("--extend-select", multiple=True, metavar="CODES", help="These rules too.")
@option("--exclude", multiple=True, metavar="PATTERN", help="Not these files, as in .gitignore.")
@option("--force-exclude", is_flag=True, help="Leave files out even if they are named.")
@option("--stdin-filename", type=FILE, help="What standard input is to be read as.")
@option("--fix", is_flag=True, help="Move prepare() before compile() where that is safe.")
@option("--diff", is_flag=True, help="Show what --fix would change, and change nothing.")
@option("--statistics", is_flag=True, help="Show how often each rule is broken instead.")
@option("--strict", is_flag=True, help="Exit with 1 on warnings too, such as files not analysed.")
@option("--exit-zero", is_flag=True, help="Exit with 0 whatever is found.")
@option("--quiet", "-q", is_flag=True, help="Show findings only.")
def lint(
    paths: tuple[Path, ...],
    form: str,
    output: Path | None,
    fix: bool,
    diff: bool,
    statistics: bool,
    strict: bool,
    exit_zero: bool,
    quiet: bool,
    stdin_filename: Path | None,
    force_exclude: bool,
    **given: Sequence[str],
) -> None:
    """Find misuse of adapter hot-swapping around torch.compile, without running the code.

    What [tool.hotswap.lint] of pyproject.toml says applies too: select, extend-select, ignore, exclude and
    per-file-ignores. Files that .gitignore names are left out.
    """
    from hotswap.lint.check import check_bytes, check_source  # half of what there is to import
    from hotswap.lint.files import find
    from hotswap.lint.fix import fixes

    paths = paths or (Path() if stdin_filename is None else Path("-"),)
    if form not in FORMATS:
        _refuse(f"--format is {form!r}; choose from {', '.join(FORMATS)}")
    piped = "-" in map(str, paths)
    if piped and (len(paths) > 1 or fix or diff):
        _refuse("standard input is read on its own, and is not fixed; give files instead of -")
    for path in () if piped else paths:
        if not path.exists():
            _refuse(f"there is no {path}")
        if path.is_fifo() and path.suffix:  # one of the shell, as in <(git show ...), has none
            _refuse(f"{path} is a pipe, not a file; give its text on standard input, as -")
    try:
        settings = _settings(given)
        if force_exclude:
            paths = tuple(p for p in paths if p.is_dir() or not settings.leaves_out(p))
        if piped:
            data = sys.stdin.buffer.read()
            findings = check_bytes(data, stdin_filename or Path("<stdin>"), settings=settings)
            fixed: dict[Path, bytes] = {}
        else:
            findings = check_source(paths, settings=settings)
            fixed = fixes(findings) if fix or diff else {}
    except (ValueError, HotswapError) as error:
        _refuse(str(error))
    if diff:
        shown = "".join(_diff(path, after) for path, after in fixed.items())
        say(*shown.splitlines())
        raise Exit(1 if shown and not exit_zero else 0)
    for path, after in fixed.items():
        path.write_bytes(after)
        say(f"fixed {path}", error=True)
        findings = [f for f in findings if f.where != str(path)]
        findings += check_source(path, settings=settings)
    text = _statistics(findings) if statistics else _rendered(sorted(findings), form, output)
    if output is not None:
        _write(output, text)
    elif text:
        say(text)
    if not (piped or findings or any(find(paths, settings.exclude, settings.root))):
        say(
            f"hotswap lint: no file to read in {' '.join(map(str, paths)) or 'what is left'}",
            error=True,
        )
        raise Exit(1 if strict and not exit_zero else 0)
    if form == "text" and not quiet:
        say(_count(findings), error=True)
    failed = any(finding.severity == "error" or strict for finding in findings)
    raise Exit(1 if failed and not exit_zero else 0)


def _settings(given: Mapping[str, Sequence[str]]) -> Settings:
    """Return the settings of the project, with what the command line says instead or besides."""
    from hotswap.lint.settings import read_settings

    listed = {name: words(values) for name, values in given.items()}
    settings = read_settings(Path.cwd())
    return replace(
        settings,
        select=listed["select"] or settings.select,
        ignore=listed["ignore"] or settings.ignore,
        extend_select=[*settings.extend_select, *listed["extend_select"]],
        exclude=[*settings.exclude, *listed["exclude"]],
    )


def _rendered(findings: Sequence[Finding], form: str, output: Path | None) -> str:
    from hotswap.lint.rules import RULES

    return render(
        findings,
        form,  # type: ignore[arg-type]
        tool="hotswap",
        version=hotswap.__version__,
        documentation={rule.code: rule.documentation for rule in RULES.values()},
        color=output is None and is_colored(),
    )


def _statistics(findings: Sequence[Finding]) -> str:
    counts = Counter((finding.code, finding.name) for finding in findings)
    return "\n".join(f"{n:5}  {code}  {name}" for (code, name), n in sorted(counts.items()))


def _diff(path: Path, after: bytes) -> str:
    before, now = (
        data.decode("utf-8", "replace").splitlines(keepends=True)
        for data in (path.read_bytes(), after)
    )
    return "".join(difflib.unified_diff(before, now, str(path), str(path)))


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        _refuse(f"--output {output} cannot be written: {error.strerror}")


def _refuse(message: str) -> NoReturn:
    say(f"hotswap lint: {message}", error=True)
    raise Exit(2)


@click.command(cls=Command, arguments={"CODE": "A code such as HSW201, or a name."})
@click.argument("code", metavar="[CODE]", required=False)
@option("--markdown", is_flag=True, help="Print the table of the linter's rules instead.")
@option("--adapters", is_flag=True, help="Of the rules of adapter files, with --markdown.")
def explain(code: str | None, markdown: bool, adapters: bool) -> None:
    """Explain a rule, with bad and good code; without CODE, list the codes."""
    from hotswap.lint.rules import RULES, table

    if markdown:
        say(adapter_table() if adapters else table())
        return
    if code is None:
        say(*(f"{key}  {name}" for key, name in NAMES.items()))
        return
    found = next((k for k, name in NAMES.items() if code.upper() == k or code == name), None)
    if found is None:
        say(f"hotswap explain: there is no rule {code!r}; `hotswap explain` lists them", error=True)
        raise Exit(2)
    say(f"{found} {NAMES[found]}")
    if found in RULES:
        say("", RULES[found].documentation)
    elif found in ADAPTER_RULES:
        say("", ADAPTER_RULES[found])


def _count(findings: Sequence[Finding]) -> str:
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    more = f", {warnings} warning{'' if warnings == 1 else 's'}" if warnings else ""
    return f"{errors or 'no'} finding{'' if errors == 1 else 's'}{more}"
