"""Patterns of adapter_config.json: regular expressions that strangers wrote, matched in bounded time."""

from __future__ import annotations

import math
import re
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

MOST_REPEATS = 3
"""Open repeats of one pattern; each multiplies the time of a match by the length of the name."""
MOST_STEPS = 2_000_000_000
"""Steps that the patterns of one adapter may take; some three seconds."""
_KEPT = 1 << 14
"""Patterns that are kept compiled."""
_REPEATS = {str(name) for name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")}
_TAIL = re.compile(r"(?<!\\)(?:\\.)?([A-Za-z0-9_]*)\Z")


def matches(key: str, module: str) -> bool:
    """Tell whether a key of rank_pattern or alpha_pattern means a module, as PEFT's get_pattern_key does."""
    return module.endswith(_tail(key)) and _compiled(key).match(module) is not None


def pattern_problem(key: str, most: int = MOST_REPEATS, *, whole: bool = False) -> str | None:
    """What is wrong with a key: no regular expression, or one that can take exponential time.

    A ``whole`` one is matched as it is, as PEFT does with target_modules; keys by the end of names.
    """
    try:
        depths = _depths(key)
        re.compile(key if whole else rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression: {str(error) or type(error).__name__}"
    if max(depths, default=0) > 1 or len(depths) > most + 1:
        return (
            f"has nested repeats or more than {most}, expected a module's name or a pattern "
            "that can be matched quickly"
        )
    return None


def steps(keys: Iterable[str], modules: Iterable[str]) -> int:
    """The most steps that matching keys takes: of several repeats each may end anywhere.

    A comparison counts as a hundred, and as much more where there are too many patterns to be kept.
    """
    keys, lengths = [*keys], [len(name) for name in modules]
    open_end = sum(not _tail(key) for key in keys)
    each = 100 if open_end <= _KEPT else 100_000
    repeats = [n for n in map(_open_repeats, keys) if n > 2]
    found: int = sum(length**n // math.factorial(n) for n in repeats for length in lengths)
    return found + each * len(keys) * len(lengths)


@lru_cache(maxsize=_KEPT)
def _open_repeats(key: str) -> int:
    return len(_depths(key))


def _depths(key: str) -> list[int]:
    return [*_repeats(parser.parse(rf"(.*\.)?({key})$"), 0)]


@lru_cache(maxsize=1 << 17)
def _tail(key: str) -> str:
    """The literal end that a match must have, which is quicker to compare than the whole pattern."""
    found = None if "|" in key or "(?" in key else _TAIL.search(key)
    return found[1] if found else ""


@lru_cache(maxsize=_KEPT)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def _repeats(tree: Any, depth: int) -> Iterator[int]:
    """The depth of each repeat; an alternative inside of one counts as one more."""
    for operator, argument in tree:
        name, inner = str(operator), depth
        if name in _REPEATS and argument[1] > 1:
            inner = depth + 1
            yield inner
        elif name == "BRANCH" and depth:
            yield depth + 1
        for part in _parts(name, argument):
            yield from _repeats(part, inner)


def _parts(name: str, argument: Any) -> list[Any]:
    if name in _REPEATS:
        return [argument[2]]
    if name == "BRANCH":
        return list(argument[1])
    parts = argument if isinstance(argument, tuple) else (argument,)
    return [part for part in parts if isinstance(part, parser.SubPattern)]
