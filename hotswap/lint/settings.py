"""``[tool.hotswap.lint]`` of the nearest pyproject.toml: which rules apply, and where."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pathspec import GitIgnoreSpec

from hotswap.findings import chosen
from hotswap.lint.rules import RULES
from hotswap.pyproject import read_table

_KINDS: dict[str, type] = {
    **dict.fromkeys(("select", "extend-select", "ignore", "exclude"), list),
    "per-file-ignores": dict,
}


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
        here, root = (Path(os.path.abspath(each)) for each in (path, self.root))
        return here.relative_to(root).as_posix() if here.is_relative_to(root) else path.name


def read_settings(folder: Path) -> Settings:
    """Read the table from the folder or the nearest one above; raises HotswapError when it is wrong."""
    found = read_table(folder, "hotswap.lint", _KINDS)
    if found is None:
        return Settings()
    file, table = found
    words = {key.replace("-", "_"): value for key, value in table.items()}
    return Settings(**words, root=file.parent)
