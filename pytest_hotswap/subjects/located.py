"""A class by its place: ``module:Class`` or ``path/file.py:Class``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest_hotswap.subjects.base import usage_error


def load_class(name: str, folder: Path) -> type[Any]:
    """Load the class at a place, a path relative to ``folder``; raises pytest.UsageError."""
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise usage_error(
            f"--hotswap-subject is {name!r}; write module:Class or path/file.py:Class"
        )
    try:
        module = _import_file(folder / where) if where.endswith(".py") else _import(where)
    except Exception as error:  # whatever the user's module raises
        raise usage_error(
            f"--hotswap-subject {name}: cannot import {where}: {type(error).__name__}: {error}"
        ) from error
    value: Any = module
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if not isinstance(value, type):
        found = "has no such name" if value is None else f"has {attribute} = {value!r}, not a class"
        raise usage_error(f"--hotswap-subject {name}: {where} {found}")
    return value


def names_in(file: Path) -> dict[str, Any]:
    """What stands in the module of a file, but what Python puts there."""
    found = vars(_import_file(file))
    return {name: value for name, value in found.items() if not name.startswith("__")}


def _import(name: str) -> ModuleType:
    importlib.invalidate_caches()
    folder = str(Path.cwd())  # as python -m does; pytest alone does not
    if folder not in sys.path and importlib.util.find_spec(name.partition(".")[0]) is None:
        sys.path.append(folder)
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    """Import a file under the name that pytest gives it, so that it is never there twice."""
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    if str(root) not in sys.path:
        sys.path.append(str(root))
    importlib.invalidate_caches()
    name = ".".join(parts)
    origin = _origin(name)
    if origin and Path(origin).resolve() == path:
        return importlib.import_module(name)
    # another module has this name
    unique = f"_hotswap_subject_{path.stem}_{zlib.crc32(bytes(path)):08x}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def _origin(name: str) -> str | None:
    """The file of a module, imported or not."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return None
    return spec.origin if spec else None
