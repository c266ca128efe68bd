"""Does a process that swaps for a long time grow: memory, Python objects, descriptors.

    python benchmarks/growth.py --bank 1000000 --folders 20000

Prints what there was after a tenth of the swaps and at the end, and exits with 1 where more is left than
the process needs for itself: 2 MiB, 100 objects, no descriptor.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import hotswap

MEMORY, OBJECTS = 2 * 2**20, 100


def write(folder: Path, rank: int) -> Path:
    """An adapter with random weights."""
    config = LoraConfig(r=rank, target_modules=["0", "2"], init_lora_weights=False)
    get_peft_model(base(), config).save_pretrained(folder)
    return folder


def base() -> nn.Module:
    """A model of two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))


def measured() -> tuple[int, int, int]:
    """Resident bytes, Python objects and open descriptors of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    count = len(gc.get_objects())
    return pages * os.sysconf("SC_PAGE_SIZE"), count, len(os.listdir("/proc/self/fd"))


def grows(name: str, swap: Callable[[int], object], count: int) -> bool:
    """Swap so often; tell whether there is more at the end than after a tenth of it."""
    measured()  # whose list of objects changes what glibc keeps of freed memory
    for turn in range(count // 10):
        swap(turn)
    before, start = measured(), time.perf_counter()
    for turn in range(count - count // 10):
        swap(turn)
    seconds = time.perf_counter() - start
    after = measured()
    more = [new - old for old, new in zip(before, after, strict=True)]
    print(
        f"{count} {name} swaps, {seconds / (count - count // 10) * 1e6:.0f} us each: "
        f"{before[0] / 2**20:.1f} MiB, {before[1]} objects, {before[2]} descriptors; "
        f"{more[0] / 2**20:+.2f} MiB, {more[1]:+d} objects, {more[2]:+d} descriptors"
    )
    return more[0] > MEMORY or more[1] > OBJECTS or more[2] > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", type=int, default=100_000, help="swaps through a bank")
    parser.add_argument("--folders", type=int, default=2_000, help="swaps of folders")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [write(Path(scratch, str(rank)), rank) for rank in (2, 4, 8)]
        model = hotswap.load(base(), hotswap.plan(folders), folders[0])
        bank = hotswap.AdapterBank(model)
        for folder in folders:
            bank.add(folder.name, folder)

        def use(turn: int) -> None:
            with bank.using(folders[turn % 3].name):
                pass

        found = [
            grows("bank", use, options.bank),
            grows("folder", lambda turn: hotswap.swap(model, folders[turn % 3]), options.folders),
        ]
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
