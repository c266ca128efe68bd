"""``hotswap verify``: run the contract on a deployment and say whether it is ready to hot-swap.

The contract runs in a process of its own, under pytest, with this package's ini file: neither the
settings of the project in the current folder nor those of the environment can leave a law out.
"""

from __future__ import annotations

import glob
import importlib.resources
import importlib.util
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hotswap.cli import child
from hotswap.cli.folders import adapter_folders
from hotswap.cli.terminal import say
from hotswap.errors import AdapterError, HotswapError, MissingExtraError
from hotswap.report import text

if TYPE_CHECKING:
    from hotswap.adapters.plan import SwapPlan
    from hotswap.findings import Finding

Backend = Literal["eager", "aot_eager", "inductor"]
READY, NOT_READY, USAGE, INTERRUPTED = 0, 1, 2, 130
EPILOG = """\b
Examples:
  hotswap verify --demo
  hotswap verify 'adapters/*' --base path/to/base
  hotswap verify 'adapters/*' --base path/to/base -- -k swap -n 2

What follows -- goes to pytest: -k selects laws, -n 2 spreads them over processes.

Exit codes: 0, ready; 1, a law or an adapter failed or did not run; 2, wrong usage, or nothing was
verified; 130, Ctrl-C, after what was found until then.
"""


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


def verify(
    context: typer.Context,
    adapters: Annotated[
        list[str] | None,
        typer.Argument(metavar="ADAPTER", help="Adapter folders, or patterns like 'adapters/*'."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder of the base model.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Write a small model and four adapters, and verify them.")
    ] = False,
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="SUBJECT",
            help="Code that loads, prepares, compiles and swaps, as module:Class or file.py:Class;"
            " hotswap's own if not given.",
        ),
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="Backend of torch.compile while the laws are checked.")
    ] = "eager",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    no_timing: Annotated[
        bool, typer.Option("--no-timing", help="Leave out the timing table.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what pytest prints.")] = False,
) -> None:
    """Prove that a fleet of adapters can be hot-swapped.

    Loads, prepares and compiles the base model, swaps every adapter in, and checks the laws of
    hot-swapping, each with a control that shows that the check can fail. The last line says
    whether the fleet is ready to hot-swap, or what is wrong.
    """
    request = Request(
        adapters=tuple(adapter_folders("verify", adapters or ())),
        base=base,
        subject=subject,
        backend=backend,
        demo=demo,
        as_json=as_json,
        timing=not no_timing,
        verbose=verbose,
        pytest_args=tuple(context.obj),
    )
    raise typer.Exit(_answer(request))


def _answer(request: Request) -> int:
    problem = _usage_problem(request)
    if problem:
        return _refuse(problem)
    with tempfile.TemporaryDirectory(prefix="hotswap-verify-") as folder:
        try:
            if request.demo:
                request = _with_demo(request, Path(folder))
            return _verify(request, Path(folder))
        except KeyboardInterrupt:
            say("interrupted; nothing was verified", error=True)
            return INTERRUPTED


def _usage_problem(request: Request) -> str | None:
    if _wants_xdist(request.pytest_args) and importlib.util.find_spec("xdist") is None:
        return str(MissingExtraError("-n", "pytest-xdist", "xdist"))
    if request.demo:
        if request.base or request.adapters:
            return "--demo brings its own base model and adapters; leave out ADAPTER and --base"
        return None
    seen: dict[str, str] = {}
    for path in request.adapters:
        name = Path(path).resolve().name
        if name in seen:
            return (
                f"{seen[name]} and {path} have the same name, so the report could not tell them"
                " apart; rename one of the folders"
            )
        seen[name] = path
    if request.base is not None and not Path(request.base).is_dir():
        return f"--base {request.base}: no such folder; give the folder of the base model"
    if request.subject:
        return None  # a subject may name its own base model and adapters
    if not request.adapters:
        return "no adapters; give adapter folders and --base PATH, or try hotswap verify --demo"
    if request.base is None:
        return "no base model; give --base PATH, the folder of the model the adapters belong to"
    if not Path(request.base, "config.json").is_file():
        return (
            f"--base {request.base}: no config.json in it; give a folder that the model's"
            " save_pretrained wrote"
        )
    return None


def _wants_xdist(pytest_args: Sequence[str]) -> bool:
    return any(word.startswith(("-n", "--numprocesses")) for word in pytest_args)


