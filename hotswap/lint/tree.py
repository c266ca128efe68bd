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

MOST_BYTES = 64_000
"""Of a module that is followed: those of applications are smaller, those of libraries larger."""
LIBRARIES = frozenset({"diffusers", "peft", "torch", "transformers"})
"""Packages that define what is swapped: among their own files nothing is followed."""
_TAKES_STEPS = re.compile(
    rb"\.(?:load_lora|load_adapter|add_adapter|set_adapter|compile)\w*\(|PeftModel\w*[.(]"
    rb"|(?<!def )(?:get_peft_model|inject_adapter_in_model)\("
)
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
        self._words: dict[Path, Words] = {}

    def resolve(self, importer: Path, level: int, module: str) -> Path | None:
        """Return the file of a module, as a module imports it; None if it is not among the files."""
        if not level and module.partition(".")[0] not in self._tops:
            return None
        folder = os.path.dirname(os.path.abspath(importer))
        for _ in range(level - 1):
            folder = os.path.dirname(folder)
        inside = module.replace(".", os.sep)
        while True:
            base = os.path.join(folder, inside) if inside else folder
            for name in (f"{base}.py", os.path.join(base, "__init__.py")):
                found = self._files.get(name)
                if found is not None and found != importer:
                    return found if len(self.data(found)) <= MOST_BYTES else None
            above = os.path.dirname(folder)
            if level or above == folder:
                return None
            folder = above

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

    def chunk(self, path: Path) -> Chunk | None:
        """Return the program in a file, parsed once; None if it is no Python."""
        if path not in self._chunks:
            chunks, _ = parse(self.data(path), path)
            self._chunks[path] = chunks[0] if chunks else None
        return self._chunks[path]

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
        known = self._files.get(os.path.abspath(path)) and mentions(data)
        return bool(known and _TAKES_STEPS.search(data)) and suffices(self.words(path))

    def words(self, path: Path) -> Words:
        """Return what a file and the modules that it imports mention, also through a package."""
        if path not in self._words:
            found = self._words[path] = self._own(path)
            for other in set(self._imported(path)):
                found |= self.words(other) if other.name == "__init__.py" else self._own(other)
            self._words[path] = found
        return self._words[path]

    def mentions(self, path: Path) -> bool:
        """Tell whether a file, or a package that hands on names, mentions what rules are about."""
        return bool(self.words(path) if path.name == "__init__.py" else self._own(path))

    @functools.cache  # noqa: B019  a tree lives as long as it is linted
    def _own(self, path: Path) -> Words:
        return mentions(self.data(path))

    def _imported(self, path: Path) -> Iterator[Path]:
        """Yield the files that a file imports, as far as its lines say."""
        for match in _FROM.finditer(self.data(path)):
            names = (match["names"] or match["modules"]).decode(errors="replace").strip("()\n ")
            words = [each.split()[0] for each in names.split(",") if each.split()]
            if match["names"]:
                module = match["module"].decode(errors="replace")
                words = [module, *(f"{module}.{word}".lstrip(".") for word in words)]
            for word in words:
                found = self.resolve(path, len(match["dots"] or b""), word)
                if found is not None:
                    yield found
