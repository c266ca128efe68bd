"""What a law compiled and how long its swaps took, as properties of its test."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hotswap
from pytest_hotswap.reporting import PREFIX

MOST_SAMPLES = 200
"""Swap times kept of one adapter in one test: a random walk makes hundreds."""


class Notes:
    """What one process notes while it judges laws."""

    def __init__(self) -> None:
        self._times: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def taken(self, item: Any, phase: str) -> Iterator[None]:
        """Note what is compiled and swapped in a scope of a test."""
        self._times.clear()
        with hotswap.watch_compiles() as log:
            try:
                yield
            finally:
                deployment = getattr(item, "funcargs", {}).get("deployment")
                unprepared = getattr(deployment, "__dict__", {}).get("unprepared_recompiles", {})
                provoked = {text for texts in unprepared.values() for text in texts}
                kinds = {"first": log.first_compiles, "recompile": log.recompiles}
                compiles = [
                    {
                        "kind": kind,
                        "region": found.region,
                        "sentence": found.sentence,
                        "cause": found.cause,
                        "seconds": round(found.seconds, 4),
                        "provoked": str(found) in provoked,
                    }
                    for kind, many in {**kinds, "failed": log.failed}.items()
                    for found in many
                ]
                note(item, f"compiles_in_{phase}", compiles)
                note(item, "swap_times", {name: ts for name, ts in self._times.items() if ts})

    def timed(self, swap: Callable[..., None]) -> Callable[..., None]:
        """The same swap, whose time is noted."""

        def timed(model: Any, adapter: Path | None) -> None:
            start = time.perf_counter()
            swap(model, adapter)
            seconds = time.perf_counter() - start
            times = self._times[adapter.name if adapter else ""]
            if adapter is not None and len(times) < MOST_SAMPLES:
                times.append(round(seconds, 7))

        return timed


def note(item: Any, key: str, value: Any) -> None:
    """Let a test have a property, if there is anything to be said."""
    if value:
        item.user_properties.append((f"{PREFIX}{key}", json.dumps(value)))
