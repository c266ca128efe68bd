"""Models and torch.export: what an export leaves of a prepared model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.helpers import DoraCaching

import hotswap
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.layout.slots import lora_layers
from hotswap.errors import MergedAdapterError
from tests.support.models import TOKENS, fresh, micro, run, write_fleet

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
