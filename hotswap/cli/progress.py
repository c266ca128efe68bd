"""A progress bar of adapters, where somebody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error past the first second; silent when that is not a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    start = time.monotonic()
    with ExitStack() as stack:
        bars: list[Progress] = []

        def show(done: int) -> None:
            if not bars and time.monotonic() - start > 1:
                bars.append(stack.enter_context(_bar(total)))
            for bar in bars:
                bar.update(bar.task_ids[0], completed=done)

        yield show


def _bar(total: int) -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    bar.add_task("adapters", total=total)
    return bar
