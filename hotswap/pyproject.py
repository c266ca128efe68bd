"""Tables of the nearest pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotswap.errors import HotswapError

FILE = "pyproject.toml"


def read_table(
    folder: Path, name: str, kinds: Mapping[str, type]
) -> tuple[Path, dict[str, Any]] | None:
    """Read ``[tool.NAME]`` from a folder or the nearest one above, with the file; None without a file.

    ``kinds`` says for each key what stands there: ``str`` a text, ``list`` a list of texts, ``dict`` a
    table of such lists, ``object`` what somebody else reads. Raises HotswapError for anything else.
    """
    files = (place / FILE for place in (folder, *folder.absolute().parents))
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    try:
        table: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HotswapError(f"{file}: cannot be read: {error}") from error
    for key in ("tool", *name.split(".")):
        table = table.get(key, {}) if isinstance(table, dict) else {}
    strange = sorted(table.keys() - kinds.keys()) if isinstance(table, dict) else None
    if strange is None or strange:
        found = f"has {', '.join(strange)}" if strange else "is no table"
        expected = ", ".join(sorted(key for key in kinds if kinds[key] is not object))
        raise HotswapError(f"{file}: [tool.{name}] {found}; it takes {expected}")
    for key, value in table.items():
        _require(file, key, value, kinds[key])
    return file, table


def _require(file: Path, key: str, value: Any, kind: type) -> None:
    words: dict[type, str] = {str: "a text", list: "a list of texts", dict: "a table"}
    strange = not isinstance(value, kind)
    if isinstance(value, list):
        strange |= not all(isinstance(word, str) for word in value)
    if strange:
        raise HotswapError(f"{file}: {key} is {str(value)[:40]!r}, expected {words[kind]}")
    if kind is dict:
        for inner, each in value.items():
            _require(file, inner, each, list)
