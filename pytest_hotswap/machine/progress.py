"""How far a state machine is: a line on standard error, as hotswap verify has one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hotswap.cli.terminal import duration, progress_line


class Progress:
    """Counts examples and steps; Hypothesis makes more examples than asked for where it shrinks a fault."""

    def __init__(self, what: str, examples: int) -> None:
        self.what, self.examples = what, examples
        self.done = self.steps = 0
        self.last = "set-up"
        self.begun = time.monotonic()

    def line(self) -> str:
        """Done of total, elapsed, rate, time left, and what runs now."""
        seconds = max(time.monotonic() - self.begun, 1e-9)
        share = (self.examples - self.done) / self.done if self.done else 0
        left = f", about {duration(share * seconds)} left" if share > 0 else ""
        return (
            f"state machine, {self.what}: example {self.done} of {self.examples}, {self.steps} steps, "
            f"{duration(seconds)}, {self.steps / seconds:.1f} steps a second{left}, now: {self.last}"
        )

    @contextmanager
    def shown(self) -> Iterator[Callable[[str], None]]:
        """A function that is told of each step, and of each new example as "": it shows the line."""
        with progress_line(self.line) as show:

            def tell(step: str) -> None:
                self.done, self.steps = self.done + (not step), self.steps + bool(step)
                self.last = step or self.last
                show()

            yield tell
