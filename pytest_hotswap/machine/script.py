"""The script that reproduces what a state machine has found."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytest_hotswap.subjects.base import Subject
from pytest_hotswap.subjects.located import load_class


def script(kind: type[Any], subject: Subject, lines: Iterable[str], error: BaseException) -> str:
    """Write the Python script that takes the same steps and sees the same law fail."""
    cls = type(subject)
    where = f"{Path(inspect.getfile(cls)).resolve()}:{cls.__qualname__}"
    arguments = "".join(
        f", {name}={value!r}" for name, value in getattr(subject, "given", {}).items()
    )
    return "\n".join(
        [
            f"# {' '.join(str(error).split())}",
            "from pytest_hotswap.adapters.described import AdapterDescription",
            "from pytest_hotswap.machine.script import subject_at",
            f"from {kind.__module__} import {kind.__name__}",
            "",
            f"steps = {kind.__name__}(subject_at({where!r}{arguments}))",
            *(f"steps.{line}" for line in lines),
            "",
        ]
    )


def subject_at(where: str, **given: Any) -> Subject:
    """Build the subject of a script: ``file.py:Class`` and its arguments."""
    subject: Subject = load_class(where, Path())(**given)
    return subject
