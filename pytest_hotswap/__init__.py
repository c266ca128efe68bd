"""The pytest plugin of hotswap: a contract for deployments that swap LoRA adapters.

Each public name is loaded on first use: importing pytest_hotswap imports neither torch nor peft.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.modules.get("pytest"):  # a script that reproduces a failure runs without it
    import pytest

    pytest.register_assert_rewrite("pytest_hotswap.contract")  # an editable install does not do it

_HOME = {
    "DiffusersSubject": "pytest_hotswap.subjects.diffusers",
    "HotswapContract": "pytest_hotswap.contract.contract",
    "PackageSubject": "pytest_hotswap.subjects.package",
    "PeftSubject": "pytest_hotswap.subjects.peft",
    "PipelineSubject": "pytest_hotswap.subjects.pipeline",
    "ReferenceSubject": "pytest_hotswap.subjects.reference",
    "Subject": "pytest_hotswap.subjects.base",
    "SubjectProtocol": "pytest_hotswap.subjects.protocol",
    "TensorParallelSubject": "pytest_hotswap.subjects.tensor_parallel",
    "TransformersSubject": "pytest_hotswap.subjects.transformers",
    "run_hotswap_machine": "pytest_hotswap.machine.machine",
}

__all__ = [
    "DiffusersSubject",
    "HotswapContract",
    "PackageSubject",
    "PeftSubject",
    "PipelineSubject",
    "ReferenceSubject",
    "Subject",
    "SubjectProtocol",
    "TensorParallelSubject",
    "TransformersSubject",
    "run_hotswap_machine",
]

if TYPE_CHECKING:
    from pytest_hotswap.contract.contract import HotswapContract
    from pytest_hotswap.machine.machine import run_hotswap_machine
    from pytest_hotswap.subjects.base import Subject
    from pytest_hotswap.subjects.diffusers import DiffusersSubject
    from pytest_hotswap.subjects.package import PackageSubject
    from pytest_hotswap.subjects.peft import PeftSubject
    from pytest_hotswap.subjects.pipeline import PipelineSubject
    from pytest_hotswap.subjects.protocol import SubjectProtocol
    from pytest_hotswap.subjects.reference import ReferenceSubject
    from pytest_hotswap.subjects.tensor_parallel import TensorParallelSubject
    from pytest_hotswap.subjects.transformers import TransformersSubject


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        from hotswap.errors import missing_extra

        if missing := missing_extra(f"pytest_hotswap.{name}", error):
            raise missing from None  # its sentence is enough
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
