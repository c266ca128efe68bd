"""ModuleSpec and TokenRows: what an adapter says of one module, from the forms of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations, starmap
from operator import itemgetter
from typing import Any, Literal

from hotswap.adapters.config import SAVE_AGAIN, alpha_of, rank_of, scaling_of, target_parameters
from hotswap.adapters.header import BITS, TensorInfo
from hotswap.adapters.names import BIAS, EMBEDDING, LINEAR, MAGNITUDE, Names, in_file, owner
from hotswap.findings import Finding

Kind = Literal["linear", "embedding", "conv", "parameter"]
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
FLOATING = (*_EIGHT_BITS, "F16", "BF16", "F32", "F64")  # narrow to wide
_Shape = tuple[int, ...]
_Form = tuple[str, _Shape]  # with the dtype before it


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """What an adapter says about one module.

    ``lora_A`` is (rank, in_features, *kernel), ``lora_B`` (out_features, rank / groups, 1, …). For
    an embedding, ``in_features`` is the vocabulary and ``out_features`` the dimension. For a
    parameter that is targeted directly, ``lora_A`` is (experts * rank, in_features), ``lora_B``
    (out_features, rank * experts), and ``parameters`` names what is targeted in that module.
    """

    kind: Kind
    rank: int
    alpha: float
    scaling: float
    in_features: int
    out_features: int
    kernel: tuple[int, ...]
    groups: int
    dtype: str
    bias: bool
    dora: bool = False
    experts: int = 1
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The rows of an embedding that an adapter trains; the tensor is (len(indices), dimension)."""

    indices: tuple[int, ...]
    dimension: int
    dtype: str


def widest(dtypes: Iterable[str]) -> str:
    """The dtype that holds every value of others: float32 for float16 with bfloat16; 8 bits fit in any."""
    given = set(dtypes) & set(FLOATING)
    found = given - set(_EIGHT_BITS)
    if found == {"F16", "BF16"}:
        return "F32"
    return max(found, key=FLOATING.index, default="BF16" if given else "F32")


def describe_modules(
    where: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], names: Names
) -> tuple[dict[str, ModuleSpec], int, list[Finding]]:
    """Describe the modules, the bytes of their tensors, and what is wrong with them."""
    modules: dict[str, ModuleSpec] = {}
    findings: list[Finding] = []
    size = 0
    alike = not any(map(config.get, ("rank_pattern", "alpha_pattern", "target_parameters")))
    forms = [*map(itemgetter(0, 1), tensors.values())]
    room = None
    if config.get("target_parameters"):
        room = {
            in_file(key).removesuffix(f".{LINEAR[0]}"): info.shape[0]
            for key, info in tensors.items()
            if key.endswith(LINEAR[0]) and info.shape
        }
    for parts, (owners, columns) in names.modules.items():
        known: dict[tuple[_Form, ...], tuple[ModuleSpec, int]] = {}
        rows = zip(*[map(forms.__getitem__, column) for column in columns], strict=True)
        for name, row in zip(owners, rows, strict=True):
            same = known.get(row) if alike else None  # a layer like one before
            if same is None:
                given = dict(zip(parts, row, strict=True))
                found = _module(f"{where}::{name}", name, config, given, room)
                own = sum(starmap(bytes_of, row))
                if isinstance(found, list):
                    findings += found
                    size += own
                    continue
                same = known[row] = found, own
            modules[name] = same[0]
            size += same[1]
    if len(names.modules) > 1:
        modules = dict(sorted(modules.items()))
    return modules, size, findings


