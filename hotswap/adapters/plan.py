"""SwapPlan: the smallest envelope that every adapter of a fleet fits in; saved as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from hotswap.adapters.header import BITS
from hotswap.adapters.modules import FLOATING, Kind, TokenRows, bytes_of
from hotswap.adapters.names import families
from hotswap.adapters.output import write_atomically
from hotswap.documents import read_document
from hotswap.errors import HotswapError
from hotswap.findings import Finding, printable

VERSION = 1
MIXED = "has LoRA in some adapters and is trained whole or by rows in others, which PEFT does not combine"
APART = "plan these adapters for two models"
ALIGNMENT = 64
"""Bytes: each tensor and scaling of a prepared model starts at a multiple of it."""
Need = Literal["not needed", "recommended", "required"]
Cut = Literal["outputs", "inputs"]
"""Along which of its axes a module is cut over several devices: lora_B then is, or lora_A."""
_MOST_LINES = 4
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """What one module has room for."""

    kind: str
    rank: int
    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    dora: bool = False
    experts: int = 1
    parameters: tuple[str, ...] = ()

    def part(self, cut: Cut, devices: int) -> ModulePlan:
        """What the first of some devices holds of a module that they share."""
        axis = "out_features" if cut == "outputs" else "in_features"
        return replace(self, **{axis: math.ceil(getattr(self, axis) / devices)})

    def shapes(self, rank: int) -> list[tuple[int, ...]]:
        """The shapes of the module's LoRA tensors at a rank."""
        rank = math.ceil(rank / self.groups) * self.groups * self.experts
        ones = (1,) * len(self.kernel)
        found = [
            (rank, self.in_features, *self.kernel),
            (self.out_features, rank // self.groups, *ones),
        ]
        if self.bias:
            found.append((self.out_features,))
        if self.dora:
            found.append((1, self.out_features, *ones) if ones else (self.out_features,))
        return found


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of a whole module that is swapped beside LoRA (modules_to_save)."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """One line of the fleet; ``ranks`` and ``alphas`` are the distinct values, ascending.

    ``lacks`` are the modules of others that it has no weights for, by family.
    """

    name: str
    path: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    modules: int
    bytes: int
    lacks: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(self.ranks, default=0)


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """Per module the largest rank of any adapter; is preparation needed, why, and its memory.

    ``tied`` are tensors that share those of a saved module, each with its name. ``ground`` is what the
    adapters need alike of the model beside layers (AdapterSpec.ground), empty for most.
    """

    modules: dict[str, ModulePlan]
    adapters: tuple[AdapterSummary, ...] = ()
    need: Need = "required"
    reasons: tuple[str, ...] = ()
    conflicts: tuple[Finding, ...] = ()
    dtype: str = "F32"
    saved: dict[str, SavedTensor] = field(default_factory=dict)
    tokens: dict[str, TokenRows] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)
    ground: dict[str, Any] = field(default_factory=dict)

    @property
    def target_rank(self) -> int:
        """The largest rank of any module."""
        return max((module.rank for module in self.modules.values()), default=0)

    @property
    def mixed(self) -> list[str]:
        """Modules that have LoRA in some adapters and are trained whole or by rows in others."""
        owners = {name.rpartition(".")[0] for name in self.saved} | self.tokens.keys()
        return sorted(owners & self.modules.keys())

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module."""
        return {name: module.rank for name, module in self.modules.items()}

    @property
    def unpadded_bytes(self) -> int:
        """The bytes of the largest adapter as it is on disk."""
        return max((adapter.bytes for adapter in self.adapters), default=0)

    @property
    def padded_bytes(self) -> int:
        """The bytes that a model holds for the adapter when it is prepared with this plan.

        Exact for adapter weights in the plan's dtype: every tensor and every scaling is aligned.
        """
        return self.bytes_at(self.ranks)

    @property
    def uniform_bytes(self) -> int:
        """The same when it is prepared with target_rank in every module."""
        return self.bytes_at(dict.fromkeys(self.modules, self.target_rank))

    def bytes_per_rank(self, cuts: Mapping[str, Cut], devices: int) -> int:
        """What each of some devices holds for the adapter, prepared with this plan.

        ``cuts`` are the modules that they share; whatever else there is each of them has whole.
        """
        parts = {
            name: module.part(cuts[name], devices) if name in cuts else module
            for name, module in self.modules.items()
        }
        return replace(self, modules=parts).padded_bytes

    @property
    def first(self) -> AdapterSummary | None:
        """The adapter to load first: with most modules, then with the largest rank."""
        return max(self.adapters, key=lambda adapter: (adapter.modules, adapter.rank), default=None)

    def bytes_at(self, ranks: Mapping[str, int]) -> int:
        """The bytes of a prepared adapter with these ranks: tensors and scalings, each aligned."""
        forms = [
            (self.dtype, shape)
            for name, module in self.modules.items()
            for shape in module.shapes(ranks[name])
        ]
        forms += [(tensor.dtype, tensor.shape) for tensor in self.saved.values()]
        forms += [(self.dtype, (len(r.indices), r.dimension)) for r in self.tokens.values()]
        scalings = ALIGNMENT * len(self.modules)
        return scalings + sum(math.ceil(bytes_of(*form) / ALIGNMENT) * ALIGNMENT for form in forms)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; target_rank and bytes are there to be read and are computed anew."""
        sizes = {n: getattr(self, f"{n}_bytes") for n in ("unpadded", "padded", "uniform")}
        return {
            "version": VERSION,
            "target_rank": self.target_rank,
            "need": self.need,
            "reasons": list(self.reasons),
            "dtype": self.dtype,
            "bytes": sizes,
            "adapters": [_plain(adapter) for adapter in self.adapters],
            "modules": {name: _plain(module) for name, module in self.modules.items()},
            "saved": {name: _plain(tensor) for name, tensor in self.saved.items()},
            "tokens": {name: _plain(rows) for name, rows in self.tokens.items()},
            "modules_to_save": list(self.modules_to_save),
            "tied": dict(self.tied),
            "ground": dict(self.ground),
            "conflicts": [finding.as_dict() for finding in self.conflicts],
        }

    @classmethod
    def from_dict(cls, data: Any) -> SwapPlan:
        """Build a plan from its JSON form; raises HotswapError when that is not one."""
        if not isinstance(data, dict) or "version" not in data:
            raise HotswapError("not a swap plan: expected a JSON object with a version")
        if data["version"] != VERSION:
            raise HotswapError(
                f"the swap plan has version {str(data['version'])[:40]}, "
                f"this hotswap reads {VERSION}; make it again with 'hotswap plan'"
            )
        try:
            return cls(
                modules={str(n): _module(entry) for n, entry in data["modules"].items()},
                adapters=tuple(_built(AdapterSummary, e) for e in data["adapters"]),
                need=_one_of(data["need"], get_args(Need)),
                reasons=tuple(map(str, data["reasons"])),
                conflicts=tuple(_built(Finding, entry) for entry in data["conflicts"]),
                dtype=_one_of(data["dtype"], FLOATING),
                saved={str(n): _built(SavedTensor, entry) for n, entry in data["saved"].items()},
                tokens={str(n): _built(TokenRows, entry) for n, entry in data["tokens"].items()},
                modules_to_save=tuple(map(str, data["modules_to_save"])),
                tied={str(n): str(other) for n, other in data.get("tied", {}).items()},
                ground=dict(data.get("ground", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise HotswapError(
                f"the swap plan is broken: {reason}; make it again with 'hotswap plan'"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON (``hotswap-plan.json``), whole or not at all; raises OSError."""
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> SwapPlan:
        """Read a plan that ``save`` wrote; raises HotswapError when it is missing or broken."""
        text = read_document(path)
        try:
            return cls.from_dict(json.loads(text))
        except HotswapError as error:
            raise HotswapError(f"{path}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise HotswapError(f"{path}: is not JSON: {error}") from error

    def __str__(self) -> str:
        return self.text()

    def text(self, *, adapters: int | None = None) -> str:
        """Say what is planned; of the adapters, so many are in the table, and the others counted."""
        return "\n".join(map(printable, _lines(self, adapters)))


def _lines(plan: SwapPlan, most: int | None) -> Iterator[str]:
    count, shown = len(plan.adapters), plan.adapters[:most]
    rows = [("name", "rank", "alpha", "modules")] if count else []
    rows += [(a.name, _span(a.ranks), _span(a.alphas), str(a.modules)) for a in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield f"{count} adapter{'' if count == 1 else 's'}"
    yield from (f"  {'  '.join(map(str.ljust, row, widths)).rstrip()}" for row in rows)
    if len(shown) < count:
        yield f"  and {count - len(shown)} more"
    target = plan.target_rank
    less = families((name, rank) for name, rank in plan.ranks.items() if rank < target)
    yield from ("", f"Target rank: {target} ({len(plan.modules)} modules)")
    yield from (f"  {line} is enough" for line in cut([f"{n}: rank {rank}" for n, rank in less]))
    yield from ("", f"Preparation: {plan.need}", *(f"  {reason}" for reason in plan.reasons))
    if plan.need != "not needed":
        yield "  call hotswap.prepare(model, plan=plan) before torch.compile,"
        yield "  or let hotswap.load(base_model, plan, adapter) do it"
    yield from ("", f"LoRA memory ({plan.dtype})")
    yield f"  {size_text(plan.padded_bytes)} prepared with this plan"
    yield f"  {size_text(plan.uniform_bytes)} prepared with target_rank={target} everywhere"
    yield f"  {size_text(plan.unpadded_bytes)} the largest adapter as saved"
    yield from ("", "Conflicts")
    yield from [f"  {finding}" for finding in plan.conflicts] or ["  none"]


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[0]:g}" + (f" to {values[-1]:g}" if len(values) > 1 else "")


def cut(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more modules like these"]


def size_text(count: int) -> str:
    """Bytes as a person reads them."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(value).items()}


def _positive(key: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} is {str(value)[:40]!r}, expected a positive integer")
    return value


def _one_of(value: Any, allowed: Iterable[str]) -> Any:
    if value not in allowed:
        raise ValueError(f"{str(value)[:40]!r} is not one of {', '.join(allowed)}")
    return value


def _module(entry: Any) -> ModulePlan:
    module = _built(ModulePlan, entry)
    if module.rank % module.groups:
        raise ValueError(f"rank {module.rank} is not divisible by {module.groups} groups")
    return module


def _built(kind: type[_T], entry: Any) -> _T:
    """Build what a plan holds from its JSON form; raises KeyError, TypeError or ValueError."""
    names = [name for name in kind.__annotations__ if name in _READERS]
    return kind(
        **{
            name: _READERS[name](name, entry[name])
            for name in names
            if name != "lacks" or name in entry  # which older plans are without
        }
    )


_READERS: dict[str, Callable[[str, Any], Any]] = {
    name: reader
    for names, reader in (
        ("rank in_features out_features groups experts dimension", _positive),
        ("kernel shape", lambda key, value: tuple([_positive(key, size) for size in value])),
        ("where code message remedy name path", lambda _, value: str(value)),
        ("parameters lacks", lambda _, value: tuple(map(str, value))),
        ("ranks indices", lambda _, value: tuple(map(int, value))),
        ("alphas", lambda _, value: tuple(map(float, value))),
        ("modules bytes", lambda _, value: int(value)),
        ("bias dora", lambda _, value: bool(value)),
        ("kind", lambda _, value: _one_of(value, get_args(Kind))),
        ("dtype", lambda _, value: _one_of(value, BITS)),
    )
    for name in names.split()
}
"""How each field of what a plan holds is read."""
