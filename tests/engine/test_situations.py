"""What servers and pipelines do to a prepared model: wrap, offload, unload it, write its base weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

import hotswap
from hotswap.engine.layout.slots import lora_layers
from hotswap.errors import AlreadyCompiledError, HotswapError, NoAdapterError, UnsupportedLayerError
from tests.support.models import Head, fresh, micro, run, seeded, write_adapter, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")


class Service(nn.Module):
    """A class of one's own around a model."""

    def __init__(self, model: Any, *, other: Any = None) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"model": model})
        self.other = other

    def forward(self, *args: Any) -> Any:
        return self.inner["model"](*args)


@pytest.fixture
def base() -> Any:
    return micro()


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    return write_fleet(
        tmp_path, base, {"small": {"r": 2, "lora_alpha": 4}, "large": {"r": 8, "lora_alpha": 3}}
    )


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "a class": Service,
    "two of them": lambda model: Service(Service(model)),
    "beside the model in it": lambda model: Service(model, other=model.base_model.model),
    "beside another module": lambda model: Service(model, other=nn.Linear(2, 2)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("outer_prepares", [True, False])
@pytest.mark.parametrize("outer_swaps", [True, False])
def test_a_model_inside_a_module_of_ones_own_is_prepared_and_swapped(
    wrapper: str, outer_prepares: bool, outer_swaps: bool, base: Any, fleet: Any
) -> None:
    inner = fresh(base, fleet["small"])
    whole = WRAPPERS[wrapper](inner)
    report = hotswap.prepare(whole if outer_prepares else inner, target_rank=8)
    assert set(report.ranks) == set(lora_layers(inner))  # names without the wrapper's
    hotswap.swap(whole if outer_swaps else inner, fleet["large"])
    torch.testing.assert_close(run(whole), run(fresh(base, fleet["large"])))
    assert hotswap.active(whole) == hotswap.active(inner) == str(fleet["large"])
    hotswap.set_scale(whole, 0.0)
    torch.testing.assert_close(run(whole), run(base))


def test_a_compiled_module_around_a_model_refuses_to_be_prepared(base: Any, fleet: Any) -> None:
    whole = torch.compile(Service(fresh(base, fleet["small"])), backend="eager")
    with pytest.raises(AlreadyCompiledError):
        hotswap.prepare(whole, target_rank=8)
    with pytest.raises(NoAdapterError):
        hotswap.prepare(Service(copy.deepcopy(base)), target_rank=8)


def test_what_generate_compiles_by_itself_is_seen(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    inner = model.base_model.model
    inner.__dict__["_compiled_call"] = torch.compile(inner.__call__, backend="eager")
    with pytest.raises(AlreadyCompiledError, match=r"generate\(\)"):
        hotswap.prepare(model, target_rank=8)
    del inner.__dict__["_compiled_call"]
    hotswap.prepare(model, target_rank=8)


class Group:
    """What diffusers' hook of group offloading says of its weights."""

    def __init__(self, path: str | None, stream: object) -> None:
        self.offload_to_disk_path, self.stream = path, stream


class Registry:
    """A registry of diffusers' hooks on a module."""

    def __init__(self, group: Group) -> None:
        self.hooks = {"group_offloading": type("Hook", (), {"group": group})()}


@pytest.mark.parametrize("where", ["layers", "factors", "the model"])
@pytest.mark.parametrize(
    ("group", "why"), [(Group("/tmp/x", None), "files"), (Group(None, object()), "stream")]
)
def test_weights_that_a_hook_puts_back_from_elsewhere_are_refused(
    where: str, group: Group, why: str, base: Any, fleet: Any
) -> None:
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=8)
    bank = hotswap.AdapterBank(model)
    bank.add("large", fleet["large"])
    layers = [*lora_layers(model).values()]
    factors = [part for layer in layers for part in layer.lora_A.values()]
    places: Any = {"layers": layers, "factors": factors, "the model": [model]}[where]
    for place in places:
        place.__dict__["_diffusers_hook"] = Registry(group)
    before = run(model)
    with pytest.raises(HotswapError, match=rf"{why}.*not be served"):
        hotswap.swap(model, fleet["large"])
    with pytest.raises(HotswapError, match=why), bank.using("large"):
        pytest.fail("the body must not run")
    assert torch.equal(run(model), before)
    for place in places:  # which moves the very tensors
        place.__dict__["_diffusers_hook"] = Registry(Group(None, None))
    hotswap.swap(model, fleet["large"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["large"])))


