"""AdapterSpec: what one adapter says, per module, from its config and the safetensors header."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from hotswap.adapters.config import (
    alpha_of,
    check_config,
    rank_of,
    saved_module,
    scaling_of,
    target_parameters,
    token_indices,
    unsupported_features,
)
from hotswap.adapters.header import BITS, TensorInfo, for_names
from hotswap.adapters.patterns import MOST_STEPS, steps
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

Kind = Literal["linear", "embedding", "conv", "parameter"]
_T = TypeVar("_T")
_FLOATING = ("F16", "BF16", "F32", "F64")  # narrow to wide
MAGNITUDE = "lora_magnitude_vector"
TOKENS = "token_adapter.trainable_tokens_delta"
_PARTS = {
    part: part
    for part in (
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "lora_embedding_A",
        "lora_embedding_B",
        MAGNITUDE,
    )
} | {f"{MAGNITUDE}.weight": MAGNITUDE}
"""How the name of a tensor of a LoRA layer ends → which tensor it is."""
_BASE_COPY = re.compile(r"(.+\.)?(base_layer|embed_tokens|lm_head)\.(weight|bias)")
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


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One adapter: what it says of each module, and what is wrong with it.

    Module names are without ``base_model.model.``. Beside LoRA it may carry ``saved`` tensors of
    whole modules (modules_to_save), ``tokens`` (module to the rows that are trained), and ``copies``
    of base weights, which PEFT writes for embeddings. ``bytes`` counts its tensors, without copies.
    ``findings`` is empty for an adapter that can be swapped. ``components`` of a pipeline are those that
    a file of diffusers names; where it is only one, module names are without it.
    """

    path: str
    config: dict[str, Any]
    modules: dict[str, ModuleSpec]
    bytes: int
    findings: tuple[Finding, ...]
    saved: dict[str, TensorInfo] = field(default_factory=dict)
    tokens: dict[str, TokenRows] = field(default_factory=dict)
    copies: dict[str, TensorInfo] = field(default_factory=dict)
    components: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max([module.rank for module in self.modules.values()], default=0)

    @property
    def name(self) -> str:
        """The folder's name."""
        return Path(self.path).name or Path(self.path).resolve().name

    def within(self, *components: str) -> AdapterSpec:
        """The same with its only component before every name, where a plan is of these components."""
        if len(self.components) != 1 or self.components[0] not in components:
            return self
        return replace(
            self,
            modules=below(self.components[0], self.modules),
            saved=below(self.components[0], self.saved),
            tokens=below(self.components[0], self.tokens),
            copies=below(self.components[0], self.copies),
            components=(),
        )

    @classmethod
    def read(cls, path: str | Path) -> AdapterSpec:
        """Read a PEFT folder, a file of diffusers or a hub id, without its weights.

        Raises UnreadableAdapterError with all HSW0xx and HSW101 findings.
        """
        from hotswap.adapters.read import Reader

        return Reader().spec(str(path))

    @classmethod
    def from_tensors(
        cls, where: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
    ) -> AdapterSpec:
        """Describe an adapter by config and tensors; raises UnreadableAdapterError (HSW003/101)."""
        check_config(where, config)
        findings = [
            Finding(where, "HSW102", sentence, "train or merge the adapter without this feature")
            for sentence in unsupported_features(config)
        ]
        names = for_names(_named, tuple(tensors))
        other = _sort(where, config, tensors, names, findings)
        findings += _dtype_findings(where, tensors, names)
        if not names.modules:
            findings.append(
                Finding(where, "HSW004", "the adapter has no LoRA weights", _SAVE_AGAIN)
            )
        patterns = [*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ())]
        if steps(patterns, chain(*[owners for owners, _ in names.modules.values()])) > MOST_STEPS:
            text = "rank_pattern and alpha_pattern take too long to match all modules"
            raise UnreadableAdapterError([Finding(where, "HSW003", text, _SAVE_AGAIN)])
        modules, size, problems = _modules(where, config, tensors, names)
        findings += problems
        size += _bytes(info[:2] for info in (*other.saved.values(), *other.tokens.values()))
        tokens: dict[str, TokenRows] = {}
        for name, info in other.tokens.items():
            rows = TokenRows(token_indices(config, name), info.shape[-1], info.dtype)
            tokens[name] = rows
            if info.shape != (len(rows.indices), rows.dimension):
                text = (
                    f"{TOKENS} is {list(info.shape)}, the config names {len(rows.indices)} tokens"
                )
                findings.append(Finding(f"{where}::{name}", "HSW104", text, _SAVE_AGAIN))
        return cls(
            where,
            dict(config),
            modules,
            size,
            merge_alike(findings),
            other.saved,
            tokens,
            other.copies,
        )


class _Names(NamedTuple):
    """The names in a file by what they are: modules, others, and what is twice.

    Modules are grouped by the tensors that they have; with them the places of these in the file, one
    column for each tensor of a module.
    """

    modules: dict[tuple[str, ...], tuple[list[str], list[tuple[int, ...]]]]
    others: dict[str, str]
    twice: list[str]


