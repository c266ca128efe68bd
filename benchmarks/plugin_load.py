"""What loading the plugin adds to every pytest run of a project; prints milliseconds.

Run as ``python benchmarks/plugin_load.py``. Each round is a fresh interpreter that has imported pytest; the
best round counts, and one that imports the fixtures' module too shows what the plugin leaves for later.
"""

from __future__ import annotations

import subprocess
import sys

ROUNDS = 15
TARGET = 10.0  # milliseconds
CODE = """
import sys, time
import pytest
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
print(sorted({{"torch", "hypothesis", "peft"}} & set(sys.modules)))
"""


def milliseconds(module: str) -> tuple[float, str]:
    """The best time of an import, and which heavy modules it brought."""
    times, heavy = [], ""
    for _ in range(ROUNDS):
        command = [sys.executable, "-c", CODE.format(module=module)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, heavy = done.stdout.splitlines()
        times.append(float(seconds) * 1000)
    return min(times), heavy


def main() -> int:
    """Print the table; 1 when the plugin takes longer than the target or imports something heavy."""
    taken, heavy = milliseconds("pytest_hotswap.plugin")
    later, _ = milliseconds("pytest_hotswap.fixtures")
    print(f"the plugin: {taken:.1f} ms of {TARGET:.0f}, heavy modules {heavy}")
    print(f"its fixtures, which a project without hot-swap tests never imports: {later:.1f} ms")
    return int(taken > TARGET or heavy != "[]")


if __name__ == "__main__":
    sys.exit(main())
