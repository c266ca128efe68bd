"""Check 10,000 adapter folders of 448 tensors each: adapters a second, linear, flat in memory.

Weight files are sparse (``truncate``); no two configs are equal. ``--recipes N`` writes N different
headers: with as many as folders, nothing that was read before helps.

    python benchmarks/adapters_scale.py [--folders 10000] [--recipes 16] [--jobs 1]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import hotswap
from hotswap.adapters.plan import SwapPlan

PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MODULES = [
    f"model.layers.{layer}.{part}"
    for layer in range(32)
    for part in (*PARTS, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
]
WIDTH = 1024


def header_of(recipe: int) -> tuple[bytes, int, int]:
    """The header of a recipe, the size of its data, and its rank."""
    rank = 4 + recipe % 60
    entries: dict[str, object] = {"__metadata__": {"recipe": str(recipe)}}
    position = 0
    for module in MODULES:
        for part, shape in (("A", [rank, WIDTH]), ("B", [WIDTH, rank])):
            end = position + 2 * rank * WIDTH
            name = f"base_model.model.{module}.lora_{part}.weight"
            entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
            position = end
    return json.dumps(entries).encode(), position, rank


def write_fleet(root: Path, folders: int, recipes: int) -> list[str]:
    """Write the folders; returns their paths."""
    known: dict[int, tuple[bytes, int, int]] = {}
    paths = []
    for number in range(folders):
        recipe = number % recipes
        if recipe not in known:
            known = (
                {**known, recipe: header_of(recipe)}
                if len(known) < 64
                else {recipe: header_of(recipe)}
            )
        header, size, rank = known[recipe]
        folder = root / f"n{number:06}"
        folder.mkdir()
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 1 + number,  # no two configs are equal
            "target_modules": [name.rpartition(".")[2] for name in MODULES[:7]],
            "base_model_name_or_path": "org/model",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        with (folder / "adapter_model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
        paths.append(str(folder))
    return paths


def measure(paths: list[str], plan: SwapPlan, jobs: int) -> tuple[float, float, int]:
    """Seconds of wall and of this process's CPU, and how many findings."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = hotswap.check_adapters(paths, plan=plan, jobs=jobs)
    return time.perf_counter() - wall, time.process_time() - cpu, len(found)


def main() -> None:
    """Print one line for each number of folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=10_000)
    parser.add_argument("--recipes", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        paths = write_fleet(Path(root), given.folders, given.recipes)
        plan = hotswap.plan(paths[: min(60, given.recipes, len(paths))])
        for count in (given.folders // 4, given.folders // 2, given.folders):
            wall, cpu, found = measure(paths[:count], plan, given.jobs)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            used = f"; CPU {cpu:.2f} s" if given.jobs == 1 else ""  # other processes are not ours
            print(
                f"{count} folders, {given.recipes} recipes, -j {given.jobs}: {wall:.2f} s "
                f"({count / wall:.0f} a second{used}), {found} findings, peak {peak:.0f} MiB"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
