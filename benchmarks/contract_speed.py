"""Measure the contract on a 2-layer Llama and four adapters, backend eager: examples a second, and all of it.

    python benchmarks/contract_speed.py

An example restores the snapshot and makes one swap, or a sequence of swaps as the contract's property draws
it; after each swap the outputs are compared with the oracle's. The model is compiled before, once.
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
from hypothesis import given, settings

from hotswap.cli.verify.demo import write_demo
from pytest_hotswap import PeftSubject, ReferenceSubject, Subject
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.strategies import swap_sequences

EXAMPLES = 200
SUBJECTS: dict[str, type[Subject]] = {"hotswap": ReferenceSubject, "PEFT": PeftSubject}


def deployed(subject: Subject, folder: Path) -> Deployment:
    """A deployment that has compiled everything, with every output of the oracle."""
    torch._dynamo.reset()
    deployment = Deployment(subject, folder)
    deployment.restore()
    for path in deployment.paths:
        deployment.expected(path)
    return deployment


def example(deployment: Deployment, sequence: list[Path]) -> None:
    """Restore the snapshot, swap, run and compare."""
    deployment.snapshot.restore()
    for path in sequence:
        deployment.subject.swap(deployment.compiled, path)
        deployment.compare(path)  # PEFT's are not all equal; the rate is what counts


def single_swaps_per_second(deployment: Deployment) -> float:
    """Examples of one swap in a second."""
    start = time.perf_counter()
    for count in range(EXAMPLES):
        example(deployment, [deployment.paths[count % len(deployment.paths)]])
    return EXAMPLES / (time.perf_counter() - start)


def sequences_per_second(deployment: Deployment) -> tuple[float, float]:
    """Sequences that Hypothesis draws in a second, and swaps in one of them."""
    lengths = []

    @settings(deadline=None, database=None, derandomize=True, max_examples=EXAMPLES)
    @given(swap_sequences(len(deployment.paths)))
    def holds(sequence: list[int]) -> None:
        lengths.append(len(sequence))
        example(deployment, [deployment.paths[index] for index in sequence])

    start = time.perf_counter()
    holds()
    return len(lengths) / (time.perf_counter() - start), sum(lengths) / len(lengths)


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
                single = single_swaps_per_second(deployment)
                sequences, swaps = sequences_per_second(deployment)
            print(
                f"{label}: {single:.0f} examples/s of one swap, {sequences:.0f} examples/s of a drawn "
                f"sequence ({swaps:.1f} swaps on average)",
                flush=True,
            )
            slow = slow or (label == "hotswap" and single < 100)
        seconds, last = whole_contract(base, adapters)
        print(f"the whole contract on hotswap: {seconds:.0f} s; {last}")
    return int(slow or "failed" in last)


if __name__ == "__main__":
    sys.exit(main())
