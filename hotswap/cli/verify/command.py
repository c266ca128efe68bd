"""``hotswap verify``: run the contract on a deployment and say whether it is ready to hot-swap.

The contract runs in a process of its own, under pytest, with this package's ini file: neither the
settings of the project in the current folder nor those of the environment can leave a law out.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
from click import Choice, option

from hotswap.adapters.pickles import rewritten, torch_file
from hotswap.adapters.plan import SwapPlan
from hotswap.bench.timing import default_backend
from hotswap.cli.command import FILE, FOLDER, SEVERAL, Command, Exit
from hotswap.cli.fleet import files_of, read_fleet, read_values, shard
from hotswap.cli.folders import adapter_folders, as_patterns
from hotswap.cli.options import PICKLE
from hotswap.cli.terminal import say
from hotswap.cli.verify import child
from hotswap.cli.verify.request import Backend, Dtype, Form, Level, Request, usage_problem
from hotswap.cli.verify.suite import Run, run_suite, run_timing
from hotswap.cli.verify.tiny import write_small
from hotswap.errors import HotswapError, MissingExtraError, UnreadableAdapterError
from hotswap.report import text
from hotswap.report.document import Document, derive, dumps
from hotswap.report.github import github

READY, NOT_READY, USAGE, INTERRUPTED = 0, 1, 2, 130
EPILOG = """\b
Examples:
  hotswap verify --demo --report out/
  hotswap verify 'adapters/*' --base path/to/base --report out/
  hotswap verify 'adapters/*' --base path/to/base -n 2 -- -k swap_forgets
  hotswap verify 'adapters/*' --base path/to/base --shard 2/8 --report shard-2/
  hotswap verify 'adapters/*' --base path/to/base --tp 2

What follows -- goes to pytest: -k selects laws, --hypothesis-seed repeats a random walk.

