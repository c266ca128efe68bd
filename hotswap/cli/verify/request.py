"""What ``hotswap verify`` is asked for, and what is wrong with the asking, before any work starts."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from hotswap.bench.timing import default_backend
from hotswap.cli.fleet import parse_shard
from hotswap.errors import HotswapError, MissingExtraError

Backend = Literal["eager", "aot_eager", "inductor"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
Level = Literal["error", "warning"]
Form = Literal["text", "json", "github"]
PIPELINE = "model_index.json"
"""The file that tells a pipeline of diffusers from a model of transformers."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the command; ``backend`` None is inductor, or in the demo what there is."""

    adapters: tuple[str, ...] = ()
    base: str | None = None
    plan: Path | None = None
    subject: str | None = None
    package: Path | None = None
    backend: Backend | None = None
    compile_mode: str | None = None
    regional: bool = False
    tiny: bool = False
    cut: str | None = None  # with tiny: what was cut, once it is known
    device: str | None = None
    dtype: Dtype | None = None
    inputs: Path | None = None
    time_budget: str | None = None
    shard: str | None = None
    processes: str | None = None
    tp: int | None = None
    report: Path | None = None
    fail_on: Level = "error"
    allow_pickle: bool = False
    demo: bool = False
    no_timing: bool = False
    verbose: bool = False
    pytest_args: tuple[str, ...] = ()
    form: Form = "text"
    command: str = "hotswap verify"

    @property
    def seconds(self) -> float:
        """The time budget; infinity without one."""
        return math.inf if self.time_budget is None else parse_duration(self.time_budget)

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard's index and their count."""
        return None if self.shard is None else parse_shard(self.shard)

    @property
    def is_pipeline(self) -> bool:
        """Whether the base model is a pipeline of diffusers."""
        return self.base is not None and Path(self.base, PIPELINE).is_file()

    def told(self) -> dict[str, Any]:
        """What the report says of the request; equal for all shards of one run."""
        names = ("base", "subject", "backend", "compile_mode", "regional", "device", "dtype", "tp")
        return {
            **{name: getattr(self, name) for name in names},
            "inputs": str(self.inputs) if self.inputs else None,
            "package": str(self.package) if self.package else None,
            "plan_file": str(self.plan) if self.plan else None,
            **{
                name: getattr(self, name)
                for name in ("time_budget", "fail_on", "demo", "tiny", "cut")
            },
            "pytest_arguments": list(self.pytest_args),
            "command": self.command,
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
        return next(_problems(request), None)
    except HotswapError as error:
        return str(error)


def _problems(request: Request) -> Iterator[str]:
    """What is wrong, the first first; raises HotswapError too."""
    _ = request.seconds, request.part
    if not re.fullmatch(r"\d+|auto|logical", request.processes or "auto"):
        yield f"-n is {request.processes!r}; write a number of processes, or auto"
    for package in ("torch", "peft", "transformers"):
        if find_spec(package) is None:
            raise MissingExtraError("a run of the model", package, "torch")
    parallel = any(word.startswith(("-n", "--numprocesses")) for word in request.pytest_args)
    if (parallel or request.processes is not None) and find_spec("xdist") is None:
        raise MissingExtraError("-n", "pytest-xdist", "xdist")
    if request.report is not None:
        _require_report(request.report)
    on_cpu = (request.device or "cpu").startswith("cpu")
    wanted = "inductor" if request.backend is None and not request.demo else request.backend
    if wanted == "inductor" and on_cpu and default_backend() != "inductor":
        yield (
            "the backend inductor needs a C++ compiler, and none was found; install g++ or clang++, "
            "or give --backend aot_eager"
        )
    if request.compile_mode is not None and request.backend not in (None, "inductor"):
        yield f"--compile-mode is inductor's, and the backend is {request.backend}; leave one out"
    if (file := request.inputs) is not None and not file.is_file():
        yield f"--inputs {file}: no such file; give a .safetensors file of the inputs"
    if request.inputs is not None and request.is_pipeline:
        yield (
            "--inputs are tensors for a model's forward; give the arguments of a pipeline's call by "
            "inputs() of a PipelineSubject, with --subject"
        )
    if (file := request.plan) is not None and not file.is_file():
        yield f"--plan {file}: no such file; make it with 'hotswap plan -o {file}'"
    if (file := request.package) is not None and not file.is_file():
        yield f"--package {file}: no such file; write it with hotswap.export(model, args, path)"
    if request.tp is not None:
        yield from _tp_problems(request, request.tp)
    if request.tiny and (request.demo or request.package):
        yield "--tiny cuts a model from its config; leave it out with --demo or --package"
    if request.tiny and request.tp:
        yield "--tiny cuts sizes that --tp divides; leave one of them out"
    if request.tiny and not (request.base and request.adapters):
        yield "--tiny needs ADAPTER and --base PATH, the folder of a config.json"
    if not request.demo:
        yield from _adapter_problems(request)
    elif request.base or request.adapters:
        yield "--demo brings its own base model and adapters; leave out ADAPTER and --base"


def _tp_problems(request: Request, ranks: int) -> Iterator[str]:
    """What cannot be cut; whether so many ranks divide the model is asked last."""
    if request.package is not None:
        yield f"--tp {ranks}: an exported package is on one device; leave --package or --tp out"
    if request.is_pipeline:
        yield f"--tp {ranks}: transformers cuts models, and {request.base} is a pipeline; leave --tp out"
    if request.subject is not None:
        yield (
            f"--tp {ranks}: {request.subject} cuts the model itself; derive it from "
            "pytest_hotswap.TensorParallelSubject, set its ranks, and leave --tp out"
        )
    if request.device is not None:
        yield f"--tp {ranks}: each rank has a device of its own; leave --device out"
    if request.base is not None and Path(request.base, "config.json").is_file():
        from hotswap.checks.parallel import cuts_of

        cuts_of(request.base, ranks)  # raises HotswapError


def _require_report(folder: Path) -> None:
    """Hours of work must not end in a folder that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 2**20)  # a disk that is full says so only when it is written to
    except OSError as error:
        raise HotswapError(
            f"--report {folder}: cannot be written: {error.strerror or error}; give another folder"
        ) from error


def _adapter_problems(request: Request) -> Iterator[str]:
    seen: dict[str, str] = {}
    for path in request.adapters:
        name = Path(path).resolve().name
        if name in seen:
            yield (
                f"{seen[name]} and {path} have the same name, so the report could not tell them"
                " apart; rename one of the folders"
            )
        seen[name] = path
    if request.part is not None and request.part[1] > len(request.adapters):
        yield f"--shard {request.shard}: there are only {len(request.adapters)} adapters"
    base = request.base
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", base or "")  # a name, or two with a slash
    if base is not None and not Path(base).is_dir() and (Path(base).exists() or not is_id):
        yield f"--base {base}: no such folder; give the folder of the base model"
    if request.subject:
        return  # it may name its own base model and adapters
    if not request.adapters:
        yield "no adapters; give adapter folders and --base PATH, or try hotswap verify --demo"
    if base is None:
        yield "no base model; give --base PATH, the folder of the model the adapters belong to"
    elif Path(base).is_dir() and not (request.is_pipeline or Path(base, "config.json").is_file()):
        yield (
            f"--base {base}: no config.json and no {PIPELINE} in it; give a folder that the model's "
            "or pipeline's save_pretrained wrote"
        )
    elif request.is_pipeline and find_spec("diffusers") is None:
        raise MissingExtraError(f"--base {base}", "diffusers", "diffusers")