def test_a_model_with_such_hooks_is_not_prepared(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"])
    lora_layers(model)["first"].__dict__["_diffusers_hook"] = Registry(Group("/tmp/x", None))
    with pytest.raises(UnsupportedLayerError, match="files before every forward"):
        hotswap.prepare(model, target_rank=8)


def test_norms_of_base_weights_that_were_written_meanwhile_are_computed_anew(
    base: Any, tmp_path: Path
) -> None:
    fleet = write_fleet(
        tmp_path,
        base,
        {
            "dora": {"r": 4, "use_dora": True},
            "plain": {"r": 4, "target_modules": ["first"]},
        },
    )
    model = fresh(base, fleet["dora"])
    hotswap.prepare(model, plan=hotswap.plan([*fleet.values()]))
    for name in ("plain", "dora"):
        hotswap.swap(model, fleet[name])
    changed = copy.deepcopy(base)
    with torch.no_grad():  # a weight sync
        for layer in lora_layers(model).values():
            layer.get_base_layer().weight.mul_(1.5)
        for name in lora_layers(model):
            changed.get_submodule(name).weight.mul_(1.5)
    hotswap.swap(model, fleet["plain"])
    torch.testing.assert_close(run(model), run(fresh(changed, fleet["plain"])))


AROUND: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("around", AROUND)
def test_what_is_put_in_place_does_not_depend_on_the_mode_around(
    around: str, base: Any, tmp_path: Path
) -> None:
    first = {"target_modules": ["first"]}
    kinds = {"dora": {"r": 4, "use_dora": True, **first}, "plain": {"r": 3, **first}}
    fleet = write_fleet(tmp_path, base, kinds)
    expected = run(fresh(base, fleet["plain"]))
    model = fresh(base, fleet["plain"])
    with AROUND[around]():
        hotswap.prepare(model, plan=hotswap.plan([*fleet.values()]))
        bank = hotswap.AdapterBank(model)
        bank.add("plain", fleet["plain"])
    torch.testing.assert_close(run(model), expected)
    with AROUND[around]():
        hotswap.swap(model, fleet["dora"])
        hotswap.swap(model, fleet["plain"])
        hotswap.set_scale(model, 0.5)
        hotswap.set_scale(model, 1.0)
    torch.testing.assert_close(run(model), expected)
    hotswap.swap(model, fleet["dora"])
    with bank.using("plain"):
        torch.testing.assert_close(run(model), expected)


def test_a_state_dict_without_a_head_loads_where_the_adapter_in_place_has_none(
    tmp_path: Path,
) -> None:
    base = seeded(Head)
    fleet = write_fleet(
        tmp_path,
        base,
        {
            "head": {"r": 2, "target_modules": ["first"], "modules_to_save": ["head"]},
            "none": {"r": 4, "target_modules": ["first"]},
        },
    )
    model = hotswap.load(copy.deepcopy(base), hotswap.plan([*fleet.values()]), fleet["none"])
    state, before = model.state_dict(), run(model)
    assert not any("modules_to_save" in name for name in state)
    model.load_state_dict(state)
    assert torch.equal(run(model), before)
    hotswap.swap(model, fleet["head"])
    with pytest.raises(RuntimeError, match="modules_to_save"):
        model.load_state_dict(state)  # of another adapter: its head is missing
    torch.testing.assert_close(run(model), run(fresh(base, fleet["head"])))


@pytest.mark.parametrize("how", ["unload", "delete", "replaced layer"])
def test_a_swap_never_writes_into_what_the_model_has_no_more(
    how: str, base: Any, fleet: Any, tmp_path: Path
) -> None:
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, fleet["large"])
    if how == "unload":
        bare = model.unload()
        with pytest.raises(HotswapError):
            hotswap.swap(bare, fleet["small"])
        again = write_adapter(tmp_path / "again", base, r=3, seed=5)
        model = PeftModel.from_pretrained(bare, again, adapter_name="best").eval()
    elif how == "delete":
        model.load_adapter(fleet["small"], "best")
        model.set_adapter("best")
        model.delete_adapter("default")
    else:
        twin = fresh(base, fleet["small"])
        model.base_model.model.first = twin.base_model.model.first
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, fleet["large"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["large"])))


def test_a_layer_that_was_replaced_by_its_compiled_wrapper_is_still_the_models(
    base: Any, fleet: Any
) -> None:
    model = fresh(base, fleet["small"])
    hotswap.prepare(model, target_rank=8)
    inner = model.base_model.model
    inner.first = torch.compile(inner.first, backend="eager")
    run(model)
    for name in ("large", "small"):
        assert hotswap.swap(model, fleet[name]).path == "arena"
        torch.testing.assert_close(run(model), run(fresh(base, fleet[name])))