Exit codes: 0, ready; 1, a law or an adapter failed or did not run; 2, wrong usage, or nothing was
verified; 130, Ctrl-C, after what was found until then.
"""


fail_on_option = option(
    "--fail-on",
    type=Choice(get_args(Level)),
    default="error",
    help="Exit with 1 at an error only, or at a warning too.",
)


@click.command(
    cls=Command,
    arguments={"ADAPTER": "Adapter folders, or patterns like 'adapters/*'."},
    epilog=EPILOG,
)
@click.argument("adapters", metavar="[ADAPTER]...", nargs=-1)
@option("--base", metavar="PATH", help="Base model: a folder, or a hub id.")
@option("--demo", is_flag=True, help="Write a small model and four adapters, and verify them.")
@option("--package", type=FILE, help="Verify this .pt2 file of hotswap.export against --base.")
@option("--plan", type=FILE, help="Plan to hold the adapters to; their own if not given.")
@option(
    "--subject",
    metavar="SUBJECT",
    help="Code that loads, prepares, compiles and swaps, as module:Class or file.py:Class;"
    " hotswap's own if not given.",
)
@option(
    "--report", type=FOLDER, help="Write report.html, report.json and junit.xml into this folder."
)
@option(
    "--backend",
    type=Choice(get_args(Backend)),
    help="Backend of torch.compile; inductor, as in production, if not given.",
)
@option(
    "--tp",
    type=SEVERAL,
    metavar="N",
    help="Cut --base over N processes, as transformers does: NCCL where there are N GPUs, else gloo.",
)
@option("--compile-mode", metavar="MODE", help="Mode of torch.compile: max-autotune, …")
@option("--tiny", is_flag=True, help="Verify a small copy of the model, cut from its config alone.")
@option("--regional", is_flag=True, help="Compile the repeated blocks instead of the model.")
@option("--device", metavar="DEVICE", help="Where the model runs: cpu, cuda, cuda:1.")
@option("--dtype", type=Choice(get_args(Dtype)), help="Cast the base model to this dtype.")
@option("--inputs", type=FILE, help="Arguments of a forward, as a .safetensors file.")
@option(
    "--time-budget", metavar="TIME", help="Start no test after 90s, 10m or 2h; the rest is not run."
)
@option(
    "--shard", metavar="I/N", help="Verify this part of the adapters; see hotswap report merge."
)
@option("-n", "processes", metavar="N", help="Spread over processes: a number, auto.")
@PICKLE
@fail_on_option
@option(
    "--format",
    "form",
    type=Choice(get_args(Form)),
    default="text",
    help="Print tables, the report as JSON, or annotations for GitHub.",
)
@option("--json", "form", flag_value="json", help="The same as --format json.")
@option("--no-timing", is_flag=True, help="Leave out the timing table.")
@option("--verbose", is_flag=True, help="Show what pytest prints.")
@click.pass_obj
def verify(pytest_args: list[str], /, adapters: tuple[str, ...], **options: Any) -> None:
    """Prove that a fleet of adapters can be hot-swapped.

    Loads, prepares and compiles the base model, swaps every adapter in, and checks the laws of
    hot-swapping, each with a control that shows that the check can fail. The last line says
    whether the fleet is ready to hot-swap, or what is wrong.
    """
    folders = {Path(path).resolve(): path for path in adapter_folders("verify", adapters)}
    command = spoken(adapters, options)
    paths, words = tuple(folders.values()), tuple(pytest_args)
    raise Exit(_answer(Request(adapters=paths, pytest_args=words, command=command, **options)))


_REPEATED = (
    "base",
    "package",
    "plan",
    "subject",
    "backend",
    "compile_mode",
    "device",
    "dtype",
    "inputs",
    "tp",
)
"""Options that say what is verified, which a command that repeats a law needs too."""


def spoken(adapters: Sequence[str], options: Mapping[str, Any]) -> str:
    """The command line that runs the same laws on the same deployment, whatever shard this is."""
    words = ["hotswap", "verify", *as_patterns(adapters)]
    for name in _REPEATED:
        if options.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    flags = [name for name in ("demo", "tiny", "regional", "allow_pickle") if options.get(name)]
    words += [f"--{name.replace('_', '-')}" for name in flags]
    return shlex.join(words)


def _answer(request: Request) -> int:
    if problem := usage_problem(request):
        return _refuse(problem)
    with child.stoppable(), tempfile.TemporaryDirectory(prefix="hotswap-verify-") as folder:
        try:
            return _verify(request, Path(folder), time.time() + request.seconds)
        except KeyboardInterrupt:
            say("interrupted; nothing was verified", error=True)
            return INTERRUPTED


def _verify(request: Request, folder: Path, deadline: float) -> int:
    warned: list[str] = []
    notes: list[str] = []
    if request.backend is None:
        request = replace(request, backend=default_backend())  # type: ignore[arg-type]
        if request.backend != "inductor":
            warned.append("no C++ compiler was found, so the backend was aot_eager")
    if request.demo:
        request = _with_demo(request, folder)
    if request.allow_pickle:
        request, notes = _without_pickles(request, folder)
    given = SwapPlan.read(request.plan) if request.plan else None
    fleet = read_fleet(request.adapters, given)
    sizes = {path: spec.bytes for path, spec in fleet.specs.items()}
    mine = shard(request.adapters, sizes, *(request.part or (1, 1)))
    fleet = read_values(fleet, mine)
    if fleet.plan is not None and request.form == "text":
        say(fleet.plan.text(adapters=text.MOST), "")
    say(*(finding for path in mine for finding in fleet.refused.get(path, ())), error=True)
    run = Run()
    accepted = [path for path in mine if path not in fleet.refused]
    if accepted or not request.adapters:
        tried = request, fleet, mine
        if request.tiny:
            try:
                base, small, cut, shrunk = write_small(
                    str(request.base), fleet, accepted, folder / "tiny"
                )
            except HotswapError as error:
                return _refuse(str(error))
            request = replace(request, cut=shrunk)
            tried = replace(request, base=base), cut, small
        run = run_suite(*tried, folder, deadline)
        judged = any(record.get("law") for record in run.results.records)
        if not (judged or time.time() > deadline or run.interrupted):
            return _refuse_run(request, run)
        if run.results.exitstatus is None and not (run.interrupted or request.verbose):
            say(run.output.rstrip(), error=True)
        untimed = request.no_timing or request.tiny or request.package or request.tp
        if not (untimed or run.interrupted):
            run = run_timing(request, run, accepted, folder, deadline)
    files = run.files or files_of(request.adapters, mine, fleet)
    document = derive(_gathered(request, files, run, warned, notes))
    if request.report is not None:
        write_report(document, request.report)
    _print(request, document, run)
    return INTERRUPTED if run.interrupted else exit_code(document)


def exit_code(document: Document) -> int:
    """0 for a fleet that is ready, as the last line says."""
    return READY if document["verdict"]["outcome"] == "ready" else NOT_READY


def write_report(document: Document, folder: Path) -> None:
    """Write the three files of a report, and a script for each law that failed.

    Without the extra that the page needs, there is no page.
    """
    from hotswap.report.html import html
    from hotswap.report.junit import junit

    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (("report.json", dumps), ("junit.xml", junit)):
        (folder / name).write_text(write(document), encoding="utf-8")
    scripts = {f"reproduce-{law}.py": script for law, script in _scripts(document).items()}
    for old in folder.glob("reproduce-*.py"):
        old.unlink()
    for name, script in scripts.items():
        (folder / name).write_text(script, encoding="utf-8")
    more = "".join(f", {name}" for name in scripts)
    try:
        (folder / "report.html").write_text(html(document), encoding="utf-8")
    except MissingExtraError as error:
        told = f"wrote {folder / 'report.json'} and junit.xml{more}, and no report.html: {error}"
    else:
        told = f"wrote {folder / 'report.html'}, report.json and junit.xml{more}"
    say(told, error=True)


def _scripts(document: Document) -> dict[str, str]:
    """The script of the first failure of each law."""
    tests = [test for test in document["tests"] if test.get("script") and test.get("law")]
    return {str(test["law"]): str(test["script"]) for test in reversed(tests)}


def _with_demo(request: Request, folder: Path) -> Request:
    """Write the demo in a child process and name its folders, as a user would."""
    from hotswap.cli.verify.demo import demo_paths

    command = [sys.executable, "-m", "hotswap.cli.verify.demo", str(folder)]
    ended = child.run(command, folder / "demo.txt", lambda: "writing a model and four adapters")
    if ended.interrupted:
        raise KeyboardInterrupt
    if ended.code:
        raise HotswapError(f"the demo could not be written: {ended.last_line}")
    base, adapters = demo_paths(folder)
    return replace(request, base=str(base), adapters=tuple(str(path) for path in adapters))


def _without_pickles(request: Request, folder: Path) -> tuple[Request, list[str]]:
    """Write adapters that torch.save wrote as safetensors, under their names; what cannot be stays."""
    adapters, count = [], 0
    for number, path in enumerate(request.adapters):
        pickled = torch_file(Path(path))
        if pickled is not None:
            copy = folder / "rewritten" / str(number) / Path(path).resolve().name
            copy.mkdir(parents=True)
            try:
                path = str(rewritten(pickled, copy))
                count += 1
            except UnreadableAdapterError as error:
                say(*error.findings, error=True)
        adapters.append(path)
    note = f"adapters read from pickles, by torch.load(weights_only=True): {count}"
    return replace(request, adapters=tuple(adapters)), [note] if count else []


def _gathered(
    request: Request,
    files: Mapping[str, Any],
    run: Run,
    warned: Sequence[str],
    notes: Sequence[str],
) -> dict[str, Any]:
    part = request.part
    return {
        "request": request.told(),
        **files,
        "tests": run.results.records,
        "exitstatus": run.results.exitstatus,
        "interrupted": run.interrupted,
        "timing": run.timing,
        "warnings": warned,
        "notes": notes,
        "shards": [{"index": part[0], "count": part[1]}] if part else [],
    }


def _print(request: Request, document: Document, run: Run) -> None:
    if request.form != "text":
        say(dumps(document).rstrip() if request.form == "json" else github(document))
        return
    judged = [a for a in document["adapters"] if not a["findings"]]
    warnings = document["verdict"]["warnings"]
    if run.results.records:
        say(text.adapter_table(judged), "")
        say(text.law_table(document["laws"], document["verdict"]["reasons"]), "")
    if document["timing"] is not None:
        say(text.timing_table(document["timing"]), "")
    made = dict.fromkeys(told["inputs"] for told in document["environment"] if "inputs" in told)
    say(*(f"inputs: {inputs}" for inputs in made))
    say(*text.warning_lines(warnings))
    if max(len(judged), len(warnings)) > text.MOST and request.report is None:
        say("not all adapters and warnings are shown; --report FOLDER writes all")
    say(document["verdict"]["line"])


def _refuse_run(request: Request, run: Run) -> int:
    """Say why no law was tried: what each failing record says, or else what pytest printed."""
    if not (problem := run_problem(request, run)) and not request.verbose:
        say(run.output.rstrip(), error=True)
    return _refuse(": ".join(["nothing was verified", *problem]))


def run_problem(request: Request, run: Run) -> list[str]:
    """What failing records say, in the words of this command's options; nothing where they say nothing."""
    failing = [record for record in run.results.records if record["outcome"] == "failed"]
    messages = dict.fromkeys(str(r["message"]) for r in failing if r.get("message"))
    told = [
        m.replace("--hotswap-adapters", "ADAPTER").replace("--hotswap-", "--") for m in messages
    ]
    if told and request.tiny:
        told[-1] += "; --tiny has cut the model, so verify the model itself"
    return told


def _refuse(problem: str) -> int:
    say(f"hotswap verify: {problem}", error=True)
    return USAGE