@dataclass(slots=True)
class _Sorted:
    """The tensors of a file that are not of LoRA layers, by what they are."""

    saved: dict[str, TensorInfo] = field(default_factory=dict)
    tokens: dict[str, TensorInfo] = field(default_factory=dict)
    copies: dict[str, TensorInfo] = field(default_factory=dict)


def below(component: str, names: Mapping[str, _T]) -> dict[str, _T]:
    """Put a component's name before every name."""
    return {f"{component}.{name}": value for name, value in names.items()}


def widest(dtypes: Iterable[str]) -> str:
    """The dtype that holds every value of the given ones: float16 with bfloat16 gives float32."""
    found = set(dtypes) & set(_FLOATING)
    if found == {"F16", "BF16"}:
        return "F32"
    return max(found, key=_FLOATING.index, default="F32")


def family(module: str) -> str:
    """A module's name with ``*`` for layer numbers: ``layers.0.q_proj`` is ``layers.*.q_proj``."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module)


def merge_alike(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort findings, and keep one of those that say the same of a module of several layers."""
    if not findings:
        return ()
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for found in sorted(set(findings)):
        path, mark, module = found.where.partition("::")
        key = (path + mark + family(module), found.code, found.message, found.remedy)
        groups.setdefault(key, []).append(found)
    return tuple(
        same[0]
        if len(same) == 1
        else replace(
            same[0],
            message=f"{same[0].message} (and {len(same) - 1} more of "
            f"{family(same[0].where.partition('::')[2])})",
        )
        for same in groups.values()
    )


@lru_cache(maxsize=32)
def _named(keys: tuple[str, ...]) -> _Names:
    """Sort the names of a file; modules in the order of their names."""
    found = _Names({}, {}, [])
    modules: dict[str, dict[str, int]] = {}
    for place, key in enumerate(keys):
        name = canonical(key)
        owner, _, end = name.rpartition(".lora_")
        part = _PARTS.get(f"lora_{end}") if owner else None
        if part is None:
            found.others[key] = name
            continue
        module = modules.setdefault(owner, {})
        if part in module:
            found.twice.append(key)
        module[part] = place
    groups: dict[tuple[str, ...], list[str]] = {}
    for owner, parts in sorted(modules.items()):
        groups.setdefault(tuple(parts), []).append(owner)
    for own, owners in groups.items():
        columns = [tuple(modules[owner][part] for owner in owners) for part in own]
        found.modules[own] = owners, columns
    return found


def _sort(
    where: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    names: _Names,
    findings: list[Finding],
) -> _Sorted:
    found = _Sorted()
    for key in names.twice:
        findings.append(_unexpected(where, key, "occurs twice, with and without a prefix"))
    for key, name in names.others.items():
        info = tensors[key]
        if name.endswith(f".{TOKENS}") and token_indices(config, name[: -len(TOKENS) - 1]):
            found.tokens[name[: -len(TOKENS) - 1]] = info
        elif name.endswith(f".{TOKENS}") and info.shape[:1] == (0,):
            continue  # a model with room for token rows has none of this adapter
        elif saved_module(config, name):
            found.saved[name] = info
        elif _BASE_COPY.fullmatch(name):
            found.copies[name] = info
        else:
            findings.append(_unexpected(where, key, "is not a LoRA weight that can be swapped"))
    return found


def _dtype_findings(
    where: str, tensors: Mapping[str, TensorInfo], names: _Names
) -> Iterator[Finding]:
    """LoRA weights and token rows must be floating numbers; a whole module may have integer buffers."""
    if {*map(itemgetter(0), tensors.values())} <= {*_FLOATING}:
        return
    for key, info in tensors.items():
        if info.dtype not in _FLOATING and names.others.get(key, TOKENS).endswith(TOKENS):
            text = f"has dtype {info.dtype}, expected one of {', '.join(_FLOATING)}"
            remedy = "save the adapter in a floating dtype"
            yield Finding(f"{where}::{canonical(key)}", "HSW109", text, remedy)


def _bytes(forms: Iterable[_Form]) -> int:
    return sum(math.prod(shape) * BITS.get(dtype, 0) // 8 for dtype, shape in forms)


def canonical(key: str) -> str:
    """A tensor's or module's name as adapter files spell it: without ``_orig_mod`` and PEFT's prefix."""
    if "_orig_mod" in key:  # most have none
        key = ".".join(part for part in key.split(".") if part != "_orig_mod")
    return key.removeprefix("base_model.model.")


def _unexpected(where: str, key: str, message: str) -> Finding:
    remedy = "remove the tensor, or save the adapter without it"
    return Finding(f"{where}::{key}", "HSW108", f"the tensor {message}", remedy)


def _modules(
    where: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], names: _Names
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
                own = _bytes(row)
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
