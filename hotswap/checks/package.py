"""check_package: can the adapters of an exported model be swapped, from its file alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hotswap.adapters.plan import SwapPlan
from hotswap.checks.adapters import check_adapters
from hotswap.compiler.packages import PackageFile
from hotswap.engine.manifest import Manifest
from hotswap.errors import PackageError
from hotswap.findings import Finding


def check_package(
    path: str | Path, adapters: str | Path | Iterable[str | Path] = ()
) -> list[Finding]:
    """Return what keeps the adapters of a package from being swapped, and which of these do not fit.

    Without a finding ``Package(path)`` takes the package, and its ``swap`` every one of the adapters. The
    file is read; none of its code is loaded or run.
    """
    room, findings = read_room(path)
    given = [adapters] if isinstance(adapters, str | Path) else adapters
    for adapter in given if room is not None else ():
        findings += check_adapters(adapter, plan=room)
    return findings


def read_room(path: str | Path) -> tuple[SwapPlan | None, list[Finding]]:
    """What fits into a package, if that can be read, and what keeps its adapters from being swapped."""
    try:
        manifest, findings = Manifest.judge(PackageFile.read(path))
    except PackageError as error:
        return None, list(error.findings)
    return (None if manifest is None else manifest.plan), findings
