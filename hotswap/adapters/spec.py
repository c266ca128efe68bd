"""AdapterSpec: what one adapter says, per module, from its config and the safetensors header."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from hotswap.adapters.config import (
    check_config,
    saved_module,
    token_indices,
    unsupported_features,
)
from hotswap.adapters.header import TensorInfo, for_names
from hotswap.adapters.modules import (
    FLOATING,
    ModuleSpec,
    TokenRows,
    bytes_of,
    describe_modules,
)
from hotswap.adapters.names import TOKENS, Names, canonical, family, sort_names
from hotswap.adapters.patterns import MOST_STEPS, steps
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

_T = TypeVar("_T")
_BASE_COPY = re.compile(r"(.+\.)?(base_layer|embed_tokens|lm_head)\.(weight|bias)")
_SAVE_AGAIN = "save the adapter again with model.save_pretrained(folder)"


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
        names = for_names(sort_names, tuple(tensors))
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
        modules, size, problems = describe_modules(where, config, tensors, names)
        findings += problems
        size += bytes_of(info[:2] for info in (*other.saved.values(), *other.tokens.values()))
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


@dataclass(slots=True)
class _Sorted:
    """The tensors of a file that are not of LoRA layers, by what they are."""

    saved: dict[str, TensorInfo] = field(default_factory=dict)
    tokens: dict[str, TensorInfo] = field(default_factory=dict)
    copies: dict[str, TensorInfo] = field(default_factory=dict)


def below(component: str, names: Mapping[str, _T]) -> dict[str, _T]:
    """Put a component's name before every name."""
    return {f"{component}.{name}": value for name, value in names.items()}


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


def _sort(
    where: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    names: Names,
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
    where: str, tensors: Mapping[str, TensorInfo], names: Names
) -> Iterator[Finding]:
    """LoRA weights and token rows must be floating numbers; a whole module may have integer buffers."""
    if {*map(itemgetter(0), tensors.values())} <= {*FLOATING}:
        return
    for key, info in tensors.items():
        if info.dtype not in FLOATING and names.others.get(key, TOKENS).endswith(TOKENS):
            text = f"has dtype {info.dtype}, expected one of {', '.join(FLOATING)}"
            remedy = "save the adapter in a floating dtype"
            yield Finding(f"{where}::{canonical(key)}", "HSW109", text, remedy)


def _unexpected(where: str, key: str, message: str) -> Finding:
    remedy = "remove the tensor, or save the adapter without it"
    return Finding(f"{where}::{key}", "HSW108", f"the tensor {message}", remedy)
