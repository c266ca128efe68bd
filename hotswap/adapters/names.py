"""The names of an adapter's tensors: the module that each belongs to, and what it is there."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

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
    if "_orig_mod" in key:  # most have none
        key = ".".join(part for part in key.split(".") if part != "_orig_mod")
    return key.removeprefix("base_model.model.")


def family(module: str) -> str:
    """A module's name with ``*`` for layer numbers: ``layers.0.q_proj`` is ``layers.*.q_proj``."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module)


@lru_cache(maxsize=32)
def sort_names(keys: tuple[str, ...]) -> Names:
    """Sort the names of a file; modules in the order of their names."""
    found = Names({}, {}, [])
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
