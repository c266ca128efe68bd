"""Models cut over several devices: every swap equals a fresh load of the whole, in place, on each rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

import hotswap
from pytest_hotswap.ranks.pool import Raised, RankPool
from tests.support import rank_models as at
from tests.support.models import fresh, run, write_adapter, write_fleet

RECIPES = {"a": (4, 8), "b": (2, 8), "c": (8, 4)}
ORDER = ["b", None, "c", "a", "b", None]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    recipes = {
        name: {"r": rank, "lora_alpha": alpha, "target_modules": at.NAMES}
        for name, (rank, alpha) in RECIPES.items()
    }
    return write_fleet(tmp_path_factory.mktemp("fleet"), at.net(), recipes)


@pytest.fixture(scope="module", params=[2, 4])
def pool(request: pytest.FixtureRequest) -> Iterator[RankPool]:
    pool = RankPool(request.param)
    yield pool
    pool.close()


def want(fleet: dict[str, Path], name: str | None) -> torch.Tensor:
    return run(at.net() if name is None else fresh(at.net(), fleet[name]), at.X)


def paths(fleet: dict[str, Path], order: list[str | None]) -> list[Path | None]:
    return [fleet[name] if name else None for name in order]


@pytest.mark.parametrize("kind", ["tensor parallel", "replica"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_each_swap_equals_a_fresh_load_and_recompiles_nothing(
    pool: RankPool, fleet: dict[str, Path], kind: str, backend: str
) -> None:
    pool(at.bring_up, kind, fleet["a"])
    pool(at.compile_it, backend)
    expected = {name: want(fleet, name) for name in ("a", "b", "c", None)}
    assert not torch.allclose(expected["b"], expected["c"])
    for recompiles, hits, eager, same, outputs in pool(at.watched_swaps, paths(fleet, ORDER)):
        assert (recompiles, eager, same) == (0, {}, True)
        assert hits >= len(ORDER)
        for name, output in zip(ORDER, outputs, strict=True):
            torch.testing.assert_close(output, expected[name])


@pytest.mark.parametrize("kind", ["tensor parallel", "replica"])
def test_every_rank_reports_the_same_digest_and_name(
    pool: RankPool, fleet: dict[str, Path], kind: str
) -> None:
    pool(at.bring_up, kind, fleet["a"])
    digests = {}
    for name in ("a", "b", "c", None, "a"):
        found = pool(at.swap, fleet[name] if name else None)
        assert len(set(found)) == 1
        digest, path, active = found[0]
        assert path == "arena"
        assert active == (str(fleet[name]) if name else None)
        assert digests.setdefault(name, digest) == digest
    assert len(set(digests.values())) == 4


def test_a_bank_a_scale_and_what_is_saved_speak_of_the_adapter_in_place(
    pool: RankPool, fleet: dict[str, Path], tmp_path: Path
) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    added = pool(at.bank_of, fleet)
    assert all(digests == added[0] for digests in added)
    for name in ("c", "b", "b", "a"):
        for output in pool(at.use, name):
            torch.testing.assert_close(output, want(fleet, name))
    pool(at.use, "b")
    pool(at.set_scale, 0.0)
    for output in pool(at.run):
        torch.testing.assert_close(output, want(fleet, None))
    pool(at.set_scale, 1.0)
    original = load_file(fleet["b"] / "adapter_model.safetensors")
    for state in pool(at.whole_state):
        assert state.keys() == original.keys()
        assert all(torch.equal(state[name], value) for name, value in original.items())


def test_what_a_model_that_is_cut_saves_is_the_whole_adapter_at_its_own_rank(
    pool: RankPool, fleet: dict[str, Path], tmp_path: Path
) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    pool(at.swap, fleet["b"])
    original = load_file(fleet["b"] / "adapter_model.safetensors")
    for folder in pool(at.save, tmp_path):
        saved = load_file(folder / "adapter_model.safetensors")
        assert saved.keys() == original.keys()
        assert all(torch.equal(saved[name], value) for name, value in original.items())
        assert LoraConfig.from_pretrained(folder).r == 2


def test_saving_on_one_rank_only_waits_for_the_others_in_vain(
    pool: RankPool, fleet: dict[str, Path], tmp_path: Path
) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"], None, 0.2)
    (raised,) = pool.attempt_on([1], at.save, tmp_path)
    assert raised.text.startswith("rank 0 did not answer within 0.2 s")
    assert not list(tmp_path.iterdir())
    pool(at.patience, 30)
    pool(at.swap, fleet["b"])


def test_a_scale_that_only_one_rank_sets_is_refused(pool: RankPool, fleet: dict[str, Path]) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    count = len(pool.attempt(at.run))
    before = pool(at.bits)
    found = pool.attempt(at.set_scale, own=[(2.0 if rank == 1 else 1.0,) for rank in range(count)])
    for raised in found:
        assert isinstance(raised, Raised)
        assert raised.text.startswith("rank 1 was given scale 2.0, and rank 0 another, scale 1.0")
    for then, now in zip(before, pool(at.bits), strict=True):
        assert all(torch.equal(value, now[name]) for name, value in then.items())


@pytest.mark.parametrize(
    ("verb", "told"), [("swap", "{} as 'other'"), ("set_scale", "{} of 'other'")]
)
def test_another_name_on_one_rank_is_refused(
    pool: RankPool, fleet: dict[str, Path], verb: str, told: str
) -> None:
    pool(at.bring_up_two, fleet["a"], fleet["b"])
    value = fleet["c"] if verb == "swap" else 0.5
    names = ["other" if rank == 1 else "default" for rank in range(pool.count)]
    for raised in pool.attempt(at.change_name, verb, value, own=[(name,) for name in names]):
        assert raised.text.startswith("rank 1 was given ")
        assert told.format(value) in raised.text


def test_a_model_that_one_rank_has_prepared_otherwise_is_refused(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    pool.attempt_on([1], at.prepared_again, 16)
    for raised in pool.attempt(at.swap, fleet["b"]):
        assert raised.text.startswith(
            "rank 1 has another model than rank 0, or prepared it otherwise"
        )
    pool(at.prepared_again, 16)
    for digest, _, _ in (found := pool(at.swap, fleet["b"])):
        assert digest == found[0][0]


def test_preparing_twice_keeps_every_parameter_and_widening_keeps_the_output(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    assert all(pool(at.prepared_again, 8))
    assert not any(pool(at.prepared_again, 16))
    for output in pool(at.run):
        torch.testing.assert_close(output, want(fleet, "a"))
    for name in ("c", None, "a"):
        pool(at.swap, fleet[name] if name else None)
        for output in pool(at.run):
            torch.testing.assert_close(output, want(fleet, name))


def test_a_preparation_that_fails_leaves_the_very_parameters(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    for same, raised in pool(at.interrupted_preparation, fleet["a"]):
        assert raised == "OSError"
        assert same
    for output in pool(at.run):
        torch.testing.assert_close(output, want(fleet, "a"))


def test_a_mesh_that_does_not_divide_the_width_has_uneven_shards(
    pool: RankPool, tmp_path: Path
) -> None:
    base = at.odd_net()
    fleet = write_fleet(
        tmp_path,
        base,
        {n: {"r": r, "target_modules": ["up", "down"]} for n, r in {"a": 4, "b": 8}.items()},
    )
    pool(at.bring_up_odd, fleet["a"])
    for name in ("b", "a"):
        pool(at.swap, fleet[name])
        for output in pool(at.run):
            torch.testing.assert_close(output, run(fresh(base, fleet[name]), at.X))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("dora", "up: DoRA needs the norm of the base weight, which is cut"),
        ("saved", "is cut over several devices, and only lora_A and lora_B are swapped"),
        ("partial", "is a sum over several devices"),
    ],
)
def test_what_cannot_be_swapped_by_its_shards_is_refused_by_name(
    pool: RankPool, tmp_path: Path, what: str, says: str
) -> None:
    more: dict[str, Any] = {"dora": {"use_dora": True}, "saved": {"modules_to_save": ["last"]}}
    folder = write_adapter(
        tmp_path / "a", at.net(), r=4, target_modules=["up", "down"], **more.get(what, {})
    )
    for found in pool.attempt(at.refused_preparation, what, folder):
        assert found.kind == "UnsupportedLayerError"
        assert says in found.text


def test_a_state_dict_of_shards_is_refused_and_one_of_whole_tensors_is_taken(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    for found in pool.attempt(at.swap_shards):
        assert found.kind == "ValueError"
        assert "full_tensor()" in found.text
    pool(at.swap_whole, fleet["b"])
    for output in pool(at.run):
        torch.testing.assert_close(output, want(fleet, "b"))


def test_a_state_dict_is_loaded_again_at_the_rank_of_its_adapter(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    pool(at.swap, fleet["b"])
    pool(at.remember_state)
    pool(at.swap, fleet["c"])
    pool(at.load_remembered)
    pool(at.set_scale, 1.0)
    for state in pool(at.whole_state):
        original = load_file(fleet["b"] / "adapter_model.safetensors")
        assert all(torch.equal(state[name], value) for name, value in original.items())


def test_adapters_of_a_cut_model_are_not_combined(pool: RankPool, fleet: dict[str, Path]) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    for found in pool.attempt(at.combine):
        assert found.kind == "HotswapError"
        assert "up.lora_B.weight is cut over several devices" in found.text


def test_a_user_on_one_rank_keeps_every_rank_from_swapping(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    pool(at.bank_of, fleet)
    count = len(pool(at.begin_use, "c"))
    found = pool.attempt(at.swap_while_used, fleet["b"], own=[(r == 1,) for r in range(count)])
    assert found[1].kind == "BusyError"
    assert [one.kind for one in found[:1] + found[2:]] == ["RankError"] * (count - 1)
    assert found[0].text.startswith("rank 1 cannot (BusyError: ")
    for output in pool(at.run):
        torch.testing.assert_close(output, want(fleet, "c"))
    pool(at.swap, fleet["b"])


def test_a_name_that_one_bank_lacks_is_refused_by_all(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up, "tensor parallel", fleet["a"])
    count = len(pool(at.bank_of, fleet))
    found = pool.attempt(at.use, own=[("c" if rank else "d",) for rank in range(count)])
    assert [one.kind for one in found] == ["UnknownAdapterError"] + ["RankError"] * (count - 1)
    for output in pool(at.use, "c"):
        torch.testing.assert_close(output, want(fleet, "c"))


def test_workers_without_a_process_group_vote_through_a_store_of_their_own(
    pool: RankPool, fleet: dict[str, Path], tmp_path: Path
) -> None:
    pool(at.bring_up_with_store, fleet["a"], str(tmp_path / "store"))
    count = len(pool(at.swap, fleet["b"]))
    odd = [(fleet["c" if rank else "a"],) for rank in range(count)]
    found = pool.attempt(at.swap, own=odd)
    assert [one.kind for one in found] == ["RankError"] * count
    assert f"rank 1 was given {fleet['c']}, and rank 0 another, {fleet['a']}" in found[0].text
    for output in pool(at.run):
        torch.testing.assert_close(output, want(fleet, "b"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan; expected seconds above 0, 1000000 at most"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"rank": 0}, "store=, rank= and world_size= together"),
        ({"store": object(), "rank": 2, "world_size": 2}, "rank is 2; expected one of 0 to 1"),
        ({}, "torch.distributed is not initialised"),
    ],
)
def test_swap_together_says_what_it_needs(
    fleet: dict[str, Path], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        hotswap.swap_together(fresh(at.net(), fleet["a"]), **options)


def test_a_model_on_one_device_votes_with_nobody(fleet: dict[str, Path]) -> None:
    model = PeftModel.from_pretrained(at.net(), fleet["a"])
    hotswap.prepare(model, target_rank=8)
    report = hotswap.swap(model, fleet["b"])
    assert report.path == "arena"


def test_replicas_under_ddp_are_swapped_through_the_wrapper(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up_ddp, fleet["a"])
    for name in ("b", None, "c"):
        pool(at.swap, fleet[name] if name else None)
        for output in pool(at.run):
            torch.testing.assert_close(output, want(fleet, name))
    count = len(pool(at.run))
    odd = [(fleet["a" if rank else "b"],) for rank in range(count)]
    assert {one.kind for one in pool.attempt(at.swap, own=odd)} == {"RankError"}
    for output in pool(at.run):
        torch.testing.assert_close(output, want(fleet, "c"))


def test_what_is_cut_along_its_rank_axis_is_put_together_by_prepare(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up_by_rank, fleet["a"], False)
    for output in pool(at.run):
        torch.testing.assert_close(output, want(fleet, "a"))
    for name in ("b", "c", None, "a"):
        pool(at.swap, fleet[name] if name else None)
        for output in pool(at.run):
            torch.testing.assert_close(output, want(fleet, name))


def test_what_is_cut_along_its_rank_axis_after_prepare_is_refused(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up_by_rank, fleet["a"], True)
    for found in pool.attempt(at.swap, fleet["b"]):
        assert found.kind == "UnsupportedLayerError"
        assert "up.lora_A.weight" in found.text
        assert "is cut along its rank axis, which padding needs whole" in found.text
    for output in pool(at.run):
        torch.testing.assert_close(output, want(fleet, "a"))


def test_a_model_that_is_cut_after_prepare_is_swapped_tensor_by_tensor(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.bring_up_cut_later, fleet["a"])
    for found in pool.attempt(at.swap, fleet["b"]):
        assert found.kind == "HotswapError"
        assert "call hotswap.swap_together(model) on every rank" in found.text
    pool(at.together)
    for name in ("b", None, "c"):
        found = pool(at.swap, fleet[name] if name else None)
        assert {path for _, path, _ in found} == {"fallback"}
        assert len({digest for digest, _, _ in found}) == 1
        for output in pool(at.run):
            torch.testing.assert_close(output, want(fleet, name))
