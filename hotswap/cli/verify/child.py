"""Child processes: heavy work runs in one, so that Ctrl-C leaves a report and torch stays out."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hotswap.cli.terminal import progress_line

GRACE = 10.0
"""Seconds that an interrupted child is given to write its last records."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child process ended; ``output`` is what it printed, standard error included."""

    code: int
    output: str
    interrupted: bool

    @property
    def last_line(self) -> str:
        """The last thing it said: of a traceback, the error."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def run(command: Sequence[str], output: Path, status: Callable[[], str]) -> Ended:
    """Run a child to its end with its output in a file; Ctrl-C lets it finish its report first.

    ``status`` gives the progress line, which is shown on a terminal only.
    """
    interrupted = False
    with output.open("wb") as sink:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment()
        )
        try:
            with progress_line(status) as show:
                while child.poll() is None:
                    show()
                    time.sleep(0.1)
        except KeyboardInterrupt as signalled:
            interrupted = True
            _stop(child, knows=not isinstance(signalled, Terminated))
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    shown = output.read_text(encoding="utf-8", errors="replace")
    return Ended(child.returncode, shown, interrupted or child.returncode == -signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[None]:
    """Take SIGTERM, with which a job is cancelled, for Ctrl-C: children end, temporary folders go.

    SIGHUP too, when a terminal is closed, unless ``nohup`` lets it be ignored.
    """

    def stop(*_: object) -> NoReturn:
        raise Terminated

    known = {getattr(signal, name, signal.SIGTERM) for name in ("SIGTERM", "SIGHUP")}
    before = {each: signal.getsignal(each) for each in known}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def environment() -> dict[str, str]:
    """The environment without what would change the selection of tests behind the user's back."""
    leaks = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    return {key: value for key, value in os.environ.items() if key not in leaks}


def _stop(child: subprocess.Popen[bytes], *, knows: bool) -> None:
    """End a child: a terminal's Ctrl-C has reached it already, a signal to this process has not."""
    for name in (None, signal.SIGINT) if knows else (signal.SIGINT,):
        try:
            if name is not None:
                child.send_signal(name)
            child.wait(timeout=GRACE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
        return
