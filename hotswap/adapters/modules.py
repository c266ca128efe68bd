"""ModuleSpec and TokenRows: what an adapter says of one module, from the forms of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

from hotswap.adapters.config import alpha_of, rank_of, scaling_of, target_parameters
from hotswap.adapters.header import BITS, TensorInfo
from hotswap.adapters.names import MAGNITUDE, Names
from hotswap.findings import Finding

Kind = Literal["linear", "embedding", "conv", "parameter"]
FLOATING = ("F16", "BF16", "F32", "F64")  # narrow to wide
_SAVE_AGAIN = "save the adapter again with model.save_pretrained(folder)"
_Form = tuple[str, tuple[int, ...]]  # dtype and shape


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
    """The dtype that holds every value of the given ones: float16 with bfloat16 gives float32."""
    found = set(dtypes) & set(FLOATING)
    if found == {"F16", "BF16"}:
        return "F32"
    return max(found, key=FLOATING.index, default="F32")


def describe_modules(
    where: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], names: Names
) -> tuple[dict[str, ModuleSpec], int, list[Finding]]:
    """Describe the modules, the bytes of their tensors, and what is wrong with them."""
    modules: dict[str, ModuleSpec] = {}
    findings: list[Finding] = []
    size = 0
    alike = not any(map(config.get, ("rank_pattern", "alpha_pattern", "target_parameters")))
    forms = [*map(itemgetter(0, 1), tensors.values())]
    for parts, (owners, columns) in names.modules.items():
        known: dict[tuple[_Form, ...], tuple[ModuleSpec | None, int]] = {}
        rows = zip(*[map(forms.__getitem__, column) for column in columns], strict=True)
        for name, row in zip(owners, rows, strict=True):
            module, own = known.get(row, (None, 0))  # of a layer like one before
            if module is None or not alike:
                given = dict(zip(parts, row, strict=True))
                module, problems = _module(f"{where}::{name}", name, config, given)
                findings += problems
                own = bytes_of(row)
                known[row] = module, own
            size += own
            if module is not None:
                modules[name] = module
    if len(names.modules) > 1:
        modules = dict(sorted(modules.items()))
    return modules, size, findings


def _module(
    where: str, name: str, config: Mapping[str, Any], parts: Mapping[str, _Form]
) -> tuple[ModuleSpec | None, list[Finding]]:
    """Describe a module, or say what is wrong with its tensors."""
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    key_a, key_b = _pair(embedding)
    if embedding and any(key in parts for key in _pair(False)):
        text = "has the weights of an embedding and of a linear layer"
        return None, [Finding(where, "HSW103", text, _SAVE_AGAIN)]
    missing = [key for key in (key_a, key_b) if key not in parts]
    if config.get("lora_bias") and not embedding and "lora_B.bias" not in parts:
        missing.append("lora_B.bias")
    if config.get("use_dora") and MAGNITUDE not in parts:
        missing.append(MAGNITUDE)
    if missing:
        text = f"{' and '.join(missing)} missing, found {', '.join(sorted(parts))}"
        return None, [Finding(where, "HSW103", text, _SAVE_AGAIN)]
    (dtype_a, a), (dtype_b, b) = parts[key_a], parts[key_b]
    owner = name
    while owner.endswith(".base_layer"):  # one wrapper around another for each parameter
        owner = owner.removesuffix(".base_layer")
    targets = () if embedding else target_parameters(config, owner)
    rank_keys = [f"{owner}.{target}" for target in targets] or [name]
    ranks = {rank_of(config, key) for key in rank_keys}
    if len(ranks) > 1 or len({alpha_of(config, key) for key in rank_keys}) > 1:
        text = f"rank_pattern or alpha_pattern tells the parameters {', '.join(targets)} apart"
        remedy = "give the target parameters of one module one rank and one alpha"
        return None, [Finding(where, "HSW102", text, remedy)]
    (rank,) = ranks
    experts = 1
    if targets and len(a) == 2 and a[0] % rank == 0:
        experts = a[0] // rank
    problems = list(_shape_problems(where, rank * experts, a, b))
    for part in ("lora_B.bias", MAGNITUDE):
        if part in parts and not problems:
            problems += _vector_problems(where, config, part, parts[part][1], b)
    if problems:
        return None, problems
    kind: Kind = "embedding" if embedding else "linear" if len(a) == 2 else "conv"
    return ModuleSpec(
        kind="parameter" if targets else kind,
        rank=rank,
        alpha=alpha_of(config, rank_keys[0]),
        scaling=scaling_of(config, rank_keys[0], rank),
        in_features=a[1],
        out_features=b[0],
        kernel=a[2:],
        groups=a[0] // b[1],
        dtype=widest((dtype_a, dtype_b)),
        bias="lora_B.bias" in parts,
        dora=MAGNITUDE in parts,
        experts=experts,
        parameters=targets,
    ), []


def _pair(embedding: bool) -> tuple[str, str]:
    return (
        ("lora_embedding_A", "lora_embedding_B")
        if embedding
        else ("lora_A.weight", "lora_B.weight")
    )


def _shape_problems(
    where: str, rank: int, a: tuple[int, ...], b: tuple[int, ...]
) -> Iterator[Finding]:
    shapes = f"A is {list(a)}, B is {list(b)}"
    if len(a) != len(b) or not 2 <= len(a) <= 5 or 0 in (*a, *b) or math.prod(b[2:]) != 1:
        text = f"{shapes}, expected (rank, in, *kernel) and (out, rank, 1, ...)"
        yield Finding(where, "HSW104", text, _SAVE_AGAIN)
        return
    groups = a[0] // b[1] if len(a) > 2 and a[0] % b[1] == 0 else 1
    if a[0] == rank and b[1] * groups == rank:
        return
    if a[1] == rank and b[0] == rank:
        text = f"A and B are exchanged: {shapes}, the config says rank {rank}"
        remedy = "swap the two tensors: A is (rank, in_features), B is (out_features, rank)"
    elif len(a) > 2 and a[0] % b[1]:
        text = f"{shapes}: rank {a[0]} is not a multiple of the {b[1]} columns of B"
        remedy = "the rank of a convolution must be divisible by its groups"
    elif b[1] * groups != a[0]:
        text = f"A has rank {a[0]}, B has rank {b[1]}, the config says {rank}"
        remedy = _SAVE_AGAIN
    else:
        text = f"the weights have rank {a[0]}, the config says {rank}"
        remedy = "correct r or rank_pattern in adapter_config.json, which also gives the scaling"
    yield Finding(where, "HSW104", text, remedy)


def _vector_problems(
    where: str, config: Mapping[str, Any], part: str, found: tuple[int, ...], b: tuple[int, ...]
) -> Iterator[Finding]:
    switch = "use_dora" if part == MAGNITUDE else "lora_bias"
    conv = part == MAGNITUDE and len(b) > 2
    shape = (1, b[0], *b[2:]) if conv else (b[0],)
    if not config.get(switch):
        text = f"the tensor {part} is there, but the config says {switch}=false"
        remedy = f"set {switch} in adapter_config.json or remove the tensor"
        yield Finding(where, "HSW108", text, remedy)
    elif found != shape:
        text = f"{part} is {list(found)}, expected {list(shape)}"
        yield Finding(where, "HSW005", text, _SAVE_AGAIN)


def bytes_of(forms: Iterable[_Form]) -> int:
    return sum(math.prod(shape) * BITS.get(dtype, 0) // 8 for dtype, shape in forms)
