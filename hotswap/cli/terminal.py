"""What the commands show: lines, and on a terminal how far they are."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


EVERY = 30.0
"""Seconds between two lines of progress in a log, which nobody can rewrite."""


def say(*lines: object, error: bool = False) -> None:
    """Print lines, with escapes for what the terminal's encoding lacks."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed before the start
        return
    encoding = stream.encoding or "utf-8"
    for line in lines:
        print(str(line).encode(encoding, "backslashreplace").decode(encoding), file=stream)
    stream.flush()


def is_colored() -> bool:
    """Tell whether standard output is to be coloured: as NO_COLOR, FORCE_COLOR and the terminal say."""
    if os.environ.get("NO_COLOR"):
        return False
    terminal = sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return bool(os.environ.get("FORCE_COLOR")) or terminal


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of adapters on standard error past the first second; silent when that is no terminal."""
    bar: Progress | None = None
    start = time.monotonic() if _is_watched() else None
    with ExitStack() as stack:

        def show(done: int) -> None:
            nonlocal bar
            if bar is None and start is not None and time.monotonic() - start > 1:
                from rich.console import Console
                from rich.progress import Progress

                bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
                bar.add_task("adapters", total=total)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)

        yield show


@contextmanager
def progress_line(line: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """A line on standard error: rewritten on a terminal, elsewhere a new one every half minute."""
    if not _is_watched():
        told = time.monotonic()

        def now_and_then() -> None:
            nonlocal told
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                say(line(), error=True)

        yield now_and_then
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as shown:
        yield lambda: shown.update(escape(line()))


def duration(seconds: float) -> str:
    """Say how long something takes, as ``3 min 07 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
