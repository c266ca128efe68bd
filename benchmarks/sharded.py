"""What swaps cost where a model is cut over ranks of this machine; the figures are in docs/how-to/sharded.md.

    python benchmarks/sharded.py

A vote; a swap of 13.4 MB from a folder, beside PEFT's delete and load; and a file read whole beside its
slices: in the page cache, and from the disk.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open

import hotswap
from hotswap.bench.models import llama, write_adapter
from hotswap.checks.parallel import cuts_of
from pytest_hotswap.ranks.pool import RankPool

HERE: dict[str, Any] = {}
LAYERS, HIDDEN, INTERMEDIATE = 24, 512, 1024


def bring_up(base: str, adapter: str, prepared: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    cut = DistributedConfig(tp_size=torch.distributed.get_world_size())
    model = AutoModelForCausalLM.from_pretrained(base, distributed_config=cut)
    HERE["model"] = PeftModel.from_pretrained(model, adapter).eval()
    if prepared:
        hotswap.prepare(HERE["model"], target_rank=16)


def votes(count: int) -> float:
    """The median milliseconds of a vote."""
    from hotswap.engine.mesh import together
    from hotswap.engine.parts import parts_of

    parts, times = parts_of(HERE["model"]), []
    for _ in range(count):
        start = time.perf_counter()
        with together(parts) as agree:
            agree(["digest"], "adapter")
            agree()
        times.append((time.perf_counter() - start) / 2)
    return statistics.median(times) * 1e3


def ours(adapters: list[str]) -> float:
    return _median(lambda turn: hotswap.swap(HERE["model"], adapters[turn % 2]))


def theirs(adapters: list[str]) -> float:
    def exchange(turn: int) -> None:
        HERE["model"].delete_adapter("default")
        HERE["model"].load_adapter(adapters[turn % 2], "default")
        HERE["model"].set_adapter("default")

    return _median(exchange, 5)


def _median(call: Callable[[int], object], runs: int = 20) -> float:
    times = []
    for turn in range(runs + 2):
        torch.distributed.barrier()
        start = time.perf_counter()
        call(turn)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]) * 1e3


def whole(file: Path) -> int:
    content = bytearray(file.stat().st_size)
    with file.open("rb", buffering=0) as opened:
        opened.readinto(content)
    xxhash.xxh3_128(content).digest()
    return len(content)


def slices(file: Path, cuts: dict[str, Any], count: int) -> int:
    """Read what the second of some ranks puts in place; how many bytes that is."""
    size = 0
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
            axis = {("outputs", "B"): 0, ("inputs", "A"): 1}.get((cuts.get(module), part[0]))
            found = opened.get_slice(name)
            if axis is None:
                value = found[:]
            else:
                width = found.get_shape()[axis] // count
                where = slice(width, 2 * width)
                value = found[where] if axis == 0 else found[:, where]
            size += value.numel() * value.element_size()
    return size


def read(told: str, file: Path, call: Callable[[], int]) -> None:
    call()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        wanted = call()
        times.append(time.perf_counter() - start)
    opened = os.open(file, os.O_RDONLY)
    os.fsync(opened)
    os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(opened)
    before = _from_disk()
    call()
    disk = _from_disk() - before
    warm = statistics.median(times) * 1e3
    print(f"{told}: {wanted} bytes, {warm:.1f} ms in the page cache; {disk} bytes from a cold disk")


def _from_disk() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE}
        heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
        model = llama(num_hidden_layers=LAYERS, **sizes, **heads)
        model.save_pretrained(folder / "base")
        adapters = [str(folder / each) for each in "ab"]
        config = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
        for seed, adapter in enumerate(adapters):
            base = llama(num_hidden_layers=LAYERS, **sizes, **heads)
            write_adapter(base, Path(adapter), torch.Generator().manual_seed(seed), 0.02, **config)
        for count in (2, 4):
            pool = RankPool(count)
            pool(bring_up, str(folder / "base"), adapters[0], True)
            told = ", ".join(f"{each:.2f}" for each in pool(votes, 300))
            print(f"{count} ranks: a vote takes {told} ms")
            if count == 2:
                swap = max(pool(ours, adapters))
                pool(bring_up, str(folder / "base"), adapters[0], False)
                peft = max(pool(theirs, adapters))
                print(f"a swap takes {swap:.1f} ms, PEFT's delete and load {peft:.0f} ms")
            pool.close()
        file, cuts = Path(adapters[0], "adapter_model.safetensors"), cuts_of(folder / "base", 2)
        read("the whole file and its digest", file, lambda: whole(file))
        for count in (2, 4, 8):
            read(f"the slices of one of {count} ranks", file, lambda n=count: slices(file, cuts, n))


if __name__ == "__main__":
    main()
