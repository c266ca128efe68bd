"""``[tool.hotswap]`` of the nearest pyproject.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotswap.errors import HotswapError

FILE = "pyproject.toml"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a project settles for ``hotswap check``; ``plan`` is found from the folder of the file."""

    plan: Path | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


def read_settings(folder: Path) -> Settings:
    """Read the table from the folder or the nearest one above; raises HotswapError when it is wrong."""
    for place in (folder, *folder.parents):
        file = place / FILE
        if file.is_file():
            return _settings(file)
    return Settings()


def _settings(file: Path) -> Settings:
    try:
        tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError) as error:
        raise HotswapError(f"{file}: cannot be read: {error}") from error
    table: Any = tool.get("hotswap", {})
    if not isinstance(table, dict) or not table.keys() <= {"plan", "select", "ignore"}:
        strange = (
            sorted(table.keys() - {"plan", "select", "ignore"}) if isinstance(table, dict) else []
        )
        found = f"has {', '.join(strange)}" if strange else "is no table"
        raise HotswapError(f"{file}: [tool.hotswap] {found}; it takes plan, select and ignore")
    plan = table.get("plan")
    if plan is not None and not isinstance(plan, str):
        raise HotswapError(f"{file}: plan is {str(plan)[:40]!r}, expected the path of a plan")
    return Settings(
        file.parent / plan if plan else None,
        _codes(file, table, "select"),
        _codes(file, table, "ignore"),
    )


def _codes(file: Path, table: dict[str, Any], key: str) -> tuple[str, ...]:
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(code, str) for code in found):
        raise HotswapError(f"{file}: {key} is {str(found)[:40]!r}, expected a list of codes")
    return tuple(found)
