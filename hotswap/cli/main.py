"""The ``hotswap`` command: its subcommands, and exit codes instead of tracebacks."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

import hotswap
from hotswap.cli.command import SETTINGS
from hotswap.cli.terminal import say
from hotswap.errors import AdapterError, HotswapError, missing_extra

COMPLETING = "_HOTSWAP_COMPLETE"
"""Set by the shell that asks click for completions."""
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
COMMANDS = {
    "plan": ("plan", "Find what a fleet of adapters needs to be hot-swapped."),
    "check": ("check", "Judge adapters from their files alone: would a swap accept them."),
    "verify": ("verify.command", "Prove that a fleet of adapters can be hot-swapped."),
    "lint": (
        "lint",
        "Find misuse of adapter hot-swapping around torch.compile, without running the code.",
    ),
    "explain": ("lint", "Explain a rule, with bad and good code; without CODE, list the codes."),
    "bench": ("bench", "Measure swaps of LoRA adapters of 13.4 and 53.5 MB, or of your own."),
    "report": ("report", "Work with the reports of hotswap verify."),
}
"""Command → its module in hotswap.cli, and the first line of its help, which costs no import here."""


def app(called: str) -> click.Group:
    """Make the command line; of its commands only the one that is called is imported."""
    text = "Swap LoRA adapters in compiled models without a recompile, and prove that it works."
    made = click.Group("hotswap", help=text, no_args_is_help=True, context_settings=SETTINGS)
    click.version_option(hotswap.__version__, message="hotswap %(version)s")(made)
    for name, (place, line) in COMMANDS.items():
        if name == called:
            made.add_command(getattr(importlib.import_module(f"hotswap.cli.{place}"), name))
        else:
            made.add_command(click.Command(name, help=line))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0: good; 1: something is wrong; 2: wrong usage; 130: interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words) if words or COMPLETING in os.environ else _run(["--help"]) or USAGE
    except AdapterError as error:
        say(*error.findings, error=True)
    except ImportError as error:
        missing = missing_extra(f"hotswap {words[0]}", error)
        if missing is None:
            raise
        say(f"hotswap: {missing}", error=True)
        return USAGE
    except (HotswapError, OSError) as error:
        say(f"hotswap: {error}", error=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    return FAILED


def _run(words: list[str]) -> int:
    pytest_args: list[str] = []
    if words[:1] == ["verify"] and "--" in words:  # click would swallow it
        at = words.index("--")
        words, pytest_args = words[:at], words[at + 1 :]
    typed = os.environ.get("COMP_WORDS", "").split()[1:] if COMPLETING in os.environ else words
    called = next((word for word in typed if not word.startswith("-")), "")
    try:
        app(called)(words, prog_name="hotswap", obj=pytest_args)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else OK if ended.code is None else FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main())
