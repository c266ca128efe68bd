"""AdapterSpec: what one adapter says, per module, from its config and the safetensors header."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from hotswap.adapters.config import (
    SAVE_AGAIN,
    check_config,
    ground_of,
    remedy_for,
    saved_module,
    token_indices,
    unsupported_features,
)
from hotswap.adapters.files import unreadable
from hotswap.adapters.formats import components_of
from hotswap.adapters.formats.component import Component
from hotswap.adapters.header import FileLayout, TensorInfo, for_names
from hotswap.adapters.modules import FLOATING, ModuleSpec, TokenRows, bytes_of, describe_modules
from hotswap.adapters.names import TOKENS, Names, canonical, family, sort_names, wrapper_in
from hotswap.adapters.patterns import MOST_STEPS, steps
from hotswap.adapters.targets import all_linear, left_out
from hotswap.adapters.texts import Texts, open_texts
from hotswap.findings import Finding

_BASE_COPY = re.compile(r"(.+\.)?(base_layer|embed_tokens|lm_head)\.(weight|bias)")
_TABLES = ("modules", "saved", "tokens", "copies")  # of a spec, by names


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One adapter: what it says of each module, and what is wrong with it.

    Module names are without ``base_model.model.``. Beside LoRA it may carry ``saved`` tensors of
    whole modules (modules_to_save), ``tokens`` (module to the rows that are trained), and ``copies``
    of base weights, which PEFT writes for embeddings; those of ``tied`` are of a saved module that a head
    is tied to (ensure_weight_tying). ``bytes`` counts its tensors, without copies.
    ``left_out`` are modules that have weights and that the config does not name: neither PEFT nor a swap
    loads these. ``findings`` is empty for an adapter that can be swapped. ``components`` of a pipeline are
    those that a file of diffusers names; where it is only one, module names are without it. Where module
    names start with components, ``configs`` are those of each, and ``config`` is the first of them.
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
    left_out: tuple[str, ...] = ()
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def tied(self) -> dict[str, str]:
        """The copies that are tied to a saved tensor, which they then equal, each with its name."""
        if not self.config.get("ensure_weight_tying"):
            return {}
        shapes = {info.shape: name for name, info in self.saved.items()}
        return {n: shapes[info.shape] for n, info in self.copies.items() if info.shape in shapes}

    @property
    def ground(self) -> dict[str, Any]:
        """What adapters must have alike that are swapped for one another, where one has any of it.

        What PiSSA and OLoRA take out of the base weights follows from rank and scaling of each module.
        """
        found = {} if self.components else ground_of(self.config)  # those are loaded by diffusers
        if "init_lora_weights" in found:
            found["parts"] = {n: [m.rank, m.scaling] for n, m in sorted(self.modules.items())}
        return found

    @property
    def of_ground(self) -> tuple[Finding, ...]:
        """Of the findings those that are about it, which do not matter where all have the same."""
        sentences = unsupported_features(self.ground)
        return tuple(found for found in self.findings if found.message in sentences)

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
        return _joined(self.path, {self.components[0]: self})

    def of_component(self, component: str) -> AdapterSpec:
        """The part for one of several components, with names that are without it."""
        prefix = f"{component}."
        tables: dict[str, Any] = {
            table: {
                name.removeprefix(prefix): value
                for name, value in getattr(self, table).items()
                if name.startswith(prefix)
            }
            for table in _TABLES
        }
        config = self.configs.get(component, self.config)
        return replace(self, config=config, configs={}, components=(component,), **tables)

    @classmethod
    def read(cls, path: str | Path) -> AdapterSpec:
        """Read a PEFT folder, a file of diffusers or a hub id, without its weights.

        Raises UnreadableAdapterError with all HSW0xx and HSW101 findings.
        """
        with open_texts(str(path)) as texts:
            return describe(texts, texts.layout())

    @classmethod
    def from_tensors(
        cls, where: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
    ) -> AdapterSpec:
        """Describe an adapter by config and tensors; raises UnreadableAdapterError (HSW003/101)."""
        check_config(where, config)
        names = for_names(sort_names, tuple(tensors))
        patterns = [*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ())]
        if steps(patterns, chain(*[owners for owners, _ in names.modules.values()])) > MOST_STEPS:
            text = "rank_pattern and alpha_pattern take too long to match all modules"
            raise unreadable(where, "HSW003", text, SAVE_AGAIN)
        modules, size, findings = describe_modules(where, config, tensors, names)
        layers = [name for name, module in modules.items() if module.kind != "parameter"]
        heads = _tied_heads(modules) if config.get("ensure_weight_tying") else ()
        passed = tuple(name for name in left_out(config, layers) if name not in heads)
        if all_linear(config):
            passed += tuple(n for n in layers if n not in passed and modules[n].kind != "linear")
        for name in passed:
            del modules[name]
        if passed and not modules:
            text = "the config names none of the modules that have weights, so none would be loaded"
            remedy = "correct target_modules, exclude_modules or layers_to_transform"
            findings = [*findings, Finding(where, "HSW004", text, remedy)]
        rest, more, problems = _describe_rest(where, config, tensors, names)
        alike = merge_alike([*findings, *problems, *_findings(where, config, tensors, names)])
        return cls(where, dict(config), modules, size + more, alike, left_out=passed, **rest)


def describe(texts: Texts, layout: FileLayout) -> AdapterSpec:
    """Describe an adapter by its texts; raises UnreadableAdapterError (HSW003/004/005/101).

    Several components of a pipeline become one spec, in which module names start with the component's.
    """
    specs = describe_parts(texts.path, components_of(texts, layout))
    names = tuple(name for name in specs if name)
    spec = _joined(texts.path, specs) if len(specs) > 1 else next(iter(specs.values()))
    return replace(spec, components=names) if names else spec


def describe_parts(path: str, parts: Mapping[str, Component]) -> dict[str, AdapterSpec]:
    """Describe each component of an adapter; raises UnreadableAdapterError (HSW003/101)."""
    return {
        name: AdapterSpec.from_tensors(path if len(parts) == 1 else f"{path}::{name}", *part[:2])
        for name, part in parts.items()
    }


def _joined(path: str, specs: Mapping[str, AdapterSpec]) -> AdapterSpec:
    """One spec of those of components, with the component's name before every name."""
    tables: dict[str, Any] = {
        table: {
            f"{component}.{name}": value
            for component, spec in specs.items()
            for name, value in getattr(spec, table).items()
        }
        for table in _TABLES
    }
    return replace(
        next(iter(specs.values())),
        path=path,
        bytes=sum(spec.bytes for spec in specs.values()),
        findings=tuple(finding for spec in specs.values() for finding in spec.findings),
        left_out=tuple(f"{name}.{one}" for name, spec in specs.items() for one in spec.left_out),
        components=(),
        configs={component: spec.config for component, spec in specs.items()},
        **tables,
    )


