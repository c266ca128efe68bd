"""What is shown on a terminal: progress, tables, completions."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from hotswap.cli.main import main
from hotswap.cli.terminal import progress_bar, progress_line
from hotswap.report.text import table


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


def test_a_table_keeps_to_80_columns_by_breaking_cells_between_words() -> None:
    rows = [("a/path/that/is/one/word", "many words " * 12, "x"), ("b", "few words", "y")]
    shown = table("Title", ("where", "what", "how"), rows).splitlines()
    assert max(map(len, shown)) <= 80
    assert shown[0] == "Title"
    assert set(shown[2]) == {" ", "-"}
    assert shown[3].startswith("  a/path/that/is/one/word  many words")
    assert sum(line.count("many") for line in shown) == 12
    assert table("Title", ("a", "b"), [("1", "2")]) == "Title\n  a  b\n  -  -\n  1  2"


def test_a_word_that_is_longer_than_a_table_stays_whole() -> None:
    assert f"  {'w' * 90}" in table("Title", ("a",), [("w" * 90,)]).splitlines()


def test_the_shell_is_given_the_options_of_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_HOTSWAP_COMPLETE", "bash_complete")
    for typed, wanted in (("hotswap ve", "plain,verify"), ("hotswap check --st", "plain,--strict")):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
        assert main([]) == 0
        assert capsys.readouterr().out.splitlines() == [wanted]
