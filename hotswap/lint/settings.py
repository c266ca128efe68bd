"""``[tool.hotswap.lint]`` of the nearest pyproject.toml: which rules apply, and where."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec

from hotswap.errors import HotswapError
from hotswap.findings import chosen
from hotswap.lint.rules import RULES

FILE = "pyproject.toml"
_LISTS = ("select", "extend-select", "ignore", "exclude")


@dataclass(frozen=True)
class Settings:
    """Which rules apply to which files; codes are codes, prefixes of codes or names of rules."""

    select: Sequence[str] = ()
    extend_select: Sequence[str] = ()
    ignore: Sequence[str] = ()
    exclude: Sequence[str] = ()
    """Patterns in the language of .gitignore."""
    per_file_ignores: Mapping[str, Sequence[str]] = field(default_factory=dict)
    root: Path = Path()
    """The folder that the patterns are relative to."""

    @cached_property
    def codes(self) -> frozenset[str]:
        """The codes that apply; raises ``ValueError`` for one that does not exist."""
        usual = [rule.code for rule in RULES.values() if rule.default]
        wanted = [*(self.select or usual), *self.extend_select]
        return chosen(wanted, self.ignore) & RULES.keys()

    @cached_property
    def _per_file(self) -> list[tuple[GitIgnoreSpec, frozenset[str]]]:
        return [
            (GitIgnoreSpec.from_lines([pattern]), chosen(codes, ()))
            for pattern, codes in self.per_file_ignores.items()
        ]

    def codes_in(self, path: Path) -> frozenset[str]:
        """Return the codes that apply to a file."""
        inside = self._inside(path)
        left = [ignored for spec, ignored in self._per_file if spec.match_file(inside)]
        return self.codes.difference(*left)

    def leaves_out(self, path: Path) -> bool:
        """Tell whether a file is excluded."""
        return GitIgnoreSpec.from_lines(self.exclude).match_file(self._inside(path))

    def _inside(self, path: Path) -> str:
        here, root = path.absolute(), self.root.absolute()
        return here.relative_to(root).as_posix() if here.is_relative_to(root) else path.name


def read_settings(folder: Path) -> Settings:
    """Read the table from the folder or the nearest one above; raises HotswapError when it is wrong."""
    files = (place / FILE for place in (folder, *folder.absolute().parents))
    file = next((file for file in files if file.is_file()), None)
    return _settings(file) if file else Settings()


def _settings(file: Path) -> Settings:
    try:
        tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError) as error:
        raise HotswapError(f"{file}: cannot be read: {error}") from error
    table: Any = tool.get("hotswap", {})
    table = table.get("lint", {}) if isinstance(table, dict) else {}
    known = {*_LISTS, "per-file-ignores"}
    strange = sorted(table.keys() - known) if isinstance(table, dict) else None
    if strange is None or strange:
        found = f"has {', '.join(strange)}" if strange else "is no table"
        expected = ", ".join(sorted(known))
        raise HotswapError(f"{file}: [tool.hotswap.lint] {found}; it takes {expected}")
    lists = {key: table.get(key, []) for key in _LISTS}
    per_file = table.get("per-file-ignores", {})
    if not isinstance(per_file, dict):
        raise HotswapError(f"{file}: per-file-ignores is {str(per_file)[:40]!r}, expected a table")
    for key, value in {**lists, **per_file}.items():
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise HotswapError(f"{file}: {key} is {str(value)[:40]!r}, expected a list of texts")
    words = {key.replace("-", "_"): value for key, value in lists.items()}
    return Settings(**words, per_file_ignores=per_file, root=file.parent)
