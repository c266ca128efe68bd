"""The progress line is shown on a terminal, and nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotswap.cli.suite import progress

PROGRAM = """
import pathlib, sys
from hotswap.cli import child
command = [sys.executable, "-c", "import time; time.sleep(1); print('from the child')"]
ended = child.run(command, pathlib.Path(sys.argv[1]), lambda: "verifying: [3] tests done")
print(ended.code, ended.output.strip())
"""


def test_progress_says_how_many_tests_are_done_and_the_last_law(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    assert progress(report) == "verifying: 0 tests done"
    lines = [{"nodeid": "a", "law": "rank-bound"}, {"nodeid": "b", "law": "swap-forgets"}]
    report.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert progress(report) == "verifying: 2 tests done, last: swap-forgets"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_shows_the_progress_line(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "out.txt")],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "verifying: [3] tests done" in shown
    assert done.stdout == b"0 from the child\n"


def test_a_pipe_shows_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "out.txt")]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"0 from the child\n", b"")
