"""What swaps cost: this engine against PEFT's functions and against one plain copy of the same bytes.

Both sides of a ratio run in turn in one process; the ratio is the median of those of the pairs.
"""

from __future__ import annotations

import copy
import gc
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils.hotswap import (
    hotswap_adapter,
    hotswap_adapter_from_state_dict,
    prepare_model_for_compiled_hotswap,
)
from peft.utils.save_and_load import _insert_adapter_name_into_state_dict
from torch import nn

import hotswap
from hotswap.bench.models import llama, pretrained, write_adapter
from hotswap.bench.timing import (
    bank_and_copy,
    default_backend,
    median_interval,
    sampled,
    seconds_of,
)
from hotswap.bench.timing import measure as measure_serving
from hotswap.checks.inputs import default_inputs
from hotswap.engine.layout.registry import placement_of

FORWARD_LAYERS = 4
PADDING_FACTORS = (1, 2, 4, 8)
LAYERS, HIDDEN, INTERMEDIATE = 24, 512, 1024
"""A Llama whose LoRA adapters of rank 16 on all linear layers take 13.4 MB in 336 tensors."""


Row = dict[str, Any]


def measure(
    *,
    runs: int = 30,
    swaps: int = 10_000,
    forward: bool = True,
    base: str | None = None,
    adapters: Sequence[str] = (),
    told: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Measure everything and give it as JSON has it; ``told`` hears the name of each row that is there.

    A row has seconds of ours and of theirs (medians), the median of the paired ratios and its 95 %
    ``interval``; ``faster`` says which way it goes: how many times faster ours is, or how many times
    longer it takes. ``bar`` and ``aim`` are what developers hold it to. ``runs`` counts its alternations,
    ``notes`` say what could not be measured. Beside rows there are the bytes that a prepared model holds
    and those the plan says, growth in bytes, and with forwards what room costs and ways to serve.

    With ``base`` and ``adapters`` the model is that one and the rows about sizes fall away. Growth
    comes before anything is compiled: what earlier compiled models release must not hide it.
    """
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hotswap-bench-") as name:
        folder = Path(name)
        if base is None:
            fleet = _made(folder / "small", (16, 8))
            large = _made(folder / "large", (64, 32))
        else:
            fleet, large = _Fleet(pretrained(base), [Path(path) for path in adapters]), None
        held, growth = _held(fleet.model), _growth(fleet, swaps)
        backend = default_backend()
        measures = _rows(fleet, large, runs)
        if forward:
            compiled = _forwards(fleet, large, folder / "forward", runs, backend)
            measures = itertools.chain(measures, compiled)
        for measured in measures:
            try:
                rows.append(measured())
                told(rows[-1]["name"])
            except Exception as error:  # PEFT's functions refuse what ours take: that is a result
                notes.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        padding, serving = [], []
        if forward:
            padding = list(_padding(fleet, runs, backend))
            slowest_last = fleet.paths[::-1]  # from the smaller rank to the larger: that swap costs
            serve = partial(copy.deepcopy, fleet.base)
            serving = measure_serving(serve, fleet.inputs, slowest_last, backend=backend)["rows"]
        return {
            "backend": backend,
            "serving": serving,
            "rows": rows,
            "padding": padding,
            "notes": notes,
            "held": held,
            "planned": fleet.plan.padded_bytes,
            "growth": growth,
            "swaps": swaps,
            "threads": torch.get_num_threads(),
        }


class _Fleet:
    """A model of ours and one of PEFT's, prepared alike, and two adapters to swap between."""

    def __init__(self, base: nn.Module, paths: Sequence[Path]) -> None:
        self.base = base
        specs = {path: hotswap.AdapterSpec.read(path) for path in paths}
        # PEFT's own swap can only narrow the target modules
        self.paths = sorted(paths, key=lambda path: (-len(specs[path].modules), -specs[path].rank))
        self.inputs = default_inputs(base, batch=1, length=16)
        self.plan = hotswap.plan(list(specs.values()))
        self.model = hotswap.load(copy.deepcopy(base), self.plan, self.paths[0])
        self.peft = self.fresh(0)
        prepare_model_for_compiled_hotswap(self.peft, target_rank=self.plan.target_rank)
        loaded = [self.fresh(index) for index in range(2)]
        self.configs = [model.peft_config["default"] for model in loaded]
        self.states = [get_peft_model_state_dict(model) for model in loaded]

    def fresh(self, index: int) -> Any:
        """A newly loaded model, neither prepared nor compiled."""
        return PeftModel.from_pretrained(copy.deepcopy(self.base), self.paths[index]).eval()

    def swap(self, turn: int) -> None:
        """Read and swap with this engine."""
        hotswap.swap(self.model, self.paths[turn])


def _made(folder: Path, ranks: tuple[int, int]) -> _Fleet:
    base = _llama()
    generator = torch.Generator().manual_seed(0)
    paths = [folder / f"rank-{rank}" for rank in ranks]
    for path, rank in zip(paths, ranks, strict=True):
        _write(base, path, generator, rank)
    return _Fleet(base, paths)


def _llama(layers: int = LAYERS) -> nn.Module:
    torch.manual_seed(0)
    return llama(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )


def _write(
    base: nn.Module, path: Path, generator: torch.Generator, rank: int, **config: Any
) -> None:
    config |= {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    write_adapter(copy.deepcopy(base), path, generator, 0.02, **config)


def _held(model: nn.Module) -> int:
    return placement_of(model, "default").layout.bytes


def _rows(fleet: _Fleet, large: _Fleet | None, runs: int) -> Iterator[Callable[[], Row]]:
    """What is measured without a compile; each is called, and may fail, on its own."""
    yield partial(_copy, fleet, runs * 5)
    megabytes = _held(fleet.model) / 1e6
    yield partial(_using, f"bank: all of using(), {megabytes:.3g} MB", fleet, runs * 5, 1.5)
    if large is not None:
        yield partial(_using, "bank: all of using(), 53.5 MB", large, runs * 2, 1.25)
    model, peft, states, configs = fleet.model, fleet.peft, fleet.states, fleet.configs
    named = [_insert_adapter_name_into_state_dict(state, "default", "lora_") for state in states]
    yield partial(
        _compare,
        "swap from a state dict",
        lambda turn: hotswap.swap(model, states[turn], config=configs[turn]),
        lambda turn: hotswap_adapter_from_state_dict(peft, named[turn], "default", configs[turn]),
        runs,
        bar=6,
        aim=10,
    )
    paths = [str(path) for path in fleet.paths]
    yield partial(
        _compare,
        "swap from a folder",
        fleet.swap,
        lambda turn: hotswap_adapter(peft, paths[turn], "default", torch_device="cpu"),
        runs,
        bar=6,
        aim=10,
    )
    rank = fleet.plan.target_rank

    def loaded(*_: int) -> Any:
        fresh = fleet.fresh(1)
        gc.collect()
        return fresh

    yield partial(
        _compare,
        f"prepare for rank {rank}",
        partial(hotswap.prepare, target_rank=rank),
        partial(prepare_model_for_compiled_hotswap, target_rank=rank),
        max(runs // 3, 5),
        bar=1,
        ready=loaded,
    )


def _compare(
    name: str,
    ours: Callable[[Any], object],
    theirs: Callable[[Any], object],
    runs: int,
    *,
    bar: float | None = None,
    aim: float | None = None,
    faster: bool = True,
    ready: Callable[[int, int], Any] = lambda _, turn: turn,
) -> Row:
    """Run both sides in turn on the same arguments; two rounds come first and are not counted.

    ``ready`` makes a side's argument, of its number (0 is ours) and the turn, before the clock starts.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for count in range(runs + 2):
        for side in (0, 1) if count % 4 < 2 else (1, 0):
            spent = seconds_of((ours, theirs)[side], ready(side, (count + 1) % 2))
            times[side].extend([spent] if count >= 2 else [])
    pairs = [b / a if faster else a / b for a, b in zip(*times, strict=True)]
    one, other = map(statistics.median, times)
    row = {"name": name, "ours": one, "theirs": other, "faster": faster, "bar": bar, "aim": aim}
    return {**row, "ratio": statistics.median(pairs), "interval": median_interval(pairs)}


def _copy(fleet: _Fleet, runs: int) -> Row:
    placement = placement_of(fleet.model, "default")
    if placement.arena is None:
        raise RuntimeError("the model was moved after prepare()")
    arena, images = placement.arena, [placement.layout.new(), placement.layout.new()]
    for image in images:
        image.copy(arena)  # memory that nobody has written is all one page
    *sources, target = torch.ones((3, arena.bytes), dtype=torch.uint8)
    return _compare(
        "bank: the copy itself",
        lambda turn: arena.copy(images[turn]),
        lambda turn: target.copy_(sources[turn]),
        runs,
        bar=1.10,
        aim=1.05,
        faster=False,
    )


def _using(name: str, fleet: _Fleet, runs: int, bar: float) -> Row:
    use, plain = bank_and_copy(fleet.model, fleet.paths)
    return _compare(name, use, plain, runs, bar=bar, aim=1.2, faster=False)


def _forwards(
    fleet: _Fleet, large: _Fleet | None, folder: Path, runs: int, backend: str
) -> Iterator[Callable[[], Row]]:
    """Compiled forwards: beside a model that PEFT prepared, and the first one after a swap.

    The made fleet has rank 8, but 64 in q_proj, so PEFT pads everything to 64.
    """
    if large is not None:
        base = _llama(FORWARD_LAYERS)
        _write(base, folder, torch.Generator().manual_seed(0), 8, rank_pattern={"q_proj": 64})
        models = [PeftModel.from_pretrained(copy.deepcopy(base), folder).eval() for _ in range(3)]
        hotswap.prepare(models[0], target_rank=64)
        hotswap.prepare(models[1], plan=hotswap.plan([folder]))
        prepare_model_for_compiled_hotswap(models[2], target_rank=64)
        inputs = {"input_ids": torch.arange(32).reshape(1, 32), "use_cache": False}
        *ours, theirs = (_runner(model, inputs, backend) for model in models)
        for title, run in zip(("uniform ranks", "a rank per module"), ours, strict=True):
            name = f"compiled forward ({backend}), {title}"
            yield partial(_compare, name, run, theirs, runs * 2, bar=1.05, aim=1.0, faster=False)
    forward = _runner(fleet.model, fleet.inputs, backend)
    name = f"first compiled forward ({backend}) after a swap, beside the next one"

    def swapped(side: int, turn: int) -> None:
        if side == 0:
            fleet.swap(turn)

    yield partial(_compare, name, forward, forward, runs, faster=False, ready=swapped)


def _padding(fleet: _Fleet, runs: int, backend: str) -> Iterator[dict[str, Any]]:
    """The second adapter in models that are prepared for its own rank, and for 2, 4 and 8 times it."""
    own = hotswap.AdapterSpec.read(fleet.paths[-1]).rank
    models = {own * factor: fleet.fresh(-1) for factor in PADDING_FACTORS}
    for rank, model in models.items():
        hotswap.prepare(model, target_rank=rank)
    torch.compiler.reset()
    runs_of = {rank: _runner(model, fleet.inputs, backend) for rank, model in models.items()}
    for rank, times in sampled(runs_of, runs).items():
        low, middle, high = statistics.quantiles(times, n=4)
        held = _held(models[rank])
        yield {"target_rank": rank, "forward": middle, "spread": [low, high], "bytes": held}


def _runner(model: Any, inputs: dict[str, Any], backend: str) -> Callable[[Any], object]:
    compiled: Any = torch.compile(model, backend=backend)

    def run(_: Any) -> object:
        with torch.inference_mode():
            return compiled(**inputs)

    run(None)
    return run


def _growth(fleet: _Fleet, swaps: int) -> int:
    """How many bytes tensors take more after this many swaps than after the first few."""
    bank = hotswap.AdapterBank(fleet.model)
    bank.add("0", fleet.paths[0])

    def swap(turn: int) -> None:
        if turn % 100 == 0:
            fleet.swap(turn // 100 % 2)
        else:
            with bank.using("0"):
                pass
            hotswap.swap(fleet.model, None)

    for turn in (0, 100, 1, 2):  # both adapters once: what is kept of each is no growth
        swap(turn)
    before = _tensor_bytes()
    for turn in range(swaps):
        swap(turn)
    return _tensor_bytes() - before


def _tensor_bytes() -> int:
    """The bytes of every distinct storage of a living CPU tensor; torch.compile's fakes have none."""
    gc.collect()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.device.type == "cpu":
            with suppress(NotImplementedError):  # a tensor of torch.func has no storage of its own
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
