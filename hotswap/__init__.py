"""Swap LoRA adapters in compiled models without a recompile, and prove that it works.

Each public name is loaded on first use: importing hotswap imports neither torch nor peft.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AdapterBank": "hotswap.engine.bank.bank",
    "AdapterSpec": "hotswap.adapters.spec",
    "CompileLog": "hotswap.compiler.watch",
    "Finding": "hotswap.findings",
    "HotswapError": "hotswap.errors",
    "Package": "hotswap.engine.package",
    "SwapPlan": "hotswap.adapters.plan",
    "active": "hotswap.engine.swap",
    "audit_guards": "hotswap.compiler.audit",
    "check_adapters": "hotswap.checks.adapters",
    "check_package": "hotswap.checks.package",
    "check_source": "hotswap.lint.check",
    "export": "hotswap.engine.export",
    "forbid_recompiles": "hotswap.compiler.watch",
    "load": "hotswap.engine.load",
    "patch_peft": "hotswap.engine.peft.patch",
    "plan": "hotswap.adapters.planner",
    "prepare": "hotswap.engine.prepare",
    "set_scale": "hotswap.engine.scale",
    "state": "hotswap.engine.state",
    "swap": "hotswap.engine.swap",
    "swap_together": "hotswap.engine.mesh",
    "watch_compiles": "hotswap.compiler.watch",
    "would_recompile": "hotswap.compiler.audit",
}

__all__ = [
    "AdapterBank",
    "AdapterSpec",
    "CompileLog",
    "Finding",
    "HotswapError",
    "Package",
    "SwapPlan",
    "active",
    "audit_guards",
    "check_adapters",
    "check_package",
    "check_source",
    "export",
    "forbid_recompiles",
    "load",
    "patch_peft",
    "plan",
    "prepare",
    "set_scale",
    "state",
    "swap",
    "swap_together",
    "watch_compiles",
    "would_recompile",
]

if TYPE_CHECKING:
    from hotswap.adapters.plan import SwapPlan
    from hotswap.adapters.planner import plan
    from hotswap.adapters.spec import AdapterSpec
    from hotswap.checks.adapters import check_adapters
    from hotswap.checks.package import check_package
    from hotswap.compiler.audit import audit_guards, would_recompile
    from hotswap.compiler.watch import CompileLog, forbid_recompiles, watch_compiles
    from hotswap.engine.bank.bank import AdapterBank
    from hotswap.engine.export import export
    from hotswap.engine.load import load
    from hotswap.engine.mesh import swap_together
    from hotswap.engine.package import Package
    from hotswap.engine.peft.patch import patch_peft
    from hotswap.engine.prepare import prepare
    from hotswap.engine.scale import set_scale
    from hotswap.engine.state import state
    from hotswap.engine.swap import active, swap
    from hotswap.errors import HotswapError
    from hotswap.findings import Finding
    from hotswap.lint.check import check_source


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hotswap' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        from hotswap.errors import missing_extra

        if missing := missing_extra(f"hotswap.{name}", error):
            raise missing from None  # its sentence is enough
        raise


def __dir__() -> list[str]:
    return __all__
