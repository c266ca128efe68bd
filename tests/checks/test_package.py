"""check_package: what keeps a package's adapters from being swapped, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from tests.support.packages import Packages, needs_compiler, rewritten

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def _not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the package was loaded")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", refuse)
    monkeypatch.setattr(torch.export, "load", refuse)


@pytest.mark.usefixtures("_not_loaded")
@pytest.mark.parametrize("form", [pytest.param("ours", marks=needs_compiler), "program"])
def test_a_package_with_adapters_that_fit_has_no_finding(packages: Packages, form: str) -> None:
    path = getattr(packages, form)
    assert hotswap.check_package(path) == []
    assert hotswap.check_package(str(path), packages.fleet.values()) == []
    assert hotswap.check_package(path, packages.fleet["small"]) == []


@pytest.mark.usefixtures("_not_loaded")
def test_adapters_that_do_not_fit_have_the_findings_of_a_swap(
    packages: Packages, tmp_path: Path
) -> None:
    found = hotswap.check_package(packages.program, [packages.larger, tmp_path / "nowhere"])
    assert [finding.code for finding in found] == ["HSW105", "HSW001"]
    assert found[0].where.startswith(str(packages.larger))


@needs_compiler
@pytest.mark.usefixtures("_not_loaded")
@pytest.mark.parametrize(
    ("variant", "texts"),
    [
        ("plain", ["4 LoRA weights and no scaling", "was not written by hotswap.export"]),
        ("keep", ["was not written by hotswap.export"]),
        ("runtime folding", ["constants are computed from weights once", "was not written"]),
        ("freezing", ["weights are frozen under other names", "was not written"]),
    ],
)
def test_other_variants_are_told_by_what_was_done_to_their_constants(
    packages: Packages, variant: str, texts: list[str]
) -> None:
    found = hotswap.check_package(packages.of(variant), packages.fleet.values())
    assert [text in finding.message for text, finding in zip(texts, found, strict=True)] == [
        True for _ in texts
    ]


@needs_compiler
@pytest.mark.usefixtures("_not_loaded")
def test_a_scaling_that_was_compiled_in_is_named(packages: Packages, tmp_path: Path) -> None:
    def without(code: str) -> str:
        return code.replace('"base_model.model.up.scaling.default"', '"another"')

    path = rewritten(packages.ours, tmp_path / "inlined.pt2", code=without)
    (finding,) = hotswap.check_package(path)
    assert finding.code == "HSW313"
    assert finding.where == f"{path}::base_model.model.up.scaling.default"


def test_a_file_that_cannot_be_read_is_one_finding(tmp_path: Path) -> None:
    (finding,) = hotswap.check_package(tmp_path / "model.pt2", [tmp_path])
    assert (finding.code, finding.message) == ("HSW311", "no such file")
