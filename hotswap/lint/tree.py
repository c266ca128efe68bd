"""The files that are linted together: which modules of theirs a module imports."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hotswap.lint.chunk import Chunk
from hotswap.lint.files import Words, mentions, parse, suffices
from hotswap.lint.relevance import Relevance

MOST_BYTES = 64_000
"""Of a module that is followed: those of applications are smaller, those of libraries larger."""
SMALL = 3_000
_IMPORTS_MORE = re.compile(
    rb"^[ \t]*(?:from|import) (?!__future__|collections|dataclasses|enum|os\b|pathlib|typing)",
    re.MULTILINE,
)
DEEPEST = 2
"""How far imports of imports are looked at for what a file may be about."""
LIBRARIES = frozenset({"diffusers", "peft", "torch", "transformers"})
"""Packages that define what is swapped: among their own files nothing is followed."""
TESTS = re.compile(r"^test_.*\.py$|_test\.py$|^conftest\.py$")
_FROM = re.compile(
    rb"^[ \t]*from[ \t]+(?P<dots>\.*)(?P<module>[\w.]*)[ \t]+import[ \t]*(?P<names>\([^)]*\)|[^\n#]+)"
    rb"|^[ \t]*import[ \t]+(?P<modules>[\w., \t]+)",
    re.MULTILINE,
)


class Tree:
    """Finds the modules that are imported among the files that are linted."""

    def __init__(self, files: Iterable[Path]) -> None:
        modules = ((os.path.abspath(path), path) for path in files if path.suffix == ".py")
        self._files = {name: path for name, path in modules if LIBRARIES.isdisjoint(path.parts)}
        self._tops = {
            name for path in self._files for name in path.removesuffix(".py").split(os.sep)
        }
        self._data: dict[Path, bytes] = {}
        self._chunks: dict[Path, Chunk | None] = {}
        self.relevance: dict[Path, Relevance] = {}
        """Module → what of it matters, once it was imported."""
        self._words: dict[tuple[Path, int], Words] = {}

    @functools.cache  # noqa: B019  a tree lives as long as it is linted
    def resolve(self, importer: Path, level: int, module: str) -> Path | None:
        """Return the file of a module, as a module imports it; None if it is not among the files."""
        if not level and module.partition(".")[0] not in self._tops:
            return None
        folder = os.path.dirname(os.path.abspath(importer))
        for _ in range(level - 1):
            folder = os.path.dirname(folder)
        found = self._find(folder, module, not level)
        if found == importer:
            found = None if level else self._find(os.path.dirname(folder), module, True)
        return found if found and len(self.data(found)) <= MOST_BYTES else None

    @functools.cache  # noqa: B019  a tree lives as long as it is linted
    def _find(self, folder: str, module: str, climbs: bool) -> Path | None:
        """Return the file of a module in a folder, or in the nearest above it."""
        base = f"{folder}{os.sep}{module.replace('.', os.sep)}".rstrip(os.sep)
        found = self._files.get(f"{base}.py") or self._files.get(f"{base}{os.sep}__init__.py")
        above = os.path.dirname(folder)
        if found is not None or not climbs or above == folder:
            return found
        return self._find(above, module, climbs)

    def imports(
        self, importer: Path, node: ast.Import | ast.ImportFrom
    ) -> Iterator[tuple[str, Path, str]]:
        """Yield what an import binds: the name, the file, and what of it (empty for the module itself)."""
        for alias in node.names:
            bound = alias.asname or alias.name
            if isinstance(node, ast.Import):
                found = self.resolve(importer, 0, alias.name)
                yield from [(bound, found, "")] if found else []
                continue
            base = node.module or ""
            inner = self.resolve(importer, node.level, f"{base}.{alias.name}".lstrip("."))
            outer = self.resolve(importer, node.level, base)
            if inner is not None:
                yield bound, inner, ""
            elif outer is not None:
                yield bound, outer, alias.name

    def conftests(self, path: Path) -> Iterator[Path]:
        """Yield the files from which a file of tests has fixtures, the nearest first."""
        found: Path | None = path if TESTS.search(path.name) else None
        while found is not None:
            found = self.resolve(found, 0, "conftest")
            if found is not None:
                yield found

    def chunk(self, path: Path) -> Chunk | None:
        """Return the program in a file, parsed once; None if it is no Python."""
        if path not in self._chunks:
            chunks, _ = parse(self.data(path), path)
            self._chunks[path] = chunks[0] if chunks else None
        return self._chunks[path]

    def imported(self, path: Path) -> bool:
        """Tell whether another file has imported this one."""
        return path in self._chunks

    def data(self, path: Path) -> bytes:
        """Return the bytes of a file, read once; those that cannot be read are empty."""
        if path not in self._data:
            try:
                self._data[path] = path.read_bytes()
            except OSError:
                self._data[path] = b""
        return self._data[path]

    def concerns(self, path: Path, data: bytes) -> bool:
        """Tell whether a file, with what it imports, mentions anything that a rule could be about."""
        return os.path.abspath(path) in self._files and suffices(self.words(path))

    def words(self, path: Path, depth: int = DEEPEST) -> Words:
        """Return what a file and the modules that it imports mention; through a package goes no deeper."""
        if (path, depth) not in self._words:
            found = self._words[path, depth] = self._own(path)
            for other in self._imported(path) if depth else ():
                package = other.name == "__init__.py"
                found |= self.words(other, depth if package else depth - 1)
            self._words[path, depth] = found
        return self._words[path, depth]

    def mentions(self, path: Path) -> bool:
        """Tell whether a file, or a package that hands on names, mentions what rules are about."""
        return bool(self.words(path) if path.name == "__init__.py" else self._own(path))

    def small(self, path: Path) -> bool:
        """Tell whether a file is small and imports little, as those do that only hold settings and names."""
        data = self.data(path)
        return 0 < len(data) <= SMALL and not _IMPORTS_MORE.search(data)

    @functools.cache  # noqa: B019  a tree lives as long as it is linted
    def _own(self, path: Path) -> Words:
        return mentions(self.data(path))

    @functools.cache  # noqa: B019
    def _imported(self, path: Path) -> set[Path]:
        """Return the files that a file imports, as far as its lines say, and those with its fixtures."""
        imported = set(self.conftests(path))
        for match in _FROM.finditer(self.data(path)):
            names = (match["names"] or match["modules"]).decode(errors="replace").strip("()\n ")
            words = [each.split()[0] for each in names.split(",") if each.split()]
            if match["names"]:
                module = match["module"].decode(errors="replace")
                words = [module, *(f"{module}.{word}".lstrip(".") for word in words)]
            level = len(match["dots"] or b"")
            imported |= {found for word in words if (found := self.resolve(path, level, word))}
        return imported
