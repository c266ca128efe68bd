"""What is shown on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from hotswap.cli.terminal import progress_bar, progress_line


@pytest.mark.parametrize(("terminal", "seconds", "shown"), [(1, 2, 1), (1, 0.5, 0), (0, 2, 0)])
def test_a_terminal_shows_a_bar_past_the_first_second(
    monkeypatch: pytest.MonkeyPatch, terminal: int, seconds: float, shown: int
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: bool(terminal))
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(
        "hotswap.cli.terminal.time", SimpleNamespace(monotonic=iter([0, seconds]).__next__)
    )
    with progress_bar(4) as progress:
        progress(2)
    assert ("adapters" in stream.getvalue()) == bool(shown)
    assert ("50%" in stream.getvalue()) == bool(shown)


def test_a_log_gets_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 62.0, 62.0])
    monkeypatch.setattr("hotswap.cli.terminal.time", SimpleNamespace(monotonic=clock.__next__))
    asked = iter(["one", "two"])
    with progress_line(lambda: next(asked)) as show:
        for _ in range(4):
            show()
    assert stream.getvalue().splitlines() == ["one", "two"]
