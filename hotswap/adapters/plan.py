"""SwapPlan: the smallest envelope that every adapter of a fleet fits in; saved as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from hotswap.adapters.header import BITS
from hotswap.adapters.modules import Kind, TokenRows
from hotswap.adapters.names import family
from hotswap.adapters.output import write_atomically
from hotswap.errors import HotswapError
from hotswap.findings import Finding

VERSION = 1
MIXED = "has LoRA in some adapters and is trained whole or by rows in others, which PEFT does not combine"
APART = "plan these adapters for two models"
ALIGNMENT = 64
"""Bytes: each tensor and scaling of a prepared model starts at a multiple of it."""
Need = Literal["not needed", "recommended", "required"]
_MOST_LINES = 4


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
    """Per module the largest rank of any adapter; is preparation needed, why, and its memory."""

    modules: dict[str, ModulePlan]
    adapters: tuple[AdapterSummary, ...] = ()
    need: Need = "required"
    reasons: tuple[str, ...] = ()
    conflicts: tuple[Finding, ...] = ()
    dtype: str = "F32"
    saved: dict[str, SavedTensor] = field(default_factory=dict)
    tokens: dict[str, TokenRows] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()

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

    @property
    def first(self) -> AdapterSummary | None:
        """The adapter to load first: with most modules, then with the largest rank."""
        return max(self.adapters, key=lambda adapter: (adapter.modules, adapter.rank), default=None)

    def bytes_at(self, ranks: Mapping[str, int]) -> int:
        """The bytes of a prepared adapter with these ranks: tensors and scalings, each aligned."""
        sizes = [
            math.prod(shape) * BITS[self.dtype] // 8
            for name, module in self.modules.items()
            for shape in module.shapes(ranks[name])
        ]
        sizes += [math.prod(s.shape) * BITS.get(s.dtype, 0) // 8 for s in self.saved.values()]
        sizes += [
            len(rows.indices) * rows.dimension * BITS[self.dtype] // 8
            for rows in self.tokens.values()
        ]
        sizes += [ALIGNMENT] * len(self.modules)  # the scalings
        return sum(math.ceil(size / ALIGNMENT) * ALIGNMENT for size in sizes)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; target_rank and bytes are there to be read and are computed anew."""
        return {
            "version": VERSION,
            "target_rank": self.target_rank,
            "need": self.need,
            "reasons": list(self.reasons),
            "dtype": self.dtype,
            "bytes": {
                "unpadded": self.unpadded_bytes,
                "padded": self.padded_bytes,
                "uniform": self.uniform_bytes,
            },
            "adapters": [_plain(adapter) for adapter in self.adapters],
            "modules": {name: _plain(module) for name, module in self.modules.items()},
            "saved": {name: _plain(tensor) for name, tensor in self.saved.items()},
            "tokens": {name: _plain(rows) for name, rows in self.tokens.items()},
            "modules_to_save": list(self.modules_to_save),
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
            plan = cls(
                modules={str(name): _module(entry) for name, entry in data["modules"].items()},
                adapters=tuple(_summary(entry) for entry in data["adapters"]),
                need=_one_of(data["need"], get_args(Need)),
                reasons=tuple(str(reason) for reason in data["reasons"]),
                conflicts=tuple(
                    Finding(
                        str(entry["where"]),
                        str(entry["code"]),
                        str(entry["message"]),
                        str(entry["remedy"]),
                    )
                    for entry in data["conflicts"]
                ),
                dtype=_one_of(data["dtype"], ("F16", "BF16", "F32", "F64")),
                saved={
                    str(name): SavedTensor(_sizes(entry, "shape"), _one_of(entry["dtype"], BITS))
                    for name, entry in data["saved"].items()
                },
                tokens={str(name): _rows(entry) for name, entry in data["tokens"].items()},
                modules_to_save=tuple(str(name) for name in data["modules_to_save"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise HotswapError(
                f"the swap plan is broken: {reason}; make it again with 'hotswap plan'"
            ) from error
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON (``hotswap-plan.json``), whole or not at all; raises OSError."""
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> SwapPlan:
        """Read a plan that ``save`` wrote; raises HotswapError when it is missing or broken."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise HotswapError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise HotswapError(f"{path}: is not JSON: {error}") from error
        try:
            return cls.from_dict(data)
        except HotswapError as error:
            raise HotswapError(f"{path}: {error}") from error

    def __str__(self) -> str:
        return "\n".join(
            [*_fleet_lines(self), *_rank_lines(self), *_need_lines(self), *_other_lines(self)]
        )


def cut(lines: list[str]) -> list[str]:
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more modules like these"]


def times(count: int) -> str:
    return f" ({count} modules)" if count > 1 else ""


def _fleet_lines(plan: SwapPlan) -> list[str]:
    rows = [("name", "rank", "alpha", "modules")] + [
        (a.name, _span(a.ranks), _span(a.alphas), str(a.modules)) for a in plan.adapters
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    count = len(plan.adapters)
    return [f"{count} adapter{'' if count == 1 else 's'}", *(lines if count else [])]


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[0]:g}" + (f" to {values[-1]:g}" if len(values) > 1 else "")


def _rank_lines(plan: SwapPlan) -> list[str]:
    less: dict[tuple[str, int], int] = {}
    for name, module in plan.modules.items():
        if module.rank < plan.target_rank:
            key = (family(name), module.rank)
            less[key] = less.get(key, 0) + 1
    lines = [f"{name}{times(count)}: rank {rank}" for (name, rank), count in sorted(less.items())]
    text = f"Target rank: {plan.target_rank} ({len(plan.modules)} modules)"
    return ["", text, *([f"  {line} is enough" for line in cut(lines)])]


def _need_lines(plan: SwapPlan) -> list[str]:
    lines = ["", f"Preparation: {plan.need}", *(f"  {reason}" for reason in plan.reasons)]
    if plan.need != "not needed":
        lines.append("  call hotswap.prepare(model, plan=plan) before torch.compile,")
        lines.append("  or let hotswap.load(base_model, plan, adapter) do it")
    return lines


def _other_lines(plan: SwapPlan) -> list[str]:
    memory = [
        "",
        f"LoRA memory ({plan.dtype})",
        f"  {size_text(plan.padded_bytes)} prepared with this plan",
        f"  {size_text(plan.uniform_bytes)} prepared with target_rank={plan.target_rank} everywhere",
        f"  {size_text(plan.unpadded_bytes)} the largest adapter as saved",
    ]
    conflicts = [f"  {finding}" for finding in plan.conflicts] or ["  none"]
    return [*memory, "", "Conflicts", *conflicts]


def size_text(count: int) -> str:
    """Bytes as a person reads them."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(value).items()}


def _rows(entry: Mapping[str, Any]) -> TokenRows:
    indices = tuple(int(row) for row in entry["indices"])
    return TokenRows(indices, _positive(entry, "dimension"), _one_of(entry["dtype"], BITS))


def _sizes(entry: Mapping[str, Any], key: str) -> tuple[int, ...]:
    return tuple(_positive({key: size}, key) for size in entry[key])


def _module(entry: Mapping[str, Any]) -> ModulePlan:
    module = ModulePlan(
        kind=_one_of(entry["kind"], get_args(Kind)),
        rank=_positive(entry, "rank"),
        in_features=_positive(entry, "in_features"),
        out_features=_positive(entry, "out_features"),
        kernel=_sizes(entry, "kernel"),
        groups=_positive(entry, "groups"),
        bias=bool(entry["bias"]),
        dora=bool(entry["dora"]),
        experts=_positive(entry, "experts"),
        parameters=tuple(str(name) for name in entry["parameters"]),
    )
    if module.rank % module.groups:
        raise ValueError(f"rank {module.rank} is not divisible by {module.groups} groups")
    return module


def _summary(entry: Mapping[str, Any]) -> AdapterSummary:
    return AdapterSummary(
        name=str(entry["name"]),
        path=str(entry["path"]),
        ranks=tuple(int(rank) for rank in entry["ranks"]),
        alphas=tuple(float(alpha) for alpha in entry["alphas"]),
        modules=int(entry["modules"]),
        bytes=int(entry["bytes"]),
        lacks=tuple(str(name) for name in entry.get("lacks", ())),
    )


def _positive(entry: Mapping[str, Any], key: str) -> int:
    value = entry[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} is {str(value)[:40]!r}, expected a positive integer")
    return value


def _one_of(value: Any, allowed: Iterable[str]) -> Any:
    if value not in allowed:
        raise ValueError(f"{str(value)[:40]!r} is not one of {', '.join(allowed)}")
    return value
