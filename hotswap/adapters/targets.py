"""Which modules the config of an adapter names: PEFT loads the weights of these, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from hotswap.adapters.header import for_names
from hotswap.adapters.patterns import pattern_problem

ALL_LINEAR = "all-linear"
_OUTPUTS = ("lm_head", "embed_out")
_HEADS = (*_OUTPUTS, "score", "classifier")
"""Linear layers at the end of models, which all-linear does not mean in PEFT."""


def left_out(config: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """The modules that PEFT passes over when it loads the adapter; none where only the model can tell."""
    names = tuple(modules)
    targets = config.get("target_modules")
    if isinstance(targets, list | tuple) and not _narrowed(config):
        last = for_names(_last_parts, names)
        if last <= {*map(str, targets)}:
            return []  # as it is for most
    named = naming(config)
    return [name for name in names if not named(name)]


def naming(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """A function that tells of a module whether the config names it, as PEFT's check_target_module_exists."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    known = {*map(str, targets)} if isinstance(targets, list | tuple | set) else None
    chosen = None if known is None else _ends(known)
    without = _ends({*map(str, excluded)}) if isinstance(excluded, list | tuple) else None

    heads = _HEADS if config.get("task_type") == "SEQ_CLS" else _OUTPUTS

    def named(module: str) -> bool:
        module = module.partition(".base_layer")[
            0
        ]  # PEFT's own wrapper around an attention layer's output
        if without is not None and f".{module}".endswith(without):
            return False
        if isinstance(excluded, str) and excluded and re.fullmatch(excluded, module):
            return False
        if all_linear(config):
            return module.rpartition(".")[2] not in heads
        if isinstance(targets, str):
            return re.fullmatch(targets, module) is not None
        if known is not None and module in known:
            return True
        if chosen is not None and not f".{module}".endswith(chosen):
            return False
        return _in_layers(config, module)

    return named


def all_linear(config: Mapping[str, Any]) -> bool:
    """Whether the config names all linear layers at once, as PEFT does not save it but others do."""
    targets = config.get("target_modules")
    return isinstance(targets, str) and targets.lower() == ALL_LINEAR


def target_problem(config: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields that name modules: another type, or a pattern without bound."""
    for field in ("target_modules", "exclude_modules"):
        value = config.get(field)
        if isinstance(value, str):
            problem = pattern_problem(value, most=12, whole=True)
            if problem and value.lower() != ALL_LINEAR:
                return f"{field} {problem}"
        elif value is not None and not isinstance(value, list | tuple | set):
            return f"{field} is a {type(value).__name__}, expected a list of names or a pattern"
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    wrong = [
        i for i in (layers if isinstance(layers, list) else [layers or 0]) if type(i) is not int
    ]
    if wrong:
        return "layers_to_transform is not a list of layer numbers"
    if isinstance(config.get("target_modules"), str) and not layers is pattern is None:
        return "layers_to_transform and layers_pattern need target_modules to be a list"
    if pattern and layers is None:
        return "layers_pattern needs layers_to_transform"
    for each in [pattern] if isinstance(pattern, str) else pattern or ():
        if not isinstance(each, str) or pattern_problem(each):
            return "layers_pattern is not a name or a list of names"
    return None


def _narrowed(config: Mapping[str, Any]) -> bool:
    return bool(config.get("exclude_modules")) or config.get("layers_to_transform") not in (
        None,
        [],
    )


def _ends(names: set[str]) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names)


def _in_layers(config: Mapping[str, Any], module: str) -> bool:
    """Whether a module is in one of ``layers_to_transform``; the first number in its name counts."""
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None or layers == []:
        return True
    patterns = [pattern] if isinstance(pattern, str) and pattern else pattern
    starts = [rf"(?:^|.*?\.){each}\." for each in patterns or ()] or [r".*?\.[^.]*\."]
    found = (re.match(rf"{start}(?P<index>\d+)\.", module) for start in starts)
    match = next((each for each in found if each), None)
    wanted = [layers] if isinstance(layers, int) else layers
    return match is not None and int(match["index"]) in wanted


@lru_cache(maxsize=32)
def _last_parts(names: tuple[str, ...]) -> set[str]:
    return {name.partition(".base_layer")[0].rpartition(".")[2] for name in names}
