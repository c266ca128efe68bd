"""The ``hotswap`` command: its subcommands, and exit codes instead of tracebacks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import hotswap
from hotswap.cli import bench, check, lint, plan, report, verify
from hotswap.cli.terminal import say
from hotswap.errors import AdapterError, HotswapError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="hotswap",
    help="Swap LoRA adapters in compiled models without a recompile, and prove that it works.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan", epilog=plan.EPILOG)(plan.plan)
app.command("check", epilog=check.EPILOG)(check.check)
app.command("verify", epilog=verify.EPILOG)(verify.verify)
app.command("lint")(lint.lint)
app.command("explain")(lint.explain)
app.command("bench")(bench.bench)
app.add_typer(report.report, name="report")


def _version(wanted: bool) -> None:
    if wanted:
        say(f"hotswap {hotswap.__version__}")
        raise typer.Exit(OK)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0: good; 1: something is wrong; 2: wrong usage; 130: interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words) if words else _run(["--help"]) or USAGE
    except AdapterError as error:
        say(*error.findings, error=True)
    except (HotswapError, OSError) as error:
        say(f"hotswap: {error}", error=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    return FAILED


def _run(words: list[str]) -> int:
    pytest_args: list[str] = []
    if words[0] == "verify" and "--" in words:  # typer would swallow it
        at = words.index("--")
        words, pytest_args = words[:at], words[at + 1 :]
    try:
        app(words, prog_name="hotswap", obj=pytest_args)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else OK if ended.code is None else FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main())
