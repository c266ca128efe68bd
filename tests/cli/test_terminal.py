"""What is shown on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from hotswap.cli.terminal import progress_bar


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
