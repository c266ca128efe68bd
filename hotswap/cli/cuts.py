"""How the model of a command line is cut over several devices."""

from __future__ import annotations

from pathlib import Path

from hotswap.adapters.plan import Cut
from hotswap.cli.command import Exit
from hotswap.cli.terminal import say
from hotswap.errors import HotswapError


def cuts_given(command: str, base: str | Path, devices: int) -> dict[str, Cut]:
    """Say along which axis each module is cut; devices that do not divide the model are wrong usage."""
    from hotswap.checks.parallel import cuts_of

    try:
        return cuts_of(base, devices)
    except HotswapError as error:
        say(f"hotswap {command}: {error}", error=True)
        raise Exit(2) from None
