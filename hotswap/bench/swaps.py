"""What swaps cost: this engine against PEFT's functions and against one plain copy of the same bytes.

Both sides of a ratio run in turn in one process; the ratio is that of their medians.
"""

from __future__ import annotations

import copy
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.hotswap import (
    hotswap_adapter,
    hotswap_adapter_from_state_dict,
    prepare_model_for_compiled_hotswap,
)
from peft.utils.save_and_load import _insert_adapter_name_into_state_dict
from torch import nn

import hotswap
from hotswap.bench.timing import TimingRow, default_backend, inputs_of, pretrained
from hotswap.bench.timing import measure as measure_serving
from hotswap.engine.layout.registry import placement_of

FORWARD_LAYERS = 4
PADDING_FACTORS = (1, 2, 4, 8)
LAYERS, HIDDEN, INTERMEDIATE = 24, 512, 1024
"""A Llama whose LoRA adapters of rank 16 on all linear layers take 13.4 MB in 336 tensors."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: seconds of ours and of theirs (medians), and the ratio that is wanted.

    ``faster`` says which way the ratio goes: how many times faster ours is, or how many times longer
    it takes. ``spread`` is the interquartile range of the paired ratios. A row without a bar is there
    to be known.
    """

    name: str
    ours: float
    theirs: float
    faster: bool
    bar: float | None
    aim: float | None
    spread: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Theirs over ours when ours is to be faster, else ours over theirs."""
        return self.theirs / self.ours if self.faster else self.ours / self.theirs

    @property
    def holds(self) -> bool:
        """Whether the ratio reaches the bar."""
        if self.bar is None:
            return True
        return self.ratio >= self.bar if self.faster else self.ratio <= self.bar


@dataclass(frozen=True, slots=True)
class Padding:
    """What room costs: a compiled forward and the bytes held, prepared for a target rank."""

    target_rank: int
    forward: float
    spread: tuple[float, float]
    bytes: int


@dataclass(frozen=True, slots=True)
class Bench:
    """All rows, the bytes that a prepared model holds and those the plan says, and growth in bytes.

    ``serving`` is empty without forwards; ``notes`` say what could not be measured.
    """

    backend: str
    serving: tuple[TimingRow, ...]
    rows: tuple[Row, ...]
    padding: tuple[Padding, ...]
    notes: tuple[str, ...]
    held: int
    planned: int
    growth: int
    swaps: int
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        rows = [{**asdict(row), "ratio": row.ratio, "holds": row.holds} for row in self.rows]
        return {**asdict(self), "rows": rows}


def measure(
    *,
    runs: int = 30,
    swaps: int = 10_000,
    forward: bool = True,
    base: str | None = None,
    adapters: Sequence[str] = (),
) -> Iterator[Row | Bench]:
    """Measure every row, then give the whole; ``runs`` counts the alternations of a row.

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
        placement = placement_of(fleet.model, "default")
        held, growth = placement.layout.bytes, _growth(fleet, swaps)
        for measured in _rows(fleet, large, runs):
            try:
                rows.append(measured())
                yield rows[-1]
            except Exception as error:  # PEFT's functions refuse what ours take: that is a result
                notes.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        serving: tuple[TimingRow, ...] = ()
        padding: tuple[Padding, ...] = ()
        backend = default_backend()
        if forward:
            for row in _forwards(fleet, large, folder / "forward", runs, backend):
                rows.append(row)
                yield row
            padding = tuple(_padding(fleet, runs, backend))
            serving = measure_serving(
                lambda: copy.deepcopy(fleet.base),
                fleet.inputs,
                fleet.paths[::-1],  # from the smaller rank to the larger: the swap that costs
                backend=backend,
            ).rows
        planned = hotswap.plan(fleet.paths).padded_bytes
        threads = torch.get_num_threads()
        found = (tuple(rows), padding, tuple(notes), held, planned, growth, swaps, threads)
        yield Bench(backend, serving, *found)