def _module(
    where: str,
    name: str,
    config: Mapping[str, Any],
    parts: Mapping[str, _Form],
    room: Mapping[str, int] | None,
) -> ModuleSpec | list[Finding]:
    """Describe a module, or say what is wrong with its tensors; ``room`` is of all: experts times rank."""
    embedding = any(part in parts for part in EMBEDDING)
    if embedding and any(part in parts for part in LINEAR):
        text = "has the weights of an embedding and of a linear layer"
        return [Finding(where, "HSW103", text, SAVE_AGAIN)]
    part_a, part_b = EMBEDDING if embedding else LINEAR
    bias = (BIAS,) if config.get("lora_bias") and not embedding else ()
    magnitude = (MAGNITUDE,) if config.get("use_dora") else ()
    missing = [part for part in (part_a, part_b, *bias, *magnitude) if part not in parts]
    if missing:
        text = f"{' and '.join(missing)} missing, found {', '.join(sorted(parts))}"
        return [Finding(where, "HSW103", text, SAVE_AGAIN)]
    (dtype_a, a), (dtype_b, b) = parts[part_a], parts[part_b]
    targets = () if embedding else target_parameters(config, owner(name))
    keys = [f"{owner(name)}.{target}" for target in targets] or [name]
    if len(keys) > 1 and room is not None:
        keys = _parameter_of(config, keys, name, room)
    (rank, alpha), *others = {(rank_of(config, key), alpha_of(config, key)) for key in keys}
    if others:
        text = f"rank_pattern or alpha_pattern tells the parameters {', '.join(targets)} apart"
        remedy = "give the target parameters of one module one rank and one alpha"
        return [Finding(where, "HSW102", text, remedy)]
    experts = a[0] // rank if targets and len(a) == 2 and a[0] % rank == 0 else 1
    wrong = _shape_problem(rank * experts, a, b)
    if wrong is not None:
        return [Finding(where, "HSW104", *wrong)]
    problems = [*_vector_problems(where, config, parts, b)]
    if problems:
        return problems
    kind: Kind = "embedding" if embedding else "linear" if len(a) == 2 else "conv"
    return ModuleSpec(
        kind="parameter" if targets else kind,
        rank=rank,
        alpha=alpha,
        scaling=scaling_of(config, keys[0], rank),
        in_features=a[1],
        out_features=b[0],
        kernel=a[2:],
        groups=a[0] // b[1],
        dtype=widest((dtype_a, dtype_b)),
        bias=BIAS in parts,
        dora=MAGNITUDE in parts,
        experts=experts,
        parameters=targets,
    )


def _parameter_of(
    config: Mapping[str, Any], keys: list[str], name: str, room: Mapping[str, int]
) -> list[str]:
    """Which of a module's parameters a wrapper is of, where their ranks tell: all have as many experts.

    All of them where it does not matter, or where the ranks do not tell.
    """
    wrappers = sorted((each for each in room if owner(each) == owner(name)), key=len)
    found = set()
    for order in permutations(keys, len(wrappers)):
        parts = [(room[w], rank_of(config, k)) for w, k in zip(wrappers, order, strict=True)]
        experts = {length / rank for length, rank in parts}
        if len(experts) == 1 and experts.pop().is_integer():
            found.add(order[wrappers.index(name)])
    return [*found] if len(found) == 1 else keys


def _shape_problem(rank: int, a: _Shape, b: _Shape) -> tuple[str, str] | None:
    """What is wrong with the shapes of A and B, and the remedy."""
    shapes = f"A is {list(a)}, B is {list(b)}"
    if len(a) != len(b) or not 2 <= len(a) <= 5 or 0 in (*a, *b) or math.prod(b[2:]) != 1:
        return f"{shapes}, expected (rank, in, *kernel) and (out, rank, 1, ...)", SAVE_AGAIN
    groups = a[0] // b[1] if len(a) > 2 and a[0] % b[1] == 0 else 1
    if a[0] == rank and b[1] * groups == rank:
        return None
    if a[1] == rank and b[0] == rank:
        text = f"A and B are exchanged: {shapes}, the config says rank {rank}"
        remedy = "swap the two tensors: A is (rank, in_features), B is (out_features, rank)"
    elif len(a) > 2 and a[0] % b[1]:
        text = f"{shapes}: rank {a[0]} is not a multiple of the {b[1]} columns of B"
        remedy = "the rank of a convolution must be divisible by its groups"
    elif b[1] * groups != a[0]:
        text = f"A has rank {a[0]}, B has rank {b[1]}, the config says {rank}"
        remedy = SAVE_AGAIN
    else:
        text = f"the weights have rank {a[0]}, the config says {rank}"
        remedy = "correct r or rank_pattern in adapter_config.json, which also gives the scaling"
    return text, remedy


def _vector_problems(
    where: str, config: Mapping[str, Any], parts: Mapping[str, _Form], b: _Shape
) -> Iterator[Finding]:
    """What is wrong with a bias and a magnitude."""
    magnitude = (1, b[0], *b[2:]) if len(b) > 2 else (b[0],)
    for part, switch, shape in ((BIAS, "lora_bias", (b[0],)), (MAGNITUDE, "use_dora", magnitude)):
        if part in parts and not config.get(switch):
            text = f"the tensor {part} is there, but the config says {switch}=false"
            remedy = f"set {switch} in adapter_config.json or remove the tensor"
            yield Finding(where, "HSW108", text, remedy)
        elif part in parts and parts[part][1] != shape:
            text = f"{part} is {list(parts[part][1])}, expected {list(shape)}"
            yield Finding(where, "HSW005", text, SAVE_AGAIN)


def bytes_of(dtype: str, shape: _Shape) -> int:
    """The bytes of a tensor; none of a dtype that safetensors lacks."""
    return math.prod(shape) * BITS.get(dtype, 0) // 8
