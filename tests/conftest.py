"""Let tests run pytest inside pytest, and share the exported models, which take long to compile."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.packages import Packages

pytest_plugins = ["pytester", "tests.support.forks"]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Exported models in every variant, which the workers of one run share."""
    from tests.support.packages import Packages

    own = tmp_path_factory.getbasetemp()
    return Packages((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "packages")


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Let threads take turns a hundred times as often as they do."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 100)
    yield
    sys.setswitchinterval(interval)
