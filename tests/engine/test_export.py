"""Prepared models are exported whole or not at all, and an export leaves them as they were."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.helpers import DoraCaching
from torch import nn

import hotswap
from hotswap.adapters.plan import SavedTensor
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.layout.slots import lora_layers
from hotswap.engine.parts import TargetRankError
from hotswap.errors import (
    HotswapError,
    MergedAdapterError,
    NotPreparedError,
    PackageError,
    UnsupportedLayerError,
)
from tests.support.models import (
    TOKENS,
    Around,
    Attention,
    Experts,
    Head,
    fresh,
    micro,
    run,
    seeded,
    write_fleet,
)

pytestmark = pytest.mark.filterwarnings("ignore")

FLEET: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 4},
    "large": {"r": 8, "lora_alpha": 3},
}


@pytest.fixture(params=[False, True], ids=["LoRA", "DoRA"])
def fleet(request: Any, tmp_path: Path) -> dict[str, Path]:
    kinds = {name: {**own, "use_dora": request.param} for name, own in FLEET.items()}
    return write_fleet(tmp_path, micro(), kinds)


@pytest.fixture
def exported(fleet: Any) -> Any:
    """A prepared model that was exported once: torch has put copies of its modules' lists and dicts."""
    model = fresh(micro(), fleet["small"])
    hotswap.prepare(model, target_rank=8)
    with torch.no_grad():
        torch.export.export(model, (TOKENS,), strict=False)
    return model


def test_after_an_export_ranks_alphas_and_scales_are_those_of_the_adapter_in_place(
    fleet: Any, exported: Any
) -> None:
    hotswap.swap(exported, fleet["large"])
    for layer in lora_layers(exported).values():
        assert (layer.r["default"], layer.lora_alpha["default"]) == (8, 3)
    hotswap.set_scale(exported, 0.5)
    for layer in lora_layers(exported).values():
        assert float(layer.scaling["default"]) == pytest.approx(0.5 * 3 / 8)
    hotswap.set_scale(exported, 1.0)
    torch.testing.assert_close(run(exported), run(fresh(micro(), fleet["large"])))


def test_after_an_export_a_merged_adapter_is_refused(fleet: Any, exported: Any) -> None:
    bank = hotswap.AdapterBank(exported)
    bank.add("large", fleet["large"])
    exported.merge_adapter()
    with pytest.raises(MergedAdapterError):
        hotswap.swap(exported, fleet["large"])
    with pytest.raises(MergedAdapterError), bank.using("large"):
        pass
    exported.unmerge_adapter()
    hotswap.swap(exported, fleet["large"])
    torch.testing.assert_close(run(exported), run(fresh(micro(), fleet["large"])))


def test_after_an_export_a_bank_sees_that_the_model_went_to_another_dtype(
    fleet: Any, exported: Any
) -> None:
    bank = hotswap.AdapterBank(exported)
    bank.add("large", fleet["large"])
    assert not placement_of(exported, "default").moved
    exported.double()
    assert placement_of(exported, "default", at_once=True).moved
    bank.add("large", fleet["large"])
    with bank.using("large"):
        torch.testing.assert_close(run(exported), run(fresh(micro(), fleet["large"]).double()))


def test_after_an_export_pefts_dora_cache_forgets_the_old_adapter(
    fleet: Any, exported: Any
) -> None:
    with DoraCaching():
        for folder in (*fleet.values(), *fleet.values()):
            hotswap.swap(exported, folder)
            torch.testing.assert_close(run(exported), run(fresh(micro(), folder)))


@pytest.fixture
def model(tmp_path: Path) -> Any:
    found = fresh(micro(), write_fleet(tmp_path / "fleet", micro(), FLEET)["small"])
    hotswap.prepare(found, target_rank=8)
    return found


