"""A small model, three adapters for it, and what each of them answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.served import NAMES, answers, base_model, prepared, write_named


@pytest.fixture(scope="module")
def base() -> Any:
    return base_model()


@pytest.fixture(scope="module")
def fleet(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fleet")
    return {
        name: write_named(folder, base, name, rank)
        for name, rank in zip(NAMES, (2, 3, 4), strict=True)
    }


@pytest.fixture(scope="module")
def expected(base: Any, fleet: dict[str, Path]) -> dict[str, torch.Tensor]:
    return answers(base, fleet)


@pytest.fixture
def model(base: Any, fleet: dict[str, Path]) -> Any:
    return prepared(base, fleet["one"])
