"""Whose names an adapter's modules have: those of the base model's class, or of that with another head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import hotswap
from hotswap.adapters.fit import BaseModel
from hotswap.adapters.inspect import Inspector
from hotswap.adapters.plan import ModulePlan
from tests.support.adapter_files import write_adapter

Q = "layers.{}.attn.q"


def base(kind: str, *modules: str) -> BaseModel:
    places = {name: ModulePlan("linear", 1, 8, 8) for name in modules}
    shapes = {f"{name}.weight": (8, 8) for name in modules}
    blocks = tuple(name.rpartition(".")[0] for name in modules if "." in name)
    return BaseModel("base", places, shapes, "model", others=blocks, kind=kind)


BARE = [Q.format(n) for n in range(3)]
WHOLE = [f"model.{name}" for name in BARE]
CAUSAL = base("CausalLM", *WHOLE, "lm_head")
MODEL = base("Model", *BARE)


def found(model: BaseModel, folder: Path, *modules: str, **config: object) -> dict[str, str]:
    adapter = write_adapter(folder, modules=dict.fromkeys(modules, (8, 8)), config=config)
    inspected = Inspector(base=model)(str(adapter))
    return {finding.code: finding.message for finding in inspected.findings}


def test_names_of_the_bases_own_class_have_no_finding(tmp_path: Path) -> None:
    assert found(CAUSAL, tmp_path, *WHOLE, "lm_head") == {}
    assert found(MODEL, tmp_path, *BARE) == {}


def test_names_with_another_head_are_a_warning_that_says_which_class_takes_them(
    tmp_path: Path,
) -> None:
    told = found(CAUSAL, tmp_path / "bare", *BARE)
    assert list(told) == ["HSW120"]
    assert "without its head (AutoModel); CausalLM" in told["HSW120"]
    told = found(MODEL, tmp_path / "whole", *WHOLE)
    assert list(told) == ["HSW120"]
    assert "fits a model with a head; Model" in told["HSW120"]
    assert (
        found(replace(MODEL, kind=""), tmp_path / "whole", *WHOLE) == {}
    )  # its config names no class
    adapter = str(tmp_path / "bare")  # of which a plan says what is served
    assert Inspector(hotswap.plan([adapter]), CAUSAL)(adapter).findings == ()


@pytest.mark.parametrize(
    "modules", [[BARE[0], *WHOLE[1:]], [*BARE, "lm_head"], [*BARE, "layers.9.attn.q"]]
)
def test_names_that_no_class_has_all_of_are_refused(modules: list[str], tmp_path: Path) -> None:
    assert "HSW112" in found(CAUSAL, tmp_path, *modules)


def test_blocks_are_named_as_the_model_without_its_head_names_them(tmp_path: Path) -> None:
    told = found(CAUSAL, tmp_path / "a", *BARE, target_modules=r"layers\.\d\.attn(\.q)?")
    assert "target_modules names layers.0.attn" in told["HSW112"]
    assert [*found(CAUSAL, tmp_path / "b", *BARE, target_modules=r"layers\..*\.q")] == ["HSW120"]
