"""A subject as Python: what a script that reproduces a failure begins with."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_hotswap.subjects.base import Subject
from pytest_hotswap.subjects.located import load_class, names_in


def beginning(error: str, imports: list[str], subject: Any) -> tuple[list[str], str]:
    """The first lines of a script, down to what the subject's class needs, and what builds the subject.

    What it was built with is written down where Python can write it; a class that is local to a function is
    repeated, with what it takes from that function.
    """
    cls = type(subject)
    arguments = _arguments(subject)
    if "<locals>" in cls.__qualname__:
        before, built = [*_repeated(cls)], f"{cls.__name__}({', '.join(arguments)})"
    else:
        where = f"{Path(inspect.getfile(cls)).resolve()}:{cls.__qualname__}"
        before, built = [], f"subject_at({', '.join([repr(where), *arguments])})"
    lines = [
        f"# {' '.join(error.split())}",
        *_paths(),
        "from pathlib import Path",
        *imports,
        f"from {__name__} import names_of, subject_at",
        "",
        *before,
    ]
    return lines, built


def subject_at(where: str, *args: Any, **given: Any) -> Subject:
    """Build the subject of a script: ``file.py:Class`` and its arguments."""
    subject: Subject = load_class(where, Path())(*args, **given)
    return subject


def names_of(file: str) -> dict[str, Any]:
    """What a class in a function of this file can name."""
    return names_in(Path(file))


def _arguments(subject: Any) -> list[str]:
    args, given = getattr(subject, "made_with", ((), {}))
    return [*map(_said, args), *(f"{name}={_said(value)}" for name, value in given.items())]


def _said(value: Any) -> str:
    """A value as Python can read it again; what it cannot is named, and has to be filled in."""
    if isinstance(value, Path):
        return f"Path({str(value)!r})"
    if isinstance(value, list | tuple):
        said = [_said(item) for item in value]
        text = f"{', '.join(said)}{',' if isinstance(value, tuple) and len(said) == 1 else ''}"
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_said(k)}: {_said(v)}' for k, v in value.items())}}}"
    if value is None or isinstance(value, str | int | float | bool):
        return repr(value)
    return f"...  # a {type(value).__name__}\n"


def _paths() -> Iterator[str]:
    """Let the script import what the project's own files import."""
    here = Path.cwd()
    own = [
        str(path)
        for path in map(Path, dict.fromkeys(sys.path))
        if path.is_absolute() and path.is_relative_to(here) and "site-packages" not in path.parts
    ]
    if own:
        yield from ("import sys", f"sys.path += {own!r}")


def _repeated(cls: type[Any]) -> Iterator[str]:
    """The source of a local class and of the local classes that it derives from."""
    local = [base for base in reversed(cls.__mro__) if "<locals>" in base.__qualname__]
    for base in local:
        yield f"globals().update(names_of({str(Path(inspect.getfile(base)).resolve())!r}))"
        for name, value in _free(base).items():
            yield f"{name} = {_said(value)}"
        yield textwrap.dedent(inspect.getsource(base))


def _free(cls: type[Any]) -> dict[str, Any]:
    """What the methods of a class take from the function around it, but classes."""
    found: dict[str, Any] = {}
    for value in vars(cls).values():
        if inspect.isfunction(value):
            cells = inspect.getclosurevars(value).nonlocals
            found |= {name: known for name, known in cells.items() if not isinstance(known, type)}
    return found
