"""``hotswap verify``: run the contract on a deployment and say whether it is ready to hot-swap.

The contract runs in a process of its own, under pytest, with this package's ini file: neither the
settings of the project in the current folder nor those of the environment can leave a law out.
"""

from __future__ import annotations

import argparse
import glob
import importlib.resources
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hotswap.errors import AdapterError
from hotswap.report import text

if TYPE_CHECKING:
    from hotswap.adapters.plan import SwapPlan
    from hotswap.findings import Finding

Backend = Literal["eager", "aot_eager", "inductor"]
BACKENDS: tuple[Backend, ...] = ("eager", "aot_eager", "inductor")
READY, NOT_READY, USAGE, INTERRUPTED = 0, 1, 2, 130
GRACE = 10.0
"""Seconds that an interrupted child is given to write its last records."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the command."""

    adapters: tuple[str, ...] = ()
    base: str | None = None
    subject: str | None = None
    backend: Backend = "eager"
    demo: bool = False
    as_json: bool = False
    timing: bool = True
    verbose: bool = False
    pytest_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child process ended; ``output`` is what it printed, standard error included."""

    code: int
    output: str
    interrupted: bool


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after ``hotswap verify``; return the exit code."""
    own, rest = _split(argv)
    try:
        options = _parser().parse_args(own)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else USAGE
    return verify(
        Request(
            adapters=tuple(options.adapters),
            base=options.base,
            subject=options.subject,
            backend=options.backend,
            demo=options.demo,
            as_json=options.as_json,
            timing=not options.no_timing,
            verbose=options.verbose,
            pytest_args=tuple(rest),
        )
    )


def verify(request: Request) -> int:
    """Verify a deployment, print the report, and return the exit code.

    0: ready; 1: a law or an adapter failed, or did not run; 2: the call was wrong, or nothing was
    verified; 130: interrupted, after printing what was found until then.
    """
    problem = _usage_problem(request)
    if problem:
        return _refuse(problem)
    with tempfile.TemporaryDirectory(prefix="hotswap-verify-") as folder:
        try:
            if request.demo:
                request = _with_demo(request, Path(folder))
            return _verify(request, Path(folder))
        except KeyboardInterrupt:
            _say("interrupted; nothing was verified")
            return INTERRUPTED
        except ChildError as error:
            _say(error.output)
            return _refuse(str(error))


class ChildError(Exception):
    """A child process that the report needs ended without doing its work."""

    def __init__(self, message: str, output: str) -> None:
        self.output = output
        super().__init__(message)


def _verify(request: Request, folder: Path) -> int:
    plan: SwapPlan | None = None
    if request.adapters:
        plan, findings = _plan_of(request.adapters)
        if plan is None or findings:
            for finding in findings:
                print(finding, file=sys.stderr)
            return NOT_READY
        if not request.as_json:
            print(plan, flush=True)
            print(flush=True)
    report = folder / "report.jsonl"
    ended = _run(_pytest_command(request, report), folder / "pytest.txt", lambda: _progress(report))
    results = text.Results.read(report)
    if request.verbose:
        _say(ended.output)
    if not ended.interrupted:
        if not any(record.get("law") for record in results.records):
            if not request.verbose:
                _say(ended.output)
            return _refuse("nothing was verified")
        if results.exitstatus is None and not request.verbose:
            _say(ended.output)
    names = _names(plan, results)
    timing = None if ended.interrupted else _timing(request, folder)
    if timing is not None and timing.pop("interrupted", False):
        ended = replace(ended, interrupted=True)
    verdict = text.verdict(results, names, target_rank=plan.target_rank if plan else None)
    if request.as_json:
        print(_json(plan, results, names, timing, verdict))
    else:
        _print_report(results, names, timing, verdict)
    if ended.interrupted:
        return INTERRUPTED
    return READY if verdict.ready else NOT_READY


def _print_report(
    results: text.Results,
    names: Sequence[str],
    timing: text.Record | None,
    verdict: text.Verdict,
) -> None:
    print(text.adapter_table(text.adapter_rows(results, names)), end="\n\n")
    print(text.law_table(text.law_rows(results)), end="\n\n")
    if timing is not None:
        print(text.timing_table(timing), end="\n\n")
    print(verdict.line, flush=True)


def _json(
    plan: SwapPlan | None,
    results: text.Results,
    names: Sequence[str],
    timing: text.Record | None,
    verdict: text.Verdict,
) -> str:
    document = {
        "plan": plan.to_dict() if plan else None,
        "adapters": [asdict(row) for row in text.adapter_rows(results, names)],
        "laws": [asdict(row) for row in text.law_rows(results)],
        "timing": timing,
        "swaps": results.swaps,
        "recompiles": results.recompiles,
        "outcome": verdict.outcome,
        "verdict": verdict.line,
    }
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity: they become text."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(argv)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hotswap verify",
        usage="hotswap verify (ADAPTER... --base PATH | --demo) [options] [-- PYTEST_ARGS]",
        description="Run the hot-swap contract on a base model and its adapters.",
        allow_abbrev=False,
    )
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help="adapter folders")
    parser.add_argument("--base", metavar="PATH", help="folder of the base model")
    parser.add_argument(
        "--subject", metavar="SUBJECT", help="deployment under test: module:Class or file.py:Class"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="eager", help="torch.compile backend of the contract"
    )
    parser.add_argument("--demo", action="store_true", help="write a small fleet and verify it")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
    parser.add_argument("--no-timing", action="store_true", help="leave out the timing table")
    parser.add_argument("--verbose", action="store_true", help="show what pytest prints")
    return parser