class Wrapped(nn.Module):
    """A model as a user wraps it: other arguments, another output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, tokens: torch.Tensor, *, factor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.inner(tokens) * factor}


def test_the_model_goes_on_swapping_after_its_export(model: Any, tmp_path: Path) -> None:
    large = tmp_path / "fleet" / "large"
    path = hotswap.export(model, (TOKENS,), tmp_path / "model.pt2", form="program")
    before = run(model)
    hotswap.Package(path).swap(large)
    assert torch.equal(run(model), before)
    hotswap.swap(model, large)
    torch.testing.assert_close(run(model), run(fresh(micro(), large)))


def test_a_module_around_the_model_is_exported_with_its_arguments(
    model: Any, tmp_path: Path
) -> None:
    two = torch.tensor(2.0)
    batch = torch.export.Dim("batch", min=1, max=16)
    path = hotswap.export(
        Wrapped(model).eval(),
        (TOKENS,),
        tmp_path / "model.pt2",
        kwargs={"factor": two},
        dynamic_shapes={"tokens": {0: batch}, "factor": None},
        form="program",
    )
    package = hotswap.Package(path)
    for name in FLEET:
        folder = tmp_path / "fleet" / name
        package.swap(folder)
        tokens = torch.cat([TOKENS, TOKENS, TOKENS])
        oracle = fresh(micro(), folder)
        with torch.no_grad():
            torch.testing.assert_close(package(tokens, factor=two)["out"], 2 * oracle(tokens))


@pytest.mark.parametrize(
    ("build", "config", "given"),
    [
        (lambda: micro(groups=2), {}, TOKENS),
        (micro, {"lora_bias": True, "target_modules": ["first"]}, TOKENS),
    ],
    ids=["groups", "bias"],
)
def test_layers_of_other_kinds_are_exported(
    build: Any, config: dict[str, Any], given: torch.Tensor, tmp_path: Path
) -> None:
    base = seeded(build)
    kinds = {"small": {"r": 2, "lora_alpha": 4, **config}, "large": {"r": 4, **config}}
    fleet = write_fleet(tmp_path, base, kinds)
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=4)
    path = hotswap.export(model, (given,), tmp_path / "model.pt2", form="program")
    assert hotswap.check_package(path, fleet.values()) == []
    package = hotswap.Package(path)
    for name in ("large", "small", "large"):
        package.swap(fleet[name])
        with torch.no_grad():
            torch.testing.assert_close(package(given), fresh(base, fleet[name])(given))
    package.swap(None)
    with torch.no_grad():
        torch.testing.assert_close(package(given), base(given))


def unprepared(_: Any, folder: Path) -> Any:
    return fresh(micro(), folder / "fleet" / "small")


def merged(model: Any, _: Path) -> Any:
    model.merge_adapter()
    return model


def disabled(model: Any, _: Path) -> Any:
    model.base_model.disable_adapter_layers()
    return model


def training(model: Any, _: Path) -> Any:
    return model.train()


def copied(model: Any, _: Path) -> Any:
    return copy.deepcopy(model)


def with_feature(build: Any, **config: Any) -> Any:
    def made(_: Any, folder: Path) -> Any:
        base = seeded(build)
        own = write_fleet(folder / "feature", base, {"one": {"r": 2, **config}})["one"]
        model = fresh(base, own)
        hotswap.prepare(model, target_rank=4)
        return model

    return made


class Half(nn.Module):
    """A forward that reaches some of the LoRA layers only."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        base = self.model.base_model.model
        return base.first(base.embed(tokens))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (unprepared, NotPreparedError, r"call hotswap\.prepare"),
        (merged, MergedAdapterError, "merged"),
        (disabled, PackageError, "is not read by the forward.*enable the adapter"),
        (training, HotswapError, r"training mode.*eval\(\)"),
        (copied, HotswapError, "prepare it again"),
        (with_feature(micro, use_dora=True), UnsupportedLayerError, "embed.*: .*DoRA magnitude"),
        (
            with_feature(Head, target_modules=["first"], modules_to_save=["head"]),
            UnsupportedLayerError,
            "head: .*modules_to_save",
        ),
        (
            with_feature(Head, target_modules=["first"], trainable_token_indices={"embed": [1, 2]}),
            UnsupportedLayerError,
            "embed: .*token rows",
        ),
        (
            with_feature(lambda: Around(Experts()), target_parameters=["layer.up", "layer.down"]),
            UnsupportedLayerError,
            "layer: .*PEFT's ParamWrapper",
        ),
        (
            with_feature(Attention, target_modules=["first", "attn"]),
            UnsupportedLayerError,
            "attn: .*PEFT's MultiheadAttention",
        ),
    ],
    ids=[
        "unprepared",
        "merged",
        "disabled",
        "training",
        "copied",
        "DoRA",
        "saved modules",
        "token rows",
        "experts",
        "attention",
    ],
)
def test_what_could_not_be_swapped_is_not_exported(
    model: Any, tmp_path: Path, change: Any, error: type, text: str
) -> None:
    with pytest.raises(error, match=text):
        hotswap.export(change(model, tmp_path), (TOKENS,), tmp_path / "model.pt2", form="program")
    assert not list(tmp_path.glob("*.pt2*"))


