"""Measure the contract on a 2-layer Llama and four adapters, backend eager: examples a second, and all of it.

    python benchmarks/contract_speed.py

An example is what the contract's property runs: the snapshot restored, a drawn sequence of swaps, and after
each the outputs compared with the oracle's. The model is compiled before, once.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotswap.cli.demo import write_demo
from pytest_hotswap import PeftSubject, ReferenceSubject, Subject
from pytest_hotswap.contract.deployment import Deployment

EXAMPLES = 200
LONGEST = (1, 6)
"""Swaps of the longest sequence: one example a swap, and what the contract's property draws."""

SUBJECTS: dict[str, type[Subject]] = {"hotswap": ReferenceSubject, "PEFT": PeftSubject}


def deployed(subject: Subject, folder: Path) -> Deployment:
    """A deployment that has compiled everything, with every output of the oracle."""
    torch._dynamo.reset()
    deployment = Deployment(subject, folder)
    deployment.restore()
    for path in deployment.paths:
        deployment.expected(path)
    return deployment


def examples_per_second(deployment: Deployment, longest: int) -> tuple[float, float]:
    """Examples and swaps in a second."""
    count = swaps = 0

    @settings(
        deadline=None,
        database=None,
        derandomize=True,
        max_examples=EXAMPLES,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.sampled_from(deployment.paths), min_size=1, max_size=longest))
    def holds(sequence: list[Path]) -> None:
        nonlocal count, swaps
        deployment.snapshot.restore()
        for path in sequence:
            deployment.subject.swap(deployment.compiled, path)
            deployment.compare(path)  # PEFT's are not all equal; the rate is what counts
        count, swaps = count + 1, swaps + len(sequence)

    start = time.perf_counter()
    holds()
    seconds = time.perf_counter() - start
    return count / seconds, swaps / seconds


def whole_contract(base: Path, adapters: list[Path]) -> tuple[float, str]:
    """Seconds of ``pytest --pyargs pytest_hotswap.suite`` from start to end, and its last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--pyargs", "pytest_hotswap.suite", f"--hotswap-base={base}"]
    command += [f"--hotswap-adapters={path}" for path in adapters]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=base.parent, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout.strip().splitlines()[-1].strip("= ")


def main() -> int:
    """Print the figures; 1 where hotswap's own rate is below 100 examples a second or the contract fails."""
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)")
    slow = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, adapters = write_demo(folder)
        for label, kind in SUBJECTS.items():
            with contextlib.redirect_stderr(io.StringIO()):
                subject = kind(base=str(base), adapters=[str(path) for path in adapters])
                deployment = deployed(subject, folder / label)
                found = [examples_per_second(deployment, longest) for longest in LONGEST]
            for longest, (rate, swaps) in zip(LONGEST, found, strict=True):
                text = f"{label}, up to {longest} swap(s) an example"
                print(f"{text}: {rate:.0f} examples/s, {swaps:.0f} swaps/s", flush=True)
            slow = slow or (label == "hotswap" and found[0][0] < 100)
        seconds, last = whole_contract(base, adapters)
        print(f"the whole contract on hotswap: {seconds:.0f} s; {last}")
    return int(slow or "failed" in last)


if __name__ == "__main__":
    sys.exit(main())
