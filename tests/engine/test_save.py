"""save_pretrained after prepare() and after a swap: the adapter at its own rank, with its own parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict

import hotswap
from hotswap.errors import HotswapError
from tests.engine.test_features import HEADS, MIXED, PLAIN, TOKENS, WIDE
from tests.support.models import (
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

VALUES = torch.linspace(-1, 1, 48).reshape(2, 3, 8)
IN_HEAD = {"target_modules": ["first"]}
FLEETS: dict[str, tuple[Any, dict[str, dict[str, Any]], torch.Tensor | None]] = {
    **{name: (micro, fleet, None) for name, fleet in MIXED.items()},
    "modules_to_save": (Head, {k: {**v, **IN_HEAD} for k, v in HEADS.items()}, None),
    "token rows": (Head, {k: {**v, **IN_HEAD} for k, v in TOKENS["dicts"].items()}, None),
    "attention": (
        Attention,
        {
            "small": {**PLAIN, "target_modules": ["attn"]},
            "wide": {**WIDE, "target_modules": ["attn", "first"]},
        },
        VALUES,
    ),
    "experts": (
        lambda: Around(Experts()),
        {
            "small": {**PLAIN, "target_parameters": ["layer.up", "layer.down"]},
            "wide": {**WIDE, "target_parameters": ["layer.up", "layer.down"]},
        },
        VALUES[0],
    ),
}


@pytest.mark.parametrize("feature", FLEETS)
def test_what_is_saved_after_a_swap_is_the_adapter(feature: str, tmp_path: Path) -> None:
    build, configs, inputs = FLEETS[feature]
    base = seeded(build)
    fleet = write_fleet(tmp_path, base, configs)
    model = hotswap.load(copy.deepcopy(base), hotswap.plan([*fleet.values()]))
    for name, folder in fleet.items():
        hotswap.swap(model, folder)
        model.save_pretrained(tmp_path / "saved" / name)
        saved, original = (
            hotswap.AdapterSpec.read(path) for path in (tmp_path / "saved" / name, folder)
        )
        assert saved.findings == ()
        assert saved.modules == original.modules
        assert saved.saved == original.saved or saved.saved.keys() == original.saved.keys()
        assert {k: set(v.indices) for k, v in saved.tokens.items()} == {
            k: set(v.indices) for k, v in original.tokens.items()
        }
        options = () if inputs is None else (inputs,)
        again = fresh(base, tmp_path / "saved" / name)
        assert torch.equal(run(again, *options), run(fresh(base, folder), *options))


def test_another_adapter_is_loaded_and_saved_while_the_base_model_is_in_place(
    tmp_path: Path,
) -> None:
    base = micro()
    fleet = write_fleet(
        tmp_path, base, {"one": PLAIN, "some": {**WIDE, "target_modules": ["first"]}}
    )
    model = fresh(base, fleet["one"])
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, None)
    before = run(model)
    model.load_adapter(fleet["some"], "other")
    assert torch.equal(run(model), before)
    model.save_pretrained(tmp_path / "saved", selected_adapters=["other"])
    model.set_adapter("other")
    for found in (run(model), run(fresh(base, tmp_path / "saved" / "other"))):
        assert torch.equal(found, run(fresh(base, fleet["some"])))


def test_what_is_saved_after_prepare_is_the_adapter(tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(tmp_path, base, MIXED["dora"])
    model = fresh(base, fleet["plain"])
    hotswap.prepare(model, plan=hotswap.plan([*fleet.values()]))
    model.save_pretrained(tmp_path / "saved")
    saved, original = (
        hotswap.AdapterSpec.read(path) for path in (tmp_path / "saved", fleet["plain"])
    )
    assert saved.modules == original.modules
    assert torch.equal(run(fresh(base, tmp_path / "saved")), run(fresh(base, fleet["plain"])))


def test_without_an_adapter_there_is_nothing_to_save(tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(
        tmp_path, base, {"one": PLAIN, "some": {**WIDE, "target_modules": ["first"]}}
    )
    model = fresh(base, fleet["one"])
    model.load_adapter(fleet["some"], "other")
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, None)
    with pytest.raises(HotswapError, match="no adapter to save"):
        model.save_pretrained(tmp_path / "saved", selected_adapters=["default"])
    assert get_peft_model_state_dict(model) == {}
    model.save_pretrained(tmp_path / "saved", selected_adapters=["other"])
    assert torch.equal(
        run(fresh(base, tmp_path / "saved" / "other")), run(fresh(base, fleet["some"]))
    )
    hotswap.swap(model, fleet["some"])
    model.save_pretrained(tmp_path / "again", selected_adapters=["default"])
    assert torch.equal(run(fresh(base, tmp_path / "again")), run(fresh(base, fleet["some"])))


def test_the_only_adapter_has_no_state_dict_when_it_is_out(tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(tmp_path, base, {"one": PLAIN})
    model = fresh(base, fleet["one"])
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, None)
    with pytest.raises(HotswapError, match="no adapter to save"):
        get_peft_model_state_dict(model)


def test_a_state_dict_loads_into_another_prepared_model(tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(tmp_path, base, MIXED["dora"])
    plan = hotswap.plan([*fleet.values()])
    for name in ("dora on some", "plain"):
        source = hotswap.load(copy.deepcopy(base), plan, fleet[name])
        target = hotswap.load(copy.deepcopy(base), plan, fleet[name])
        hotswap.swap(target, fleet["dora"])
        hotswap.swap(target, fleet[name])
        target.load_state_dict(source.state_dict(), strict=True)
        assert torch.equal(run(target), run(source))
