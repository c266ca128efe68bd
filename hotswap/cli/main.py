"""The ``hotswap`` command: its subcommands, and exit codes instead of tracebacks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import hotswap
from hotswap.cli.lint import explain, lint
from hotswap.cli.plan import plan
from hotswap.cli.plan import say as _say
from hotswap.errors import AdapterError, HotswapError

OK, FAILED, USAGE = 0, 1, 2

app = typer.Typer(
    name="hotswap",
    help="Swap LoRA adapters in compiled models without a recompile, and prove that it works.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hotswap {hotswap.__version__}")
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


app.command("plan")(plan)
app.command("lint")(lint)
app.command("explain")(explain)


@app.command(
    "verify",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def _verify(context: typer.Context) -> None:
    """Run the contract on a deployment and say whether it is ready to hot-swap."""
    from hotswap.cli import verify

    raise typer.Exit(verify.main(context.args))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code (0 good, 1 something is wrong, 2 wrong usage)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["verify"]:  # not through typer, which would swallow the "--"
            from hotswap.cli import verify

            return verify.main(words[1:])
        return _run(words) if words else _run(["--help"]) or USAGE
    except AdapterError as error:
        _say(*error.findings, error=True)
    except (HotswapError, OSError) as error:
        _say(f"hotswap: {error}", error=True)
    return FAILED


def _run(words: list[str]) -> int:
    try:
        app(words, prog_name="hotswap")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else OK if ended.code is None else FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main())
