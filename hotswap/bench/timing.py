"""What a swap costs: without torch.compile, compiled but unprepared, compiled and prepared.

With ``--latency`` single swaps are sampled beside PEFT's and a plain copy.

Run as ``python -m hotswap.bench.timing --base PATH ADAPTER...`` it prints one JSON object, so a
caller that must not import torch can have the numbers. The backend is inductor where a C++ compiler
is found, else aot_eager. Compiled code of an earlier run is not reused: each first inference really
compiles.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

PREPARED = "compiled, prepared"
ROWS = ("no compile", "compiled, unprepared", PREPARED)
BY_PEFT = "compiled, prepared by PEFT"
"""The row that is there only where latencies are wanted: it costs another compile."""
SERIES = {PREPARED: "hotswap", BY_PEFT: "PEFT"}
SAMPLES, MOST_SECONDS = 100, 10.0
"""Samples of each latency, unless they take longer than this."""


@dataclass(frozen=True, slots=True)
class TimingRow:
    """One way to serve: seconds of the first inference and of a swap with the inference after it.

    ``swap`` is the median. ``recompiles`` is None where nothing is compiled; ``error`` says why a
    row could not be measured, and then the numbers are zero.
    """

    row: str
    first_inference: float = 0.0
    swap: float = 0.0
    slowest_swap: float = 0.0
    swaps: int = 0
    recompiles: int | None = None
    error: str | None = None


def default_backend() -> str:
    """Choose inductor where a C++ compiler is found, else aot_eager, which generates no code."""
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return "inductor" if any(name and shutil.which(name) for name in compilers) else "aot_eager"


def measure(
    base_model: Callable[[], Any],
    inputs: dict[str, Any],
    adapters: Sequence[str | Path],
    *,
    backend: str,
    latency: bool = False,
) -> dict[str, Any]:
    """Measure every row on a model of its own; all compiled code is dropped before each row.

    The first adapter is the one with the most target modules: PEFT's own swap can only narrow them.
    A last swap goes back to the first adapter, so one adapter alone is a swap too. With ``latency``
    single swaps are sampled too, beside PEFT's and a plain copy of the same bytes: seconds by series.
    """
    import torch

    from hotswap.adapters.spec import AdapterSpec

    specs = sorted((AdapterSpec.read(path) for path in adapters), key=lambda s: -len(s.modules))
    paths = [spec.path for spec in specs]
    if backend != "eager":
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(8))  # the compiler's start
    rows = []
    samples: dict[str, list[float]] = {}
    for row in (*ROWS, BY_PEFT) if latency else ROWS:
        torch.compiler.reset()
        try:
            rows.append(_measure_row(row, base_model(), inputs, paths, backend, latency, samples))
        except Exception as error:  # whatever it is, it is this row's result
            first = (str(error).splitlines() or [""])[0]
            rows.append(TimingRow(row, error=f"{type(error).__name__}: {first}"[:300]))
    return {"backend": backend, "rows": [asdict(row) for row in rows], "samples": samples}


def _measure_row(
    row: str,
    base: Any,
    inputs: dict[str, Any],
    paths: Sequence[str],
    backend: str,
    latency: bool,
    samples: dict[str, list[float]],
) -> TimingRow:
    import torch
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

    import hotswap

    peft: Any = None if row == PREPARED else PeftModel.from_pretrained(base, paths[0])
    if row == BY_PEFT:
        prepare_model_for_compiled_hotswap(peft, target_rank=hotswap.plan(paths).target_rank)
    model = peft or hotswap.load(base, hotswap.plan(paths), paths[0])
    compiles = row != "no compile"
    served: Any = torch.compile(model.eval(), backend=backend) if compiles else model.eval()

    def swap(turn: int) -> None:
        path = paths[(turn + 1) % len(paths)]
        if peft is None:
            hotswap.swap(served, path)
        else:
            hotswap_adapter(served, path, adapter_name="default", torch_device="cpu")

    def forward(_: int) -> None:
        served(**inputs)

    with torch.no_grad():
        first = seconds_of(forward, 0)
        with hotswap.watch_compiles(served) if compiles else nullcontext() as log:
            swaps = sampled({"swap": swap, "forward": forward}, len(paths)).values()
        if latency and row in SERIES:
            name = SERIES[row]
            both = {f"{name}, swap": swap, f"{name}, first forward after it": forward}
            samples |= sampled(both, SAMPLES, MOST_SECONDS)
        if latency and row == PREPARED:
            use, copy = bank_and_copy(served, paths[:2])
            staged = {"hotswap, swap from the bank": use, "a plain copy of the bytes": copy}
            samples |= sampled(staged, SAMPLES, MOST_SECONDS)
    times = [sum(pair) for pair in zip(*swaps, strict=True)]
    return TimingRow(
        row,
        first_inference=first,
        swap=statistics.median(times),
        slowest_swap=max(times),
        swaps=len(times),
        recompiles=len(log.recompiles) if log else None,
    )


def bank_and_copy(
    model: Any, paths: Sequence[str | Path]
) -> tuple[Callable[[int], object], Callable[[int], object]]:
    """Stage adapters in memory; give a swap to one of them, by its number, and a copy of as many bytes."""
    import torch

    import hotswap

    bank = hotswap.AdapterBank(model)
    for number, path in enumerate(paths):
        bank.add(str(number), path)
    shape = (len(paths) + 1, bank.bytes // len(paths))
    # ones: memory of zeros that nobody has written is all one page, which takes no time to read
    *sources, target = torch.ones(shape, dtype=torch.uint8)

    def use(turn: int) -> None:
        with bank.using(str(turn % len(paths))):
            pass

    return use, lambda turn: target.copy_(sources[turn % len(paths)])


def sampled(
    actions: Mapping[Any, Callable[[int], object]], most: int, seconds: float = math.inf
) -> dict[Any, list[float]]:
    """Call all in turn, with the number of the turn, and give the seconds of each call."""
    times: dict[Any, list[float]] = {name: [] for name in actions}
    end = time.perf_counter() + seconds
    for turn in range(most):
        for name, action in actions.items():
            times[name].append(seconds_of(action, turn))
        if time.perf_counter() > end:
            break
    return times


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of a median, whatever the distribution: two of the sorted values.

    Between the k-th smallest and the k-th largest of n lies the median unless fewer than k of n fall to one
    side of it, as of n fair coins (H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition, section
    7.1). Of fewer than six values it is their whole range, which covers less.
    """
    ordered, n = sorted(values), len(values)
    tails = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n // 2))
    k = sum(tail <= 0.025 for tail in tails) or 1
    return ordered[k - 1], ordered[n - k]


def seconds_of(action: Callable[[Any], object], argument: Any) -> float:
    """Call it and say how long it took."""
    start = time.perf_counter()
    action(argument)
    return time.perf_counter() - start


def main(argv: Sequence[str]) -> None:
    """Print the timing of a base model's folder and its adapters as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m hotswap.bench.timing")
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--base", required=True)
    parser.add_argument("--backend", default=default_backend())
    parser.add_argument("--latency", action="store_true", help="sample single swaps too")
    parser.add_argument("--output", metavar="FILE", help="write it here instead of printing it")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="hotswap-timing-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
        with redirect_stdout(sys.stderr):  # what libraries print is not part of the answer
            from hotswap.bench.models import pretrained
            from hotswap.checks.inputs import default_inputs

            timing = measure(
                partial(pretrained, asked.base),
                default_inputs(pretrained(asked.base), asked.base, batch=1, length=16),
                asked.adapters,
                backend=asked.backend,
                latency=asked.latency,
            )
    answer = json.dumps(timing)
    if asked.output:
        Path(asked.output).write_text(answer, encoding="utf-8")
    else:
        print(answer)


if __name__ == "__main__":
    main(sys.argv[1:])
