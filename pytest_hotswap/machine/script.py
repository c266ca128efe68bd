"""The script that reproduces what a state machine has found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_hotswap.subjects.base import Subject
from pytest_hotswap.subjects.written import beginning


def script(kind: type[Any], subject: Subject, lines: Iterable[str], error: BaseException) -> str:
    """Write the Python script that takes the same steps and sees the same law fail."""
    imports = [
        "from pytest_hotswap.adapters.described import AdapterDescription",
        f"from {kind.__module__} import {kind.__name__}",
    ]
    first, built = beginning(str(error), imports, subject)
    steps = [f"steps = {kind.__name__}({built})", *(f"steps.{line}" for line in lines)]
    return "\n".join([*first, *steps, ""])
