"""Python processes that have imported torch, PEFT and transformers already.

``run`` is ``subprocess.run`` for ``[sys.executable, "-m", module, ...]`` and ``[sys.executable, "-c", code,
...]``: a process of its own, forked from one that has imported these libraries and nothing of hotswap.
Where forking is not safe after these imports it starts a new interpreter, with the same outcome.
"""

from __future__ import annotations

import functools
import gc
import importlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

LIBRARIES = (
    "torch",
    "torch._functorch.aot_autograd",  # the first torch.compile imports it
    "peft",
    "transformers.models.llama.modeling_llama",
    "hypothesis",
)


def run(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end and return its exit code and what it printed."""
    if sys.platform != "linux":
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        task = {
            "words": list(command[1:]),
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "out": str(out),
            "err": str(err),
        }
        server = _server()
        server.stdin.write(json.dumps(task) + "\n")  # type: ignore[union-attr]
        server.stdin.flush()  # type: ignore[union-attr]
        code = int(server.stdout.readline())  # type: ignore[union-attr]
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


def run_pytest(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Do what ``pytester.runpytest_subprocess`` does."""
    command = [sys.executable, "-m", "pytest", f"--basetemp={pytester.path / 'basetemp'}"]
    start = time.perf_counter()
    done = run([*command, *arguments], cwd=pytester.path)
    print(done.stdout, done.stderr, sep="\n")
    lines = (done.stdout.splitlines(), done.stderr.splitlines())
    return pytest.RunResult(done.returncode, *lines, time.perf_counter() - start)


def verify(*words: object) -> subprocess.CompletedProcess[str]:
    """Do what ``hotswap verify --backend eager *words`` does: in this process, with its children forked."""
    from hotswap.cli.main import main
    from hotswap.cli.verify import child

    def forked(command: Sequence[str], output: Path, status: Callable[[], str]) -> child.Ended:
        done = run(command, env=child.environment())
        output.write_text(done.stdout + done.stderr, encoding="utf-8")
        assert status()
        return child.Ended(done.returncode, done.stdout + done.stderr, False)

    out, err = io.StringIO(), io.StringIO()
    argv = ["verify", "--backend", "eager", *map(str, words)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(child, "run", forked)
        code = main(argv)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that is forked; it ends when its standard input is closed, with this one."""
    command = [sys.executable, __file__]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )


def serve() -> None:
    """Fork a child for each line of standard input and answer with its exit code."""
    sys.path.pop(0)
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            finish(**json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


def finish(**task: Any) -> NoReturn:
    """Run a task and end with its exit code, without half a second of taking the libraries down."""
    code: Any = 0
    try:
        become(**task)
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0) if not isinstance(code, str) else 1)


def become(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """Do what ``python *words`` does."""
    for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC if descriptor else os.O_RDONLY
        os.dup2(os.open(path, flags), descriptor)
    added = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [cwd, *(path for path in added if path not in sys.path)]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    option, program, *arguments = words
    sys.argv = ["-c" if option == "-c" else program, *arguments]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    main: Any = ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(program, "<string>", "exec"), main.__dict__)  # noqa: S102


if __name__ == "__main__":
    serve()