def test_a_forward_that_does_not_reach_a_slot_is_not_exported(model: Any, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"what was there")
    with pytest.raises(PackageError, match="is not read by the forward") as refused:
        hotswap.export(Half(model).eval(), (TOKENS,), tmp_path / "model.pt2", form="program")
    assert {finding.code for finding in refused.value.findings} == {"HSW313"}
    named = {finding.where.partition("::")[2] for finding in refused.value.findings}
    assert "model.base_model.model.conv.lora_A.default.weight" in named
    assert "model.base_model.model.conv.scaling.default" in named
    assert not any(".first." in name for name in named)
    assert (tmp_path / "model.pt2").read_bytes() == b"what was there"


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({"first": {"rank": 9}}, "first with .*rank=9"),
        ({"first": {"dora": True}}, "dora=True"),
        ({"first": {"bias": True}}, "bias=True"),
        ({"first": {"in_features": 9}}, "in_features=9"),
        ({"other": {}}, "other with .*prepared for None"),
        ({"saved": {"head.weight": SavedTensor((8, 8), "F32")}}, "whole modules or token rows"),
    ],
)
def test_a_plan_that_needs_more_room_is_refused(
    model: Any, tmp_path: Path, plan: dict[str, Any], text: str
) -> None:
    own = hotswap.plan([*(tmp_path / "fleet").iterdir()])
    saved = plan.pop("saved", {})
    modules = own.modules | {
        name: replace(own.modules["first"], **more) for name, more in plan.items()
    }
    wanted = replace(own, modules=modules, saved=saved)
    with pytest.raises(TargetRankError, match=text):
        hotswap.export(model, (TOKENS,), tmp_path / "model.pt2", plan=wanted, form="program")


def test_a_plan_that_fits_is_kept_with_the_room_that_there_is(model: Any, tmp_path: Path) -> None:
    plan = hotswap.plan([tmp_path / "fleet" / "small"])
    path = hotswap.export(model, (TOKENS,), tmp_path / "model.pt2", plan=plan, form="program")
    found = hotswap.Package(path).plan
    assert found.adapters == plan.adapters
    assert set(found.ranks.values()) == {8}


def test_wrong_arguments_are_said_before_any_work(model: Any, tmp_path: Path) -> None:
    wrong: Any = "onnx"
    with pytest.raises(ValueError, match="form is 'onnx'"):
        hotswap.export(model, (TOKENS,), tmp_path / "model.pt2", form=wrong)
    with pytest.raises(ValueError, match=r"ends in \.pt2"):
        hotswap.export(model, (TOKENS,), tmp_path / "model.so")
    with pytest.raises(TypeError, match="expected a torch module"):
        hotswap.export("model", (TOKENS,), tmp_path / "model.pt2")


def test_without_a_compiler_it_is_said_what_to_do(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(HotswapError, match=r"C\+\+ compiler.*form=\"program\""):
        hotswap.export(model, (TOKENS,), tmp_path / "model.pt2")
    hotswap.export(model, (TOKENS,), tmp_path / "model.pt2", form="program")
