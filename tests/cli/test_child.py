"""The progress line is shown on a terminal, and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hotswap.cli.verify.suite import progress

PROGRAM = """
import pathlib, sys
from hotswap.cli.verify import child
command = [sys.executable, "-c", "import time; time.sleep(1); print('from the child')"]
ended = child.run(command, pathlib.Path(sys.argv[1]), lambda: "verifying: [3] tests done")
print(ended.code, ended.output.strip())
"""


def test_progress_says_how_many_of_all_are_done_how_fast_and_the_last_law(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    assert progress(report, 4) == "verifying: loading and compiling, 4 s"
    (tmp_path / "collected").write_text("42")
    lines = [{"nodeid": "a", "law": "rank-bound"}, {"nodeid": "b", "law": "swap-forgets"}]
    report.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    expected = "2 of 42 tests, 4 s, 0.5 a second, about 1 min 20 s left, last: swap-forgets"
    assert progress(report, 4) == f"verifying: {expected}"


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


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_cancelled_run_ends_its_child_and_leaves_no_folder(name: str, tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, tempfile\n"
        "from hotswap.cli.verify import child\n"
        "with child.stoppable(), tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:\n"
        "    code = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        "    output = pathlib.Path(folder, 'child.txt')\n"
        "    ended = child.run([sys.executable, '-c', code], output, lambda: '')\n"
        "print(ended.interrupted, ended.output.split()[0])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while not (written := [*tmp_path.glob("*/child.txt")]) or not written[0].read_text():
            time.sleep(0.02)
            assert process.poll() is None
        process.send_signal(getattr(signal, name))
        out, _ = process.communicate(timeout=60)
    interrupted, child = out.split()
    assert interrupted == "True"
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)
