"""Applications as others write them: each right, and with one mistake; what is wrong stands on the line.

A page is a text with ``#@program NAME``, ``#@file PATH`` and ``#@cell`` between its parts. A line that
ends with ``#@ok`` stands in the right one only, with ``#@bad`` in the wrong one; codes after ``#@bad`` or
``#@want`` say what has to be found there in the wrong one (``A|B``: either), after ``may`` what can be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hotswap.lint.check import check_source

APPLICATIONS = Path(__file__).parents[1] / "samples" / "applications"
STRANGERS = Path(__file__).parents[1] / "samples" / "strangers"
"""Pages of programs that stand alone: each is right or wrong as it is."""
_MARK = re.compile(r"\s*#@(?P<where>ok|bad|want)\b(?P<codes>.*)$")
Place = tuple[str, int]


@dataclass(slots=True)
class Application:
    """One application: its files, and what has to be and can be found at which place of them."""

    name: str
    files: dict[str, list[str]] = field(default_factory=dict)
    wanted: dict[Place, frozenset[str]] = field(default_factory=dict)
    allowed: dict[Place, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """What was found of what was wanted, and what else."""

    hits: int
    missed: list[str]
    extra: list[str]

    @property
    def recall(self) -> float:
        """The share of the mistakes that were found."""
        return self.hits / (self.hits + len(self.missed))

    @property
    def precision(self) -> float:
        """The share of the findings that are mistakes."""
        return self.hits / (self.hits + len(self.extra))


def applications(page: Path) -> Iterator[Application]:
    """Yield each application of a page, right and then wrong, or as it is."""
    for part in page.read_text(encoding="utf-8").split("#@program ")[1:]:
        name, body = part.split("\n", 1)
        if page.parent != STRANGERS:
            yield _variant(f"{name.strip()} right", body, "ok")
        yield _variant(f"{name.strip()} wrong", body, "bad")


def _variant(name: str, body: str, kind: str) -> Application:
    made, path = Application(name), "main.py"
    for line in body.splitlines():
        if line.startswith("#@file "):
            path = line.removeprefix("#@file ").strip()
            made.files[path] = []
            continue
        mark = _MARK.search(line)
        if mark and mark["where"] in {"ok", "bad"} - {kind}:
            continue
        made.files.setdefault(path, []).append(line[: mark.start()] if mark else line)
        codes = frozenset(re.findall(r"HSW\d+", mark["codes"])) if mark else frozenset()
        if mark and codes and kind == "bad":
            place = path, len(made.files[path])
            (made.allowed if "may" in mark["codes"] else made.wanted)[place] = codes
    return made


def findings(made: Application, folder: Path) -> set[tuple[str, int, str]]:
    """Write an application to a folder and return path, line and code of what is found."""
    for name, lines in made.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_notebook(lines) if path.suffix == ".ipynb" else "\n".join([*lines, ""]))
    return {(*_place(made, f.where, f.line or 0, folder), f.code) for f in check_source(folder)}


def _place(made: Application, where: str, line: int, folder: Path) -> Place:
    """Return the place on the page; the lines of a notebook count from the cell's."""
    path, _, cell = where.partition("::cell ")
    name = Path(path).relative_to(folder).as_posix()
    marks = [n for n, text in enumerate(made.files.get(name, []), 1) if text == "#@cell"]
    return name, line + ([0, *marks][int(cell) - 1] if cell else 0)


def _notebook(lines: list[str]) -> str:
    cells = "".join(f"{line}\n" for line in lines).split("#@cell\n")
    told = [{"cell_type": "code", "source": source, "outputs": []} for source in cells]
    return json.dumps({"cells": told, "nbformat": 4, "nbformat_minor": 5})


def score(page: Path, folder: Path) -> Score:
    """Look for the mistakes of every application of a page."""
    hits, missed, extra = 0, list[str](), list[str]()
    for number, made in enumerate(applications(page)):
        got = findings(made, folder / str(number))
        for place, codes in made.wanted.items():
            found = any((*place, code) in got for code in codes)
            hits += found
            missed += [] if found else [f"{made.name}: {place} {sorted(codes)}"]
        for path, line, code in sorted(got):
            known = (codes.get((path, line), ()) for codes in (made.wanted, made.allowed))
            if not any(code in codes for codes in known):
                extra.append(f"{made.name}: {path}:{line} {code}")
    return Score(hits, missed, extra)
