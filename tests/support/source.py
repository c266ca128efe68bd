"""The source of a package: its modules."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType


def modules(package: ModuleType) -> dict[str, Path]:
    """The file of each module of a package, the package itself included."""
    (folder,) = map(Path, package.__path__)
    found = {}
    for file in sorted(folder.rglob("*.py")):
        parts = [package.__name__, *file.relative_to(folder).with_suffix("").parts]
        found[".".join(part for part in parts if part != "__init__")] = file
    return found
