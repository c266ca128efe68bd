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
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

ROWS = ("no compile", "compiled, unprepared", "compiled, prepared")
BY_PEFT = "compiled, prepared by PEFT"
"""The row that is there only where latencies are wanted: it costs another compile."""
BATCH, LENGTH = 1, 16
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


@dataclass(frozen=True, slots=True)
class Timing:
    """The rows, the backend they were compiled with, and seconds of single swaps by series."""

    backend: str
    rows: tuple[TimingRow, ...]
    samples: dict[str, list[float]]

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def default_backend() -> str:
    """Choose inductor where a C++ compiler is found, else aot_eager, which generates no code."""
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return "inductor" if any(name and shutil.which(name) for name in compilers) else "aot_eager"


def measure(
    base_model: Callable[[], nn.Module],
    inputs: dict[str, Any],
    adapters: Sequence[str | Path],
    *,
    backend: str,
    latency: bool = False,
) -> Timing:
    """Measure every row on a model of its own; all compiled code is dropped before each row.

    The first adapter is the one with the most target modules: PEFT's own swap can only narrow them.
    A last swap goes back to the first adapter, so one adapter alone is a swap too. With ``latency``
    single swaps are sampled too, beside PEFT's and a plain copy of the same bytes.
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
            kept = samples if latency else None
            rows.append(_measure_row(row, base_model(), inputs, paths, backend, kept))
        except Exception as error:  # whatever it is, it is this row's result
            first = (str(error).splitlines() or [""])[0]
            rows.append(TimingRow(row, error=f"{type(error).__name__}: {first}"[:300]))
    return Timing(backend, tuple(rows), samples)


def _measure_row(
    row: str,
    base: nn.Module,
    inputs: dict[str, Any],
    paths: Sequence[str],
    backend: str,
    samples: dict[str, list[float]] | None,
) -> TimingRow:
    import torch
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

    import hotswap

    model: Any
    if row == "compiled, prepared":
        model = hotswap.load(base, hotswap.plan(paths), paths[0])
    else:
        model = PeftModel.from_pretrained(base, paths[0])
    if row == BY_PEFT:
        prepare_model_for_compiled_hotswap(model, target_rank=hotswap.plan(paths).target_rank)
    model.eval()
    compiles = row != "no compile"
    served: Any = torch.compile(model, backend=backend) if compiles else model

    def swap(path: str) -> None:
        if row == "compiled, prepared":
            hotswap.swap(served, path)
        else:
            hotswap_adapter(served, path, adapter_name="default", torch_device="cpu")

    def swap_and_run(path: str) -> None:
        swap(path)
        served(**inputs)

    with torch.no_grad():
        first = _seconds(lambda: served(**inputs))
        watching: AbstractContextManager[Any] = (
            hotswap.watch_compiles(served) if compiles else nullcontext()
        )
        with watching as log:
            times = [_seconds(partial(swap_and_run, path)) for path in [*paths[1:], paths[0]]]
        if samples is not None and row in ("compiled, prepared", BY_PEFT):
            name = "PEFT" if row == BY_PEFT else "hotswap"
            samples |= _sampled(name, swap, lambda: served(**inputs), paths)
            if name == "hotswap":
                samples |= _sampled_bank(served, paths)
    return TimingRow(
        row,
        first_inference=first,
        swap=statistics.median(times),
        slowest_swap=max(times),
        swaps=len(times),
        recompiles=len(log.recompiles) if compiles else None,
    )


def _sampled(
    name: str, swap: Callable[[str], None], forward: Callable[[], object], paths: Sequence[str]
) -> dict[str, list[float]]:
    """Sample swaps from a folder, round the fleet, and the forward that follows each."""
    swaps: list[float] = []
    forwards: list[float] = []
    end = time.perf_counter() + MOST_SECONDS
    for path in itertools.islice(itertools.cycle([*paths[1:], paths[0]]), SAMPLES):
        swaps.append(_seconds(partial(swap, path)))
        forwards.append(_seconds(forward))
        if time.perf_counter() > end:
            break
    return {f"{name}, swap": swaps, f"{name}, first forward after it": forwards}


def _sampled_bank(model: Any, paths: Sequence[str]) -> dict[str, list[float]]:
    """Sample swaps of adapters that are staged in memory, and plain copies of as many bytes."""
    import torch

    import hotswap

    bank = hotswap.AdapterBank(model)
    for number, path in enumerate(paths[:2]):
        bank.add(str(number), path)
    names = itertools.cycle(["0", "1"][: len(paths)])
    size = bank.bytes // len(paths[:2])
    source, target = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))

    def use() -> None:
        with bank.using(next(names)):
            pass

    banked: list[float] = []
    copied: list[float] = []
    for _ in range(SAMPLES):
        banked.append(_seconds(use))
        copied.append(_seconds(lambda: target.copy_(source)))
    return {"hotswap, swap from the bank": banked, "a plain copy of the bytes": copied}


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def pretrained(base: str) -> nn.Module:
    """Load a transformers model by the class that its configuration names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(base)
    named = (config.architectures or ["AutoModel"])[0]
    model: nn.Module = getattr(transformers, named, transformers.AutoModel).from_pretrained(base)
    return model.eval()


def inputs_of(model: nn.Module) -> dict[str, Any]:
    """Draw seeded inputs of a transformers model by the kind of its main input.

    Raises ValueError when that is neither tokens nor pixels.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    config: Any = model.config
    name = str(getattr(model, "main_input_name", "input_ids"))
    if name == "input_ids":
        vocabulary = config.get_text_config().vocab_size
        shape = (BATCH, LENGTH)
        tokens = torch.randint(0, vocabulary, shape, generator=generator)
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if hasattr(config, "use_cache"):
            inputs["use_cache"] = False  # one forward, not a generation
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = tokens
        return inputs
    if name == "pixel_values":
        size = config.image_size
        pixels = (BATCH, getattr(config, "num_channels", 3), size, size)
        return {name: torch.randn(pixels, generator=generator)}
    raise ValueError(f"no inputs are known for a model whose main input is {name!r}")


def main(argv: Sequence[str]) -> int:
    """Print the timing of a base model's folder and its adapters as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m hotswap.bench.timing")
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--base", required=True)
    parser.add_argument("--backend", default=None)
    parser.add_argument("--latency", action="store_true", help="sample single swaps too")
    parser.add_argument("--output", metavar="FILE", help="write it here instead of printing it")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="hotswap-timing-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
        with redirect_stdout(sys.stderr):  # what libraries print is not part of the answer
            timing = measure(
                lambda: pretrained(arguments.base),
                inputs_of(pretrained(arguments.base)),
                arguments.adapters,
                backend=arguments.backend or default_backend(),
                latency=arguments.latency,
            )
    answer = json.dumps(timing.as_dict())
    if arguments.output:
        Path(arguments.output).write_text(answer, encoding="utf-8")
    else:
        print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