def _usage_problem(request: Request) -> str | None:
    if request.backend not in BACKENDS:
        return f"unknown backend {request.backend!r}; choose from {', '.join(BACKENDS)}"
    if request.demo:
        if request.base or request.adapters:
            return "--demo brings its own base model and adapters; leave out ADAPTER and --base"
        return None
    seen: dict[str, str] = {}
    for path in request.adapters:
        name = Path(path).resolve().name
        if name in seen:
            return (
                f"{seen[name]} and {path} have the same name; the report could not tell them apart"
            )
        seen[name] = path
    if request.base and not Path(request.base).is_dir():
        return f"--base {request.base}: no such folder; give the folder of the base model"
    if request.subject:
        return None  # a subject may name its own base model and adapters
    if not request.adapters:
        return "no adapters; give adapter folders and --base PATH, or try hotswap verify --demo"
    if not request.base:
        return "no base model; give --base PATH, the folder of the model the adapters belong to"
    return None


def _with_demo(request: Request, folder: Path) -> Request:
    """Write the demo in a child process and name its folders, as a user would."""
    from hotswap.cli.demo import demo_paths

    command = [sys.executable, "-m", "hotswap.cli.demo", str(folder)]
    ended = _run(command, folder / "demo.txt", lambda: "writing a model and four adapters")
    if ended.interrupted:
        raise KeyboardInterrupt
    if ended.code:
        raise ChildError("the demo could not be written", ended.output)
    base, adapters = demo_paths(folder)
    return replace(request, base=str(base), adapters=tuple(str(path) for path in adapters))


def _plan_of(adapters: Sequence[str]) -> tuple[SwapPlan | None, list[Finding]]:
    """Plan from the files' headers alone; every finding of every adapter, not only the first."""
    from hotswap.adapters.plan import plan
    from hotswap.adapters.spec import AdapterSpec

    specs: list[AdapterSpec] = []
    findings: list[Finding] = []
    for path in adapters:
        try:
            specs.append(AdapterSpec.read(path))
        except AdapterError as error:
            findings += error.findings
    for spec in specs:
        findings += spec.findings
    if len(specs) < len(adapters):
        return None, sorted(set(findings))
    made = plan(specs)
    return made, sorted({*findings, *made.conflicts})


def _names(plan: SwapPlan | None, results: text.Results) -> tuple[str, ...]:
    reported = text.adapter_names(results)
    if plan is None:
        return reported
    return tuple(summary.name for summary in plan.adapters)


def _pytest_command(request: Request, report: Path) -> list[str]:
    ini = importlib.resources.files("hotswap.cli").joinpath("verify.ini")
    command = [sys.executable, "-m", "pytest", "-c", str(ini), "--rootdir", str(Path.cwd())]
    command += ["--pyargs", "pytest_hotswap.suite", "--hotswap-backend", request.backend]
    if request.subject:
        command += ["--hotswap-subject", request.subject]
    if request.base:
        command += ["--hotswap-base", str(Path(request.base).resolve())]
    for path in request.adapters:
        command += ["--hotswap-adapters", glob.escape(str(Path(path).resolve()))]
    return [*command, "--hotswap-report", str(report), *request.pytest_args]


def _environment() -> dict[str, str]:
    """The environment without what would change the selection of tests behind the user's back."""
    leaks = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    return {key: value for key, value in os.environ.items() if key not in leaks}


def _timing(request: Request, folder: Path) -> text.Record | None:
    """Measure in a child process; what goes wrong is said in the table, and changes no verdict."""
    if not request.timing:
        return None
    if not request.base or not request.adapters:
        return {"error": "timing needs ADAPTER... and --base", "rows": []}
    command = [sys.executable, "-m", "hotswap.checks.timing", "--base", request.base]
    answer = folder / "timing.json"
    ended = _run(
        [*command, "--output", str(answer), "--", *request.adapters],
        folder / "timing.txt",
        lambda: "timing",
    )
    if ended.interrupted:
        return {"error": "interrupted", "rows": [], "interrupted": True}
    if ended.code or not answer.exists():
        lines = [line for line in ended.output.splitlines() if line.strip()]
        return {"error": lines[-1] if lines else f"exit code {ended.code}", "rows": []}
    timing: text.Record = json.loads(answer.read_text(encoding="utf-8"))
    return timing


def _run(command: Sequence[str], output: Path, status: Callable[[], str]) -> Ended:
    """Run a child to its end with its output in a file; Ctrl-C lets it finish its report first."""
    interrupted = False
    with output.open("wb") as sink:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=_environment()
        )
        try:
            _wait(child, status)
        except KeyboardInterrupt:
            interrupted = True
            _stop(child)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    shown = output.read_text(encoding="utf-8", errors="replace")
    return Ended(child.returncode, shown, interrupted or child.returncode == -signal.SIGINT)


def _wait(child: subprocess.Popen[bytes], status: Callable[[], str]) -> None:
    with _progress_line() as show:
        while child.poll() is None:
            show(status())
            time.sleep(0.1)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a child: a terminal's Ctrl-C has reached it already, a signal to this process has not."""
    for name in (None, signal.SIGINT):
        try:
            if name is not None:
                child.send_signal(name)
            child.wait(timeout=GRACE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
        return


@contextmanager
def _progress_line() -> Iterator[Callable[[str], None]]:
    """A line on standard error that is rewritten; silent when that is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as shown:
        yield lambda line: shown.update(line)


def _progress(report: Path) -> str:
    records = text.Results.read(report).records
    last = f", last: {records[-1].get('law') or 'a test'}" if records else ""
    return f"verifying: {len(records)} tests done{last}"


def _say(message: str) -> None:
    print(message.rstrip(), file=sys.stderr, flush=True)


def _refuse(problem: str) -> int:
    _say(f"hotswap verify: {problem}")
    return USAGE
