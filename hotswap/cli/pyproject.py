"""``[tool.hotswap]`` of the nearest pyproject.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotswap.errors import HotswapError

FILE = "pyproject.toml"
KEYS: dict[str, tuple[Any, str]] = {
    "plan": (str, "the path of a plan"),
    **dict.fromkeys(("select", "ignore"), (list, "a list of codes")),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a project settles for ``hotswap check``; ``plan`` is found from the folder of the file."""

    plan: Path | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


def read_settings(folder: Path) -> Settings:
    """Read the table from the folder or the nearest one above; raises HotswapError when it is wrong."""
    files = (place / FILE for place in (folder, *folder.parents))
    file = next((file for file in files if file.is_file()), None)
    return _settings(file) if file else Settings()


def _settings(file: Path) -> Settings:
    try:
        tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError) as error:
        raise HotswapError(f"{file}: cannot be read: {error}") from error
    table: Any = tool.get("hotswap", {})
    if isinstance(table, dict):
        table.pop("lint", None)  # which is the linter's
    strange = sorted(table.keys() - KEYS.keys()) if isinstance(table, dict) else None
    if strange is None or strange:
        found = f"has {', '.join(strange)}" if strange else "is no table"
        raise HotswapError(f"{file}: [tool.hotswap] {found}; it takes plan, select and ignore")
    for key, value in table.items():
        kind, expected = KEYS[key]
        if not isinstance(value, kind) or not all(isinstance(code, str) for code in value):
            raise HotswapError(f"{file}: {key} is {str(value)[:40]!r}, expected {expected}")
    return Settings(
        file.parent / table["plan"] if table.get("plan") else None,
        tuple(table.get("select", ())),
        tuple(table.get("ignore", ())),
    )