def _rows(fleet: _Fleet, large: _Fleet | None, runs: int) -> Iterator[Callable[[], Row]]:
    """What is measured without a compile; each is called, and may fail, on its own."""
    megabytes = placement_of(fleet.model, "default").layout.bytes / 1e6
    yield lambda: _copy(fleet, runs * 5)
    yield lambda: _using(f"bank: all of using(), {megabytes:.3g} MB", fleet, runs * 5, 1.5)
    if large is not None:
        yield lambda: _using("bank: all of using(), 53.5 MB", large, runs * 2, 1.25)
    yield lambda: _compare(
        "swap from a state dict",
        fleet.swap_state_dict,
        fleet.peft_state_dict,
        runs,
        bar=10,
        aim=20,
    )
    yield lambda: _compare(
        "swap from a folder", fleet.swap_folder, fleet.peft_folder, runs, bar=6, aim=10
    )
    rank = hotswap.plan(fleet.paths).target_rank
    yield lambda: _compare(
        f"prepare for rank {rank}",
        lambda model: hotswap.prepare(model, target_rank=rank),
        lambda model: prepare_model_for_compiled_hotswap(model, target_rank=rank),
        max(runs // 3, 5),
        bar=1,
        aim=None,
        fresh=lambda: fleet.fresh(1),
    )


class _Fleet:
    """A model of ours and one of PEFT's, prepared alike, and two adapters to swap between."""

    def __init__(self, base: nn.Module, paths: Sequence[Path]) -> None:
        self.base = base
        specs = {path: hotswap.AdapterSpec.read(path) for path in paths}
        # PEFT's own swap can only narrow the target modules
        self.paths = sorted(paths, key=lambda path: (-len(specs[path].modules), -specs[path].rank))
        self.inputs = inputs_of(base)
        plan = hotswap.plan(list(specs.values()))
        self.model = hotswap.load(copy.deepcopy(base), plan, self.paths[0])
        self.peft = self.fresh(0)
        prepare_model_for_compiled_hotswap(self.peft, target_rank=plan.target_rank)
        self.configs = [self.fresh(i).peft_config["default"] for i in range(2)]
        states = [get_peft_model_state_dict(self.fresh(i)) for i in range(2)]
        self.states = [{k: v.clone() for k, v in state.items()} for state in states]
        self.named = [
            _insert_adapter_name_into_state_dict(state, "default", "lora_") for state in self.states
        ]

    def fresh(self, index: int) -> Any:
        """A newly loaded model, neither prepared nor compiled."""
        return PeftModel.from_pretrained(copy.deepcopy(self.base), self.paths[index]).eval()

    def swap_state_dict(self, turn: int) -> None:
        """Swap with this engine."""
        hotswap.swap(self.model, self.states[turn], config=self.configs[turn])

    def peft_state_dict(self, turn: int) -> None:
        """Swap with PEFT's function."""
        hotswap_adapter_from_state_dict(self.peft, self.named[turn], "default", self.configs[turn])

    def swap_folder(self, turn: int) -> None:
        """Read and swap with this engine."""
        hotswap.swap(self.model, self.paths[turn])

    def peft_folder(self, turn: int) -> None:
        """Read and swap with PEFT's function."""
        hotswap_adapter(self.peft, str(self.paths[turn]), "default", torch_device="cpu")


def _made(folder: Path, ranks: tuple[int, int]) -> _Fleet:
    base = _llama()
    paths = [folder / f"rank-{rank}" for rank in ranks]
    generator = torch.Generator().manual_seed(0)
    for path, rank in zip(paths, ranks, strict=True):
        _write(base, path, rank, generator)
    return _Fleet(base, paths)


def _llama(layers: int = LAYERS) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: nn.Module = LlamaForCausalLM(config).eval()
    return model


def _write(
    base: nn.Module, path: Path, rank: int, generator: torch.Generator, **config_fields: Any
) -> None:
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", **config_fields)
    model = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.02, generator=generator)
    model.save_pretrained(str(path))


def _compare(
    name: str,
    ours: Callable[[Any], object],
    theirs: Callable[[Any], object],
    runs: int,
    *,
    bar: float | None,
    aim: float | None,
    faster: bool = True,
    fresh: Callable[[], Any] | None = None,
    before: tuple[Callable[[], object] | None, Callable[[], object] | None] = (None, None),
) -> Row:
    """Run both sides in turn on the same arguments; two rounds come first and are not counted.

    ``before`` is done before the clock starts, and what making a ``fresh`` argument left is collected.
    """
    times: tuple[list[float], list[float]] = ([], [])
    turns = itertools.cycle((1, 0))
    for round_ in range(runs + 2):
        turn = next(turns)
        order = (0, 1) if round_ % 4 < 2 else (1, 0)
        for side in order:
            argument = turn
            if fresh is not None:
                argument = fresh()
                gc.collect()
            if (first := before[side]) is not None:
                first()
            start = time.perf_counter()
            (ours, theirs)[side](argument)
            if round_ >= 2:
                times[side].append(time.perf_counter() - start)
    pairs = [b / a if faster else a / b for a, b in zip(*times, strict=True)]
    quarter = statistics.quantiles(pairs, n=4)
    return Row(
        name,
        statistics.median(times[0]),
        statistics.median(times[1]),
        faster,
        bar,
        aim,
        (quarter[0], quarter[2]),
    )


