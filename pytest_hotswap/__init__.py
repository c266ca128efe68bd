"""The pytest plugin of hotswap: a contract for deployments that swap LoRA adapters.

Each public name is loaded on first use: importing pytest_hotswap imports neither torch nor peft.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

pytest.register_assert_rewrite("pytest_hotswap.contract")  # an editable install does not do it

_HOME = {
    "HotswapContract": "pytest_hotswap.contract.contract",
    "PeftSubject": "pytest_hotswap.subjects.peft",
    "ReferenceSubject": "pytest_hotswap.subjects.reference",
    "Subject": "pytest_hotswap.subjects.base",
}

__all__ = ["HotswapContract", "PeftSubject", "ReferenceSubject", "Subject"]

if TYPE_CHECKING:
    from pytest_hotswap.contract.contract import HotswapContract
    from pytest_hotswap.subjects.base import Subject
    from pytest_hotswap.subjects.peft import PeftSubject
    from pytest_hotswap.subjects.reference import ReferenceSubject


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
