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

from hotswap.cli.verify.progress import Progress

PROGRAM = """
import pathlib, sys
from hotswap.cli.verify import child
command = [sys.executable, "-c", "import time; time.sleep(1); print('from the child')"]
ended = child.run(command, pathlib.Path(sys.argv[1]), lambda: "verifying: [3] tests done")
print(ended.code, ended.output.strip())
"""


def written(report: Path, *tests: tuple[str, str, float]) -> None:
    lines = [{"nodeid": f"f.py::T::{t}", "law": law, "seconds": took} for t, law, took in tests]
    with report.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def collected(folder: Path, **counts: int) -> Path:
    (folder / "collected").write_text(json.dumps(counts))
    return folder / "report.jsonl"


def test_progress_says_how_many_of_all_are_done_how_fast_and_the_last_law(tmp_path: Path) -> None:
    report = collected(tmp_path, one=1, other=1, fleet=40)
    progress = Progress(report)
    assert progress.line(4) == "verifying: loading and compiling, 4 s"
    written(report, ("one", "rank-bound", 3.0), ("fleet[a]", "swap-forgets", 1.0))
    assert progress.line(4) == "verifying: 2 of 42 tests, 4 s, 0.5 a second, last: swap-forgets"
    with report.open("a", encoding="utf-8") as file:
        file.write('{"nodeid": "half a li')  # it is written while it is read
    assert progress.line(4).startswith("verifying: 2 of 42")


def test_the_time_that_is_left_is_weighed_by_what_each_kind_of_test_took(tmp_path: Path) -> None:
    report = collected(tmp_path, bring_up=1, fleet=10, slow=10)
    progress = Progress(report)
    written(report, ("bring_up", "rank-bound", 60.0), ("fleet[a]", "swap-forgets", 1.0))
    assert "left" not in progress.line(61)  # of the slow ones none has run
    written(report, ("slow[a]", "swap-equals-load", 9.0), ("slow[b]", "swap-equals-load", 9.0))
    assert "about 1 min 21 s left" in progress.line(80)  # 9 of 1 s and 8 of 9 s
    assert "about 1 min 21 s left" in progress.line(80)  # each record counts once


def test_time_that_is_left_is_shared_by_processes(tmp_path: Path) -> None:
    report = collected(tmp_path, bring_up=1, fleet=22)
    progress = Progress(report)
    tests = [("fleet[a]", "swap-forgets", 10.0), ("fleet[b]", "swap-forgets", 10.0)]
    written(report, ("bring_up", "rank-bound", 0.0), *tests)
    assert "about 1 min 40 s left" in progress.line(10)  # 20 of 10 s, two at a time


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
        "    code = 'import os, signal, time\\nprint(os.getpid(), flush=True)'\n"
        "    code += '\\nsignal.signal(signal.SIGINT, signal.default_int_handler)'\n"
        "    code += '\\ntime.sleep(60)'\n"
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
