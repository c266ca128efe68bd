"""``hotswap lint`` and ``hotswap explain``: misuse of hot-swapping, found in source code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from click import option

import hotswap
from hotswap.adapters.rules import DOCUMENTATION as ADAPTER_RULES
from hotswap.adapters.rules import table as adapter_table
from hotswap.cli.command import FILE, Command, Exit
from hotswap.cli.options import finding_options
from hotswap.cli.terminal import say
from hotswap.findings import RULES as NAMES
from hotswap.report.findings import FORMATS, render


@click.command(cls=Command, arguments={"PATH": "Files or folders: .py, .ipynb, .md."})
@click.argument("paths", type=FILE, metavar="PATH...", nargs=-1, required=True)
@finding_options
@option("--fix", is_flag=True, help="Move prepare() before compile() where that is safe.")
def lint(
    paths: tuple[Path, ...],
    form: str,
    output: Path | None,
    select: Sequence[str],
    ignore: Sequence[str],
    fix: bool,
) -> None:
    """Find misuse of adapter hot-swapping around torch.compile, without running the code.

    Exits with 1 when something was found.
    """
    from hotswap.lint.check import check_source  # the linter is half of what there is to import
    from hotswap.lint.fix import fix as apply_fixes
    from hotswap.lint.rules import RULES

    if form not in FORMATS:
        say(f"hotswap lint: --format is {form!r}; choose from {', '.join(FORMATS)}", error=True)
        raise Exit(2)
    missing = [path for path in paths if not path.exists()]
    if missing:
        say(f"hotswap lint: there is no {missing[0]}", error=True)
        raise Exit(2)
    try:
        findings = check_source(paths, select=_words(select), ignore=_words(ignore))
        for path in apply_fixes(findings) if fix else ():
            say(f"fixed {path}", error=True)
            findings = [f for f in findings if f.where != str(path)]
            findings += check_source(path, select=_words(select), ignore=_words(ignore))
    except ValueError as error:
        say(f"hotswap lint: {error}", error=True)
        raise Exit(2) from None
    documentation = {rule.code: rule.documentation for rule in RULES.values()}
    text = render(
        sorted(findings),
        form,
        tool="hotswap",
        version=hotswap.__version__,
        documentation=documentation,
    )
    if output is not None:
        output.write_text(f"{text}\n", encoding="utf-8")
    elif text:
        say(text)
    if form == "text":
        say(_count(len(findings)), error=True)
    raise Exit(1 if findings else 0)


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


def _words(given: Sequence[str]) -> list[str]:
    return [word for part in given for word in part.split(",") if word]


def _count(number: int) -> str:
    return f"{number or 'no'} finding{'' if number == 1 else 's'}"
