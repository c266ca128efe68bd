"""The names of an adapter's tensors: the module that each belongs to, and what it is there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
BIAS = "lora_B.bias"
MAGNITUDE = "lora_magnitude_vector"
TOKENS = "token_adapter.trainable_tokens_delta"
_PARTS = {part: part for part in (*LINEAR, *EMBEDDING, BIAS, MAGNITUDE)}
_PARTS[f"{MAGNITUDE}.weight"] = MAGNITUDE
"""How the name of a tensor of a LoRA layer ends → which tensor it is."""

_NAMED = re.compile(r"(\.lora_(?:[AB]|embedding_[AB]|magnitude_vector))\.default(?=\.|$)")
_OF_PEFT = re.compile(r"base_model\.model\.(?!base_model\.)")
_WRAPPED = re.compile(
    r"(?:^|\.)(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\."
    r"|^(module)\.(?:base_model\.|\w*blocks\.)"
)


class Names(NamedTuple):
    """The names in a file by what they are: modules, others, and what is twice.

    Modules are grouped by the tensors that they have; with them the places of these in the file, one
    column for each tensor of a module.
    """

    modules: dict[tuple[str, ...], tuple[list[str], list[tuple[int, ...]]]]
    others: dict[str, str]
    twice: list[str]


def canonical(key: str) -> str:
    """A tensor's or module's name as adapter files spell it: without ``_orig_mod`` and PEFT's prefix."""
    return uncompiled(key).removeprefix("base_model.model.")


def uncompiled(key: str) -> str:
    """A name without ``_orig_mod``, which wrappers of torch.compile put into it."""
    if "_orig_mod" in key:  # most have none
        key = ".".join(part for part in key.split(".") if part != "_orig_mod")
    return key


def in_file(key: str) -> str:
    """A tensor's canonical name, from its name in a file.

    Trainers that save a model's state dict leave the name ``default`` in, and DoRA's magnitude is a weight
    then; PEFT loads such names, but not those with another adapter's.
    """
    name = canonical(key)
    if ".default" in name:
        name = _NAMED.sub(r"\1", name)
    return name.removesuffix(".weight") if name.endswith(f"{MAGNITUDE}.weight") else name


def owner(module: str) -> str:
    """The module that is wrapped: PEFT puts one wrapper around another for each parameter it targets."""
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return module


def family(module: str) -> str:
    """A module's name with ``*`` for layer numbers: ``layers.0.q_proj`` is ``layers.*.q_proj``."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module)


def families(said: Iterable[tuple[str, Any]], *, exact: bool = False) -> list[tuple[str, Any]]:
    """Join modules of which the same is said to families, ``layers.*.q_proj (32 modules)``, sorted.

    Where it is ``exact``, a module that is alone in its family has its own name, which a refusal must tell.
    """
    found: dict[tuple[str, Any], list[str]] = defaultdict(list)
    for name, what in said:
        found[family(name), what].append(name)
    return [
        (f"{name} ({len(own)} modules)" if len(own) > 1 else own[0] if exact else name, what)
        for (name, what), own in sorted(found.items())
    ]


@lru_cache(maxsize=32)
def wrapper_in(keys: tuple[str, ...]) -> str:
    """The wrapper of a trainer that names in a file still have, of which PEFT loads nothing; "" for none."""
    found = next((match for match in map(_WRAPPED.search, keys) if match), None)
    return next(filter(None, found.groups())) if found else ""


@lru_cache(maxsize=32)
def not_of_peft(keys: tuple[str, ...]) -> str:
    """The first tensor whose name PEFT does not find in its model; "" for none."""
    return next((key for key in keys if not _OF_PEFT.match(key)), "")


@lru_cache(maxsize=32)
def sort_names(keys: tuple[str, ...]) -> Names:
    """Sort the names of a file; modules in the order of their names."""
    found = Names({}, {}, [])
    modules: dict[str, dict[str, int]] = {}
    for place, key in enumerate(keys):
        name = in_file(key)
        module, _, end = name.rpartition(".lora_")
        part = _PARTS.get(f"lora_{end}") if module else None
        if part is None:
            found.others[key] = name
            continue
        parts = modules.setdefault(module, {})
        if part in parts:
            found.twice.append(key)
        parts[part] = place
    groups: dict[tuple[str, ...], list[str]] = {}
    for module, parts in sorted(modules.items()):
        groups.setdefault(tuple(parts), []).append(module)
    for own, alike in groups.items():
        columns = [tuple([modules[module][part] for module in alike]) for part in own]
        found.modules[own] = alike, columns
    return found