def _tied_heads(modules: Mapping[str, ModuleSpec]) -> set[str]:
    """The heads of adapted embeddings that are tied to them: PEFT adapts both (ensure_weight_tying)."""
    sizes = {
        (m.out_features, m.in_features, m.rank) for m in modules.values() if m.kind == "embedding"
    }
    return {
        name
        for name, m in modules.items()
        if m.kind == "linear" and (m.in_features, m.out_features, m.rank) in sizes
    }


def merge_alike(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort findings, and keep one of those that say the same of a module of several layers."""
    groups: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
    for found in sorted(set(findings)):
        path, mark, module = found.where.partition("::")
        key = (path, mark + family(module), found.code, found.message, found.remedy)
        groups[key].append(found)
    return tuple(
        replace(one, message=f"{one.message} (and {len(more)} more of {family[2:]})")
        if more
        else one
        for (_, family, *_), (one, *more) in groups.items()
    )


def _describe_rest(
    where: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], names: Names
) -> tuple[dict[str, Any], int, list[Finding]]:
    """Describe what is not of LoRA layers, the bytes of it without copies, and what is wrong with it."""
    found: dict[str, Any] = {"saved": {}, "tokens": {}, "copies": {}}
    size, findings = 0, []
    strange = dict.fromkeys(names.twice, "occurs twice, with and without a prefix")
    for key, name in names.others.items():
        info, module = tensors[key], name.removesuffix(f".{TOKENS}")
        indices = token_indices(config, module) if module != name else ()
        if indices:
            rows = TokenRows(indices, info.shape[-1] if info.shape else 0, info.dtype)
            found["tokens"][module] = rows
            size += bytes_of(*info[:2])
            if info.shape != (len(indices), rows.dimension):
                text = f"{TOKENS} is {list(info.shape)}, the config names {len(indices)} tokens"
                findings.append(Finding(f"{where}::{module}", "HSW104", text, SAVE_AGAIN))
        elif module != name and info.shape[:1] == (0,):
            continue  # a model with room for token rows has none of this adapter
        elif saved_module(config, name):
            found["saved"][name] = info
            size += bytes_of(*info[:2])
        elif _BASE_COPY.fullmatch(name):
            found["copies"][name] = info
        else:
            strange[key] = "is not a LoRA weight that can be swapped"
    findings += _incomplete_modules(where, config, found["saved"])
    findings += _missing_rows(where, config, found["tokens"])
    for key, what in strange.items():
        remedy = "remove the tensor, or save the adapter without it"
        findings.append(Finding(f"{where}::{key}", "HSW108", f"the tensor {what}", remedy))
    return found, size, findings


def _incomplete_modules(
    where: str, config: Mapping[str, Any], saved: Mapping[str, TensorInfo]
) -> Iterator[Finding]:
    """Whole modules that cannot be complete, whatever the base model is."""
    named = config.get("modules_to_save") or ()
    if named and not saved:
        text = f"the config's modules_to_save names {', '.join(map(str, named))}, the weights have none"
        yield Finding(where, "HSW103", text, SAVE_AGAIN)
    for name in saved:
        weight = f"{name.removesuffix('.bias')}.weight"
        if name.endswith(".bias") and weight not in saved:
            text = "a module that is saved as a whole has a bias, and no weight"
            yield Finding(f"{where}::{weight}", "HSW103", text, SAVE_AGAIN)


def _missing_rows(
    where: str, config: Mapping[str, Any], tokens: Mapping[str, TokenRows]
) -> Iterator[Finding]:
    """Embeddings of which the config says that rows are trained, without these rows."""
    given = config.get("trainable_token_indices") or {}
    wanted = given if isinstance(given, Mapping) else {"": given}
    for name, indices in wanted.items():
        if indices and not any(module.endswith(str(name)) for module in tokens):
            said = f" of {ascii(name)[:60]}" if name else ""
            text = f"the config's trainable_token_indices names rows{said}, the weights have none"
            yield Finding(where, "HSW103", text, SAVE_AGAIN)


def _findings(
    where: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], names: Names
) -> Iterator[Finding]:
    """What the config has that is not swapped, no LoRA at all, and weights that are no floating numbers."""
    for sentence in unsupported_features(config):
        yield Finding(where, "HSW102", sentence, remedy_for(sentence))
    wrapper = for_names(wrapper_in, tuple(tensors))
    if wrapper:
        text = f"names of tensors begin with or hold the wrapper {wrapper}, and PEFT finds none of them"
        remedy = "save the adapter of the unwrapped model: accelerator.unwrap_model(model)"
        yield Finding(where, "HSW108", text, remedy)
    if not names.modules:
        yield Finding(where, "HSW004", "the adapter has no LoRA weights", SAVE_AGAIN)
    if {*map(itemgetter(0), tensors.values())} <= {*FLOATING}:
        return
    for key, info in tensors.items():  # a whole module may have integer buffers
        if info.dtype not in FLOATING and names.others.get(key, TOKENS).endswith(TOKENS):
            text = f"has dtype {info.dtype}, expected one of {', '.join(FLOATING)}"
            remedy = "save the adapter in a floating dtype"
            yield Finding(f"{where}::{canonical(key)}", "HSW109", text, remedy)
