"""What ``hotswap verify`` is asked for, and what is wrong with the asking, before any work starts."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hotswap.bench.timing import default_backend
from hotswap.cli.fleet import parse_shard
from hotswap.errors import HotswapError, MissingExtraError

Backend = Literal["eager", "aot_eager", "inductor"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the command; ``backend`` None is inductor, or in the demo what there is."""

    adapters: tuple[str, ...] = ()
    base: str | None = None
    plan: Path | None = None
    subject: str | None = None
    backend: Backend | None = None
    compile_mode: str | None = None
    regional: bool = False
    device: str | None = None
    dtype: Dtype | None = None
    inputs: Path | None = None
    time_budget: str | None = None
    shard: str | None = None
    processes: str | None = None
    report: Path | None = None
    fail_on: Level = "error"
    demo: bool = False
    as_json: bool = False
    timing: bool = True
    verbose: bool = False
    pytest_args: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """The time budget."""
        return None if self.time_budget is None else parse_duration(self.time_budget)

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard's index and their count."""
        return None if self.shard is None else parse_shard(self.shard)

    def told(self) -> dict[str, Any]:
        """What the report says of the request; equal for all shards of one run."""
        return {
            "base": self.base,
            "subject": self.subject,
            "backend": self.backend,
            "compile_mode": self.compile_mode,
            "regional": self.regional,
            "device": self.device,
            "dtype": self.dtype,
            "inputs": str(self.inputs) if self.inputs else None,
            "plan_file": str(self.plan) if self.plan else None,
            "time_budget": self.time_budget,
            "fail_on": self.fail_on,
            "demo": self.demo,
            "pytest_arguments": list(self.pytest_args),
        }


def parse_duration(text: str) -> float:
    """Read ``90``, ``90s``, ``10m`` or ``2h`` as seconds; raises HotswapError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None or float(found[1]) == 0:
        raise HotswapError(f"--time-budget is {text!r}; write seconds, or 90s, 10m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def usage_problem(request: Request) -> str | None:
    """Say in one sentence why the request cannot be carried out; None when it can."""
    try:
        _ = request.seconds, request.part
        if request.processes is not None or _wants_xdist(request.pytest_args):
            _require_xdist()
        if request.report is not None:
            _require_report(request.report)
    except HotswapError as error:
        return str(error)
    return _compile_problem(request) or _file_problem(request) or _adapter_problem(request)


def _wants_xdist(pytest_args: Sequence[str]) -> bool:
    return any(word.startswith(("-n", "--numprocesses")) for word in pytest_args)


def _require_xdist() -> None:
    if importlib.util.find_spec("xdist") is None:
        raise MissingExtraError("-n", "pytest-xdist", "xdist")


def _require_report(folder: Path) -> None:
    """Hours of work must not end in a folder that cannot be written."""
    from hotswap.report.html import require_extra

    require_extra()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 2**20)  # a disk that is full says so only when it is written to
    except OSError as error:
        raise HotswapError(
            f"--report {folder}: cannot be written: {error.strerror or error}; give another folder"
        ) from error


def _compile_problem(request: Request) -> str | None:
    on_cpu = (request.device or "cpu").startswith("cpu")
    wanted = "inductor" if request.backend is None and not request.demo else request.backend
    if wanted == "inductor" and on_cpu and default_backend() != "inductor":
        return (
            "the backend inductor needs a C++ compiler, and none was found; install g++ or clang++, "
            "or give --backend aot_eager"
        )
    if request.compile_mode is not None and request.backend not in (None, "inductor"):
        return f"--compile-mode is inductor's, and the backend is {request.backend}; leave one out"
    return None


def _file_problem(request: Request) -> str | None:
    if request.inputs is not None and not request.inputs.is_file():
        return f"--inputs {request.inputs}: no such file; give a .safetensors file of the inputs"
    if request.plan is not None and not request.plan.is_file():
        return f"--plan {request.plan}: no such file; make it with 'hotswap plan -o {request.plan}'"
    return None


def _adapter_problem(request: Request) -> str | None:
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
    if request.part is not None and request.part[1] > len(request.adapters):
        return f"--shard {request.shard}: there are only {len(request.adapters)} adapters"
    if request.base is not None and _is_missing(request.base):
        return f"--base {request.base}: no such folder; give the folder of the base model"
    if request.subject:
        return None  # a subject may name its own base model and adapters
    if not request.adapters:
        return "no adapters; give adapter folders and --base PATH, or try hotswap verify --demo"
    if request.base is None:
        return "no base model; give --base PATH, the folder of the model the adapters belong to"
    if Path(request.base).is_dir() and not Path(request.base, "config.json").is_file():
        return (
            f"--base {request.base}: no config.json in it; give a folder that the model's"
            " save_pretrained wrote"
        )
    return None


def _is_missing(base: str) -> bool:
    """A hub id is a name, or two with one slash between; everything else is a folder."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", base) is not None
    return not Path(base).is_dir() and (Path(base).exists() or not is_id)
