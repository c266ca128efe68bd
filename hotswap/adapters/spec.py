"""AdapterSpec: what one adapter says, per module, from its config and the safetensors header."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hotswap.adapters.config import (
    alpha_of,
    check_config,
    rank_of,
    read_config,
    scaling_of,
    unsupported_features,
)
from hotswap.adapters.header import BITS, TensorInfo, read_header
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding, has_code

Kind = Literal["linear", "embedding", "conv"]
_FLOATING = ("F16", "BF16", "F32", "F64")  # narrow to wide
_TENSOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB])"
)
_SAVE_AGAIN = "save the adapter again with model.save_pretrained(folder)"


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """What an adapter says about one module.

    ``lora_A`` is (rank, in_features, *kernel), ``lora_B`` (out_features, rank / groups, 1, …). For
    an embedding, ``in_features`` is the vocabulary and ``out_features`` the dimension.
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


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One adapter: what it says of each module, and what is wrong with it.

    Module names are without ``base_model.model.``. ``bytes`` counts its LoRA tensors. ``findings``
    is empty for an adapter that can be swapped.
    """

    path: str
    config: dict[str, Any]
    modules: dict[str, ModuleSpec]
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max((module.rank for module in self.modules.values()), default=0)

    @property
    def name(self) -> str:
        """The folder's name."""
        return Path(self.path).name or Path(self.path).resolve().name

    @classmethod
    def read(cls, path: str | Path) -> AdapterSpec:
        """Read a PEFT folder; raises UnreadableAdapterError with all HSW0xx and HSW101 findings."""
        findings: list[Finding] = []
        config: dict[str, Any] = {}
        tensors: dict[str, TensorInfo] = {}
        try:
            config = read_config(path)
        except UnreadableAdapterError as error:
            findings += error.findings
        if not any(has_code(findings, code) for code in ("HSW001", "HSW002", "HSW101")):
            try:
                tensors = read_header(path)
            except UnreadableAdapterError as error:
                findings += error.findings
        if findings:
            raise UnreadableAdapterError(findings)
        return cls.from_tensors(str(path), config, tensors)

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
        parts = _by_module(where, tensors, findings)
        if not parts:
            findings.append(
                Finding(where, "HSW004", "the adapter has no LoRA weights", _SAVE_AGAIN)
            )
        modules: dict[str, ModuleSpec] = {}
        for name in sorted(parts):
            problems = list(_module_problems(f"{where}::{name}", name, config, parts[name]))
            findings += problems
            if not problems:
                modules[name] = _module(name, config, parts[name])
        size = sum(tensor_bytes(info) for part in parts.values() for info in part.values())
        return cls(where, dict(config), modules, size, merge_alike(findings))


def tensor_bytes(info: TensorInfo) -> int:
    """The bytes that a tensor's elements take."""
    return math.prod(info.shape) * BITS.get(info.dtype, 0) // 8


def widest(dtypes: Iterable[str]) -> str:
    """The dtype that holds every value of the given ones: float16 with bfloat16 gives float32."""
    found = set(dtypes) & set(_FLOATING)
    if found == {"F16", "BF16"}:
        return "F32"
    return max(found, key=_FLOATING.index, default="F32")


def family(module: str) -> str:
    """A module's name with ``*`` for layer numbers: ``layers.0.q_proj`` is ``layers.*.q_proj``."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module)


def merge_alike(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings, and keep one of those that say the same of a module of several layers."""
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


def _by_module(
    where: str, tensors: Mapping[str, TensorInfo], findings: list[Finding]
) -> dict[str, dict[str, TensorInfo]]:
    parts: dict[str, dict[str, TensorInfo]] = {}
    for key, info in tensors.items():
        match = _TENSOR.fullmatch(_canonical(key))
        if match is None:
            findings.append(_unexpected(where, key, "is not a LoRA weight that can be swapped"))
            continue
        module = parts.setdefault(match["module"], {})
        if match["part"] in module:
            findings.append(_unexpected(where, key, "occurs twice, with and without a prefix"))
        module[match["part"]] = info
        if info.dtype not in _FLOATING:
            findings.append(
                Finding(
                    f"{where}::{_canonical(key)}",
                    "HSW109",
                    f"has dtype {info.dtype}, expected one of {', '.join(_FLOATING)}",
                    "save the adapter in a floating dtype",
                )
            )
    return parts


def _canonical(key: str) -> str:
    parts = [part for part in key.split(".") if part != "_orig_mod"]
    return ".".join(parts).removeprefix("base_model.model.")


def _unexpected(where: str, key: str, message: str) -> Finding:
    remedy = "remove the tensor, or save the adapter without it"
    if key.endswith(".base_layer.weight"):
        remedy = "save with save_pretrained(folder, save_embedding_layers=False)"
    return Finding(f"{where}::{key}", "HSW108", f"the tensor {message}", remedy)


def _module_problems(
    where: str, name: str, config: Mapping[str, Any], parts: Mapping[str, TensorInfo]
) -> Iterator[Finding]:
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    key_a, key_b = _pair(embedding)
    if embedding and any(key in parts for key in _pair(False)):
        yield Finding(
            where, "HSW103", "has the weights of an embedding and of a linear layer", _SAVE_AGAIN
        )
        return
    missing = [key for key in (key_a, key_b) if key not in parts]
    if config.get("lora_bias") and not embedding and "lora_B.bias" not in parts:
        missing.append("lora_B.bias")
    if missing:
        text = f"{' and '.join(missing)} missing, found {', '.join(sorted(parts))}"
        yield Finding(where, "HSW103", text, _SAVE_AGAIN)
        return
    a, b = parts[key_a].shape, parts[key_b].shape
    problems = list(_shape_problems(where, rank_of(config, name), a, b))
    yield from problems
    if "lora_B.bias" in parts and not problems:
        yield from _bias_problems(where, config, parts["lora_B.bias"].shape, b)


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


def _bias_problems(
    where: str, config: Mapping[str, Any], bias: tuple[int, ...], b: tuple[int, ...]
) -> Iterator[Finding]:
    if not config.get("lora_bias"):
        text = "the tensor lora_B.bias is there, but the config says lora_bias=false"
        yield Finding(
            where, "HSW108", text, "set lora_bias in adapter_config.json or remove the tensor"
        )
    elif bias != (b[0],):
        text = f"lora_B.bias is {list(bias)}, expected [{b[0]}]"
        yield Finding(where, "HSW005", text, _SAVE_AGAIN)


def _module(name: str, config: Mapping[str, Any], parts: Mapping[str, TensorInfo]) -> ModuleSpec:
    embedding = "lora_embedding_A" in parts
    key_a, key_b = _pair(embedding)
    a, b = parts[key_a], parts[key_b]
    kind: Kind = "embedding" if embedding else "linear" if len(a.shape) == 2 else "conv"
    return ModuleSpec(
        kind=kind,
        rank=a.shape[0],
        alpha=alpha_of(config, name),
        scaling=scaling_of(config, name, a.shape[0]),
        in_features=a.shape[1],
        out_features=b.shape[0],
        kernel=a.shape[2:],
        groups=a.shape[0] // b.shape[1],
        dtype=widest((a.dtype, b.dtype)),
        bias="lora_B.bias" in parts,
    )