def _with_demo(request: Request, folder: Path) -> Request:
    """Write the demo in a child process and name its folders, as a user would."""
    from hotswap.cli.demo import demo_paths

    command = [sys.executable, "-m", "hotswap.cli.demo", str(folder)]
    ended = child.run(command, folder / "demo.txt", lambda: "writing a model and four adapters")
    if ended.interrupted:
        raise KeyboardInterrupt
    if ended.code:
        raise HotswapError(f"the demo could not be written: {ended.last_line}")
    base, adapters = demo_paths(folder)
    return replace(request, base=str(base), adapters=tuple(str(path) for path in adapters))


def _verify(request: Request, folder: Path) -> int:
    plan, findings = _plan_of(request.adapters)
    if plan is not None and not request.as_json:
        say(plan, "")
    if findings:
        return _report_findings(request, plan, findings)
    report = folder / "report.jsonl"
    command = _pytest_command(request, report)
    ended = child.run(command, folder / "pytest.txt", lambda: progress(report))
    results = text.Results.read(report)
    if request.verbose:
        say(ended.output.rstrip(), error=True)
    if not ended.interrupted:
        if not any(record.get("law") for record in results.records):
            return _refuse_run(request, results, ended.output)
        if results.exitstatus is None and not request.verbose:
            say(ended.output.rstrip(), error=True)
    names = _names(plan, results)
    timing = None if ended.interrupted else _timing(request, folder)
    if timing is not None and timing.pop("interrupted", False):
        ended = replace(ended, interrupted=True)
    verdict = text.verdict(results, names, target_rank=plan.target_rank if plan else None)
    if request.as_json:
        say(_json(plan, results, names, timing, verdict))
    else:
        _print_report(results, names, timing, verdict)
    if ended.interrupted:
        return INTERRUPTED
    return READY if verdict.ready else NOT_READY


def _plan_of(adapters: Sequence[str]) -> tuple[SwapPlan | None, tuple[Finding, ...]]:
    """Plan from the files' headers alone; None for a subject that names its own adapters."""
    from hotswap.adapters.plan import plan

    if not adapters:
        return None, ()
    try:
        made = plan(adapters)
    except AdapterError as error:
        return None, error.findings
    return made, made.conflicts


def _report_findings(request: Request, plan: SwapPlan | None, findings: Sequence[Finding]) -> int:
    """Say why the files of the adapters rule out a run."""
    if plan is None or request.as_json:  # else they stand in the plan
        say(*findings, error=True)
    count = f"{len(findings)} finding{'' if len(findings) == 1 else 's'}"
    line = f"not ready: {count} in the files of the adapters, so nothing was run"
    verdict = text.Verdict("not ready", line)
    say(_json(plan, text.Results(), (), None, verdict) if request.as_json else verdict.line)
    return NOT_READY


def _refuse_run(request: Request, results: text.Results, output: str) -> int:
    """Say why no law was tried: what each failing record says, or else what pytest printed."""
    messages = dict.fromkeys(str(r["message"]) for r in results.records if r.get("message"))
    if not messages and not request.verbose:
        say(output.rstrip(), error=True)
    return _refuse(": ".join(["nothing was verified", *messages]))


def _print_report(
    results: text.Results,
    names: Sequence[str],
    timing: text.Record | None,
    verdict: text.Verdict,
) -> None:
    say(text.adapter_table(text.adapter_rows(results, names)), "")
    say(text.law_table(text.law_rows(results)), "")
    if timing is not None:
        say(text.timing_table(timing), "")
    say(verdict.line)


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


def _timing(request: Request, folder: Path) -> text.Record | None:
    """Measure in a child process; what goes wrong is said in the table, and changes no verdict."""
    if not request.timing:
        return None
    if not request.base or not request.adapters:
        return {"error": "timing needs ADAPTER... and --base", "rows": []}
    command = [sys.executable, "-m", "hotswap.checks.timing", "--base", request.base]
    answer = folder / "timing.json"
    ended = child.run(
        [*command, "--output", str(answer), "--", *request.adapters],
        folder / "timing.txt",
        lambda: "timing: no compile, compiled unprepared, compiled prepared",
    )
    if ended.interrupted:
        return {"error": "interrupted", "rows": [], "interrupted": True}
    if ended.code or not answer.exists():
        return {"error": ended.last_line, "rows": []}
    timing: text.Record = json.loads(answer.read_text(encoding="utf-8"))
    return timing


def progress(report: Path) -> str:
    """Say how far the run is, from the records written until now."""
    records = text.Results.read(report).records
    last = f", last: {records[-1].get('law') or 'a test'}" if records else ""
    return f"verifying: {len(records)} tests done{last}"


def _refuse(problem: str) -> int:
    say(f"hotswap verify: {problem}", error=True)
    return USAGE