def _copy(fleet: _Fleet, runs: int) -> Row:
    placement = placement_of(fleet.model, "default")
    if placement.arena is None:
        raise RuntimeError("the model was moved after prepare()")
    arena, images = placement.arena, [placement.layout.new(), placement.layout.new()]
    flat = [torch.zeros(arena.bytes, dtype=torch.uint8) for _ in range(3)]
    return _compare(
        "bank: the copy itself",
        lambda turn: arena.copy(images[turn]),
        lambda turn: flat[2].copy_(flat[turn]),
        runs,
        bar=1.10,
        aim=1.05,
        faster=False,
    )


def _using(name: str, fleet: _Fleet, runs: int, bar: float) -> Row:
    bank = hotswap.AdapterBank(fleet.model)
    for index, path in enumerate(fleet.paths):
        bank.add(str(index), path)
    flat = [torch.zeros(bank.bytes // 2, dtype=torch.uint8) for _ in range(3)]

    def use(turn: int) -> None:
        with bank.using(str(turn)):
            pass

    return _compare(
        name,
        use,
        lambda turn: flat[2].copy_(flat[turn]),
        runs,
        bar=bar,
        aim=1.2,
        faster=False,
    )


def _forwards(
    fleet: _Fleet, large: _Fleet | None, folder: Path, runs: int, backend: str
) -> Iterator[Row]:
    """Compiled forwards: beside a model that PEFT prepared, and the first one after a swap.

    The made fleet has rank 8, but 64 in q_proj, so PEFT pads everything to 64.
    """
    if large is not None:
        base = _llama(FORWARD_LAYERS)
        _write(base, folder, 8, torch.Generator().manual_seed(0), rank_pattern={"q_proj": 64})
        models = [PeftModel.from_pretrained(copy.deepcopy(base), folder).eval() for _ in range(3)]
        hotswap.prepare(models[0], target_rank=64)
        hotswap.prepare(models[1], plan=hotswap.plan([folder]))
        prepare_model_for_compiled_hotswap(models[2], target_rank=64)
        inputs = {"input_ids": torch.arange(32).reshape(1, 32), "use_cache": False}
        runners = [_runner(torch.compile(model, backend=backend), inputs) for model in models]
        for title, ours in (("uniform ranks", runners[0]), ("a rank per module", runners[1])):
            name = f"compiled forward ({backend}), {title}"
            yield _compare(name, ours, runners[2], runs * 2, bar=1.05, aim=1.0, faster=False)
    compiled = torch.compile(fleet.model, backend=backend)
    forward = _runner(compiled, fleet.inputs)
    turns = itertools.cycle((1, 0))

    def swap() -> None:
        fleet.swap_folder(next(turns))

    name = f"first compiled forward ({backend}) after a swap, beside the next one"
    yield _compare(
        name, forward, forward, runs, bar=None, aim=None, faster=False, before=(swap, None)
    )


def _padding(fleet: _Fleet, runs: int, backend: str) -> Iterator[Padding]:
    """The second adapter in models that are prepared for its own rank, and for 2, 4 and 8 times it."""
    path = fleet.paths[-1]
    own = hotswap.AdapterSpec.read(path).rank
    ranks = [own * factor for factor in PADDING_FACTORS]
    models = [PeftModel.from_pretrained(copy.deepcopy(fleet.base), path).eval() for _ in ranks]
    for model, rank in zip(models, ranks, strict=True):
        hotswap.prepare(model, target_rank=rank)
    torch.compiler.reset()
    runners = [_runner(torch.compile(m, backend=backend), fleet.inputs) for m in models]
    times: list[list[float]] = [[] for _ in runners]
    for _ in range(runs):
        for own_times, run in zip(times, runners, strict=True):
            start = time.perf_counter()
            run(None)
            own_times.append(time.perf_counter() - start)
    for rank, model, own_times in zip(ranks, models, times, strict=True):
        low, middle, high = statistics.quantiles(own_times, n=4)
        yield Padding(rank, middle, (low, high), placement_of(model, "default").layout.bytes)


def _runner(compiled: Any, inputs: dict[str, Any]) -> Callable[[Any], object]:
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
            fleet.swap_folder(turn // 100 % 2)
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
