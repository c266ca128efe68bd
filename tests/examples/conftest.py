"""The fleet that the examples serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotswap.cli.verify.demo import write_demo


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "fleet"
    write_demo(folder, layers=1)
    return folder
