"""The child processes of ``hotswap verify``: the contract under pytest, and the timing."""

from __future__ import annotations

import glob
import importlib.resources
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hotswap.cli.fleet import Fleet
from hotswap.cli.terminal import say
from hotswap.cli.verify import child
from hotswap.cli.verify.handover import Handover
from hotswap.cli.verify.progress import Progress
from hotswap.cli.verify.request import Request
from hotswap.report.records import Results

_PIPELINE = "pytest_hotswap.subjects.pipeline:PipelineSubject"
_CUT = "pytest_hotswap.subjects.tensor_parallel:TensorParallelSubject"
_PACKAGED = "pytest_hotswap.subjects.package:PackageSubject"


@dataclass(frozen=True, slots=True)
class Run:
    """What came of the child processes."""

    results: Results = field(default_factory=Results)
    timing: dict[str, Any] | None = None
    output: str = ""
    interrupted: bool = False
    files: dict[str, Any] | None = None  # what the files of a subject's own adapters say


def run_suite(
    request: Request, fleet: Fleet, mine: Sequence[str], folder: Path, deadline: float
) -> Run:
    """Run the contract; the plan is the whole fleet's, the adapters are this shard's."""
    plan = folder / "plan.json"
    if fleet.plan is not None:
        fleet.plan.save(plan)
    refused = [str(Path(path).resolve()) for path in mine if path in fleet.refused]
    settings = Handover(
        plan=str(plan) if fleet.plan is not None else None,
        device=request.device,
        dtype=request.dtype,
        compile_mode=request.compile_mode,
        regional=request.regional,
        inputs=str(request.inputs.resolve()) if request.inputs else None,
        deadline=deadline,
        budget=request.time_budget or "",
        refused=tuple(refused),
        own_adapters=not request.adapters,
        package=str(request.package.resolve()) if request.package else None,
        ranks=request.tp,
        plan_file=str(request.plan.resolve()) if request.plan else None,
        temporary=request.demo or request.tiny,
    )
    settings.save(folder / "settings.json")
    report = folder / "report.jsonl"
    command = _pytest_command(request, fleet, mine, folder)
    begun = time.monotonic()
    progress = Progress(report)
    ended = child.run(
        command, folder / "pytest.txt", lambda: progress.line(time.monotonic() - begun)
    )
    if request.verbose:
        say(ended.output.rstrip(), error=True)
    results = Results.read(report)
    told = [record.pop("files") for record in results.records if "files" in record]
    files = json.loads(told[0]) if told else None
    return Run(results, output=ended.output, interrupted=ended.interrupted, files=files)


def _own_subject(request: Request) -> str | None:
    """The subject of what is verified, where that is no plain model."""
    if request.package:
        return _PACKAGED
    if request.tp is not None:
        return _CUT
    return _PIPELINE if request.is_pipeline else None


def _pytest_command(request: Request, fleet: Fleet, mine: Sequence[str], folder: Path) -> list[str]:
    base = Path(request.base) if request.base else None
    accepted = [Path(path).resolve() for path in mine if path not in fleet.refused]
    options = [
        ("-c", importlib.resources.files("hotswap.cli.verify").joinpath("verify.ini")),
        ("--rootdir", Path.cwd()),
        ("-p", "pytest_hotswap.evidence"),
        ("--hotswap-settings", folder / "settings.json"),
        ("--hotswap-backend", request.backend),
        ("--hotswap-subject", request.subject or _own_subject(request)),
        ("--hotswap-base", base.resolve() if base and base.exists() else request.base),
        *(("--hotswap-adapters", glob.escape(str(path))) for path in accepted),
        ("-n", request.processes),
        ("--hotswap-report", folder / "report.jsonl"),
    ]
    words = [str(word) for option in options if option[1] is not None for word in option]
    command = [sys.executable, "-m", "pytest", "--pyargs", "pytest_hotswap.suite"]
    return [*command, *words, *request.pytest_args]


def run_timing(
    request: Request, run: Run, accepted: Sequence[str], folder: Path, deadline: float
) -> Run:
    """Measure in a child process; what goes wrong is said in the table, and changes no verdict."""
    answer = folder / "timing.json"
    here = [path for path in accepted if Path(path).exists()]
    if not (request.base and here) or request.is_pipeline:
        return run  # what a subject loads itself is not timed apart; its swaps are, in the laws
    if time.time() > deadline:
        problem = "the time budget was used up"
    else:
        command = [sys.executable, "-m", "hotswap.bench.timing", "--base", request.base]
        command += ["--backend", str(request.backend), "--output", str(answer)]
        command += ["--latency"] if request.report is not None else []
        shown = "timing: no compile, compiled unprepared, compiled prepared"
        ended = child.run([*command, "--", *accepted], folder / "timing.txt", lambda: shown)
        if not (ended.interrupted or ended.code) and answer.exists():
            return replace(run, timing=json.loads(answer.read_text(encoding="utf-8")))
        run = replace(run, interrupted=ended.interrupted)
        problem = "interrupted" if ended.interrupted else ended.last_line
    return replace(run, timing={"error": problem, "rows": [], "samples": {}})
