"""Let tests run pytest inside pytest, and share the exported models, which take long to compile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.packages import Packages

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Exported models in every variant."""
    from tests.support.packages import Packages

    return Packages(tmp_path_factory.mktemp("packages"))
