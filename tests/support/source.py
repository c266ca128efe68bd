"""The source of a package: its modules, what each imports, and the circles that these imports form."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
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


def imports(module: str, source: str, known: Collection[str]) -> set[str]:
    """The known modules that a source imports, at any depth of its code, for types only too."""
    is_package = any(name.startswith(f"{module}.") for name in known)
    package = module if is_package else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in known else base for name in inside}
    return found & set(known) - {module}


def circles(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Each circle of imports as the modules along it; one that is found is opened to find the next."""
    left, found = {module: set(imported) for module, imported in graph.items()}, []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            circle: list[str] = error.args[1][::-1]  # each imports the next
            found.append(" → ".join(circle))
            left[circle[0]].discard(circle[1])
        else:
            return found
