"""Make specs and places of a plan by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hotswap.adapters.fit import fits
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.modules import ModuleSpec, TokenRows
from hotswap.adapters.plan import ModulePlan, SwapPlan
from hotswap.adapters.spec import AdapterSpec
from tests.support.adapter_files import Tensors


def spec_of(name: str = "a", **modules: ModuleSpec) -> AdapterSpec:
    return AdapterSpec(name, {}, modules, 0, ())


def linear(rank: int = 8, alpha: float = 16.0) -> ModuleSpec:
    return ModuleSpec("linear", rank, alpha, alpha / rank, 32, 16, (), 1, "F32", False)


def conv(rank: int, groups: int) -> ModuleSpec:
    return ModuleSpec("conv", rank, 8.0, 8.0 / rank, 6, 12, (3, 3), groups, "F32", False)


def plan_conv(rank: int, groups: int) -> ModulePlan:
    return ModulePlan("conv", rank, 6, 12, (3, 3), groups)


def trained(saved: dict[str, TensorInfo], tokens: dict[str, TokenRows]) -> AdapterSpec:
    config = {"modules_to_save": ["head"] if saved else None}
    return replace(spec_of(q=linear()), config=config, saved=saved, tokens=tokens)


def only(found: SwapPlan, spec: AdapterSpec) -> Any:
    (finding,) = fits(found, spec)
    return finding


Q = "base_model.model.q_proj"


def codes(spec: AdapterSpec) -> list[str]:
    return [finding.code for finding in spec.findings]


def pair(a: tuple[int, ...], b: tuple[int, ...], dtype: str = "F32") -> Tensors:
    return {f"{Q}.lora_A.weight": (dtype, a), f"{Q}.lora_B.weight": (dtype, b)}
