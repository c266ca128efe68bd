"""Verify a large fleet on a Ray cluster, a shard a task: ``python ray_verify.py BASE OUT ADAPTER...``.

Base and adapters lie where every machine can read them. Each shard writes a report of its own; the merged
one is in OUT, and a shard that is missing makes it incomplete. Exits as ``hotswap verify`` does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import ray

SHARDS = 2
HOTSWAP = [sys.executable, "-m", "hotswap"]


@ray.remote(num_cpus=1)
def verify(base: str, adapters: list[str], shard: str, options: list[str]) -> dict[str, bytes]:
    """Verify one shard; return the files of its report, none where it could not even begin."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*HOTSWAP, "verify", *adapters, "--base", base, "--shard", shard]
        subprocess.run([*command, "--report", folder, *options], check=False)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def main(base: str, out: str, *adapters: str, options: list[str] | None = None) -> int:
    """Spread the shards over the cluster, then merge their reports."""
    ray.init(ignore_reinit_error=True)
    shards = [f"{index}/{SHARDS}" for index in range(1, SHARDS + 1)]
    reports = ray.get([verify.remote(base, [*adapters], shard, options or []) for shard in shards])
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / shard.replace("/", "-of-") for shard in shards]
        for place, report in zip(places, reports, strict=True):
            place.mkdir()
            for name, content in report.items():
                (place / name).write_bytes(content)
        merge = [*HOTSWAP, "report", "merge", *map(str, places), "-o", out]
        return subprocess.run(merge, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
