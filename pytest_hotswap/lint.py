"""``pytest --hotswap-lint``: one item for each file with source code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hotswap.findings import Finding
from hotswap.lint.check import check_bytes
from hotswap.lint.files import SUFFIXES, find
from hotswap.lint.settings import Settings, read_settings
from hotswap.report.findings import render

NAME = "hotswap-lint"
_SETTINGS = pytest.StashKey[Settings]()


class LintError(Exception):
    """A file misuses hot-swapping; ``findings`` says where and how."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        super().__init__(render(findings, "text"))


class LintItem(pytest.Item):
    """The check of one file."""

    def runtest(self) -> None:
        """Fail if the linter finds anything."""
        here = Path.cwd()
        inside = self.path.is_relative_to(here)
        path = self.path.relative_to(here) if inside else self.path
        settings = _settings(self.config)
        findings = check_bytes(path.read_bytes(), path, settings=settings)
        if any(finding.severity == "error" for finding in findings):
            raise LintError(findings)
        if findings:
            pytest.skip(f"not analysed: {findings[0].message}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """Show the findings instead of a traceback."""
        if isinstance(excinfo.value, LintError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name the item after its file."""
        return self.path, None, NAME


class LintFile(pytest.File):
    """A file with source code."""

    def collect(self) -> Iterator[LintItem]:
        """Yield the one item."""
        yield LintItem.from_parent(self, name=NAME)


def collect_file(path: Path, parent: pytest.Collector) -> LintFile | None:
    """Return a collector for a file that pytest visits, if the linter reads such files."""
    read = path.suffix in SUFFIXES and not _settings(parent.config).leaves_out(path)
    return LintFile.from_parent(parent, path=path) if read else None


def add_items(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add, in place, the items of the files below ``hotswap_lint_paths`` that pytest did not visit."""
    visited = {item.path for item in items if isinstance(item, LintItem)}
    settings = _settings(session.config)
    for path in find(_folders(session.config), settings.exclude, settings.root):
        if path not in visited:
            items += LintFile.from_parent(session, path=path).collect()


def header(config: pytest.Config) -> str:
    """Say how many files will be linted, and below which roots."""
    arguments = [Path(arg.split("::")[0]) for arg in config.args]
    base = config.invocation_params.dir
    roots = [path if path.is_absolute() else base / path for path in arguments]
    roots += _folders(config)
    files = {path.resolve() for path in find(p for p in roots if p.exists())}
    count = sum(path.suffix in SUFFIXES for path in files)
    names = ", ".join(_short(roots, config.rootpath))
    return f"{NAME}: {count} file{'' if count == 1 else 's'} in {names}"


def _settings(config: pytest.Config) -> Settings:
    """Return what pyproject.toml says, read once."""
    if _SETTINGS not in config.stash:
        config.stash[_SETTINGS] = read_settings(config.rootpath)
    return config.stash[_SETTINGS]


def _folders(config: pytest.Config) -> list[Path]:
    return [config.rootpath / name for name in config.getini("hotswap_lint_paths")]


def _short(roots: Iterable[Path], base: Path) -> Iterator[str]:
    for root in dict.fromkeys(roots):
        yield str(root.relative_to(base)) if root.is_relative_to(base) else str(root)
