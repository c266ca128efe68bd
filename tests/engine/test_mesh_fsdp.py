"""FSDP2 brings the shards of its groups back: LoRA weights in one are refused, whole ones are swapped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pytest_hotswap.ranks.pool import Raised, RankPool
from tests.support import rank_models as at
from tests.support.models import fresh, run, write_fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_fleet(
        tmp_path_factory.mktemp("fleet"),
        at.net(),
        {
            name: {"r": rank, "lora_alpha": 8, "target_modules": at.NAMES}
            for name, rank in {"a": 4, "b": 8}.items()
        },
    )


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()


def refused(found: list[Raised]) -> None:
    for each in found:
        assert each.kind == "UnsupportedLayerError"
        assert each.text.startswith("down.lora_A.weight, down.lora_B.weight, last.lora_A.weight, ")
        assert (
            " and 2 more: is in a group of FSDP, which would bring the old shards back" in each.text
        )
        assert "ignored_params" in each.text


@pytest.mark.parametrize("root", ["", " root"])
@pytest.mark.parametrize("ran", [False, True])
def test_prepare_refuses_lora_in_a_sharded_group(
    pool: RankPool, fleet: dict[str, Path], root: str, ran: bool
) -> None:
    pool(at.fully_shard_after, f"shard{root}", fleet["a"])
    if ran:
        pool(at.run)  # the group of the root keeps whole weights after a forward
    refused(pool.attempt(at.prepare))


@pytest.mark.parametrize("root", ["", " root"])
@pytest.mark.parametrize("ran", [False, True])
def test_swap_refuses_lora_that_was_put_into_a_sharded_group(
    pool: RankPool, fleet: dict[str, Path], root: str, ran: bool
) -> None:
    pool(at.fully_shard_after, f"prepared, shard{root}", fleet["a"])
    if ran:
        pool(at.run)
    refused(pool.attempt(at.swap, fleet["b"]))
    refused(pool.attempt(at.bank_of, fleet))
    for output in pool(at.run):
        torch.testing.assert_close(output, run(fresh(at.net(), fleet["a"]), at.X))


@pytest.mark.parametrize("kind", ["prepared, whole", "prepared, whole, root", "base first"])
@pytest.mark.parametrize("after", [at.reshard, at.state_dict])
def test_whole_lora_is_swapped_and_stays(
    pool: RankPool, fleet: dict[str, Path], kind: str, after: object
) -> None:
    pool(at.fully_shard_after, kind, fleet["a"])
    if kind == "base first":
        pool(at.prepare)
    pool(at.run)
    for name in ("b", None, "a", "b"):
        found = pool(at.swap, fleet[name] if name else None)
        assert [path for _, path, _ in found] == ["arena", "arena"]
        pool(after)
        want = run(fresh(at.net(), fleet[name]) if name else at.net(), at.X)
        for output in pool(at.run):
            torch.testing.assert_close(output, want)
    pool(at.bank_of, fleet)
    for name in ("a", "b"):
        for output in pool(at.use, name):
            torch.testing.assert_close(output, run(fresh(at.net(), fleet[name]), at.X))


@pytest.fixture(scope="module")
def four() -> Iterator[RankPool]:
    pool = RankPool(4)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("ranks", "kind", "backend"),
    [
        ("pool", "base first", "eager"),
        ("pool", "base first", "inductor"),
        ("pool", "prepared, whole", "inductor"),
        ("four", "prepared, whole", "eager"),
    ],
)
def test_compiled_code_of_a_model_whose_lora_is_whole_serves_each_swap(
    request: pytest.FixtureRequest,
    fleet: dict[str, Path],
    ranks: str,
    kind: str,
    backend: str,
) -> None:
    pool: RankPool = request.getfixturevalue(ranks)
    pool(at.fully_shard_after, kind, fleet["a"])
    if kind == "base first":
        pool(at.prepare)
    pool(at.compile_it, backend)
    order = ["b", None, "a", "b"]
    want = [run(fresh(at.net(), fleet[name]) if name else at.net(), at.X) for name in order]
    found = pool(at.watched_swaps, [fleet[name] if name else None for name in order])
    for recompiles, hits, eager, same, outputs in found:
        assert (recompiles, eager, same) == (0, {}, True)
        assert hits >= len(at.NAMES) * len(order)  # the code of each layer, within its group
        for output, wanted in zip(outputs, want, strict=True):
            torch.testing.assert_close(output, wanted)


def test_layers_that_are_compiled_before_they_are_sharded_have_whole_graphs(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.fully_shard_after, "prepared, whole, compiled", fleet["a"])
    order = ["b", None, "a", "b"]
    found = pool(at.watched_swaps, [fleet[name] if name else None for name in order])
    for recompiles, hits, eager, same, outputs in found:
        assert (recompiles, hits, eager, same) == (0, len(at.NAMES) * len(order), {}, True)
        for name, output in zip(order, outputs, strict=True):
            want = run(fresh(at.net(), fleet[name]) if name else at.net(), at.X)
            torch.testing.assert_close(output, want)


@pytest.mark.parametrize("kind", ["FSDP2 around it", "FSDP1", "FSDP1 with its own parameters"])
@pytest.mark.parametrize("prepared", [False, True])
def test_lora_that_fsdp_manages_from_outside_or_in_its_first_version_is_refused(
    pool: RankPool, fleet: dict[str, Path], kind: str, prepared: bool
) -> None:
    pool(at.wrapped, kind, fleet["a"], prepared)
    calls = [(at.swap, fleet["b"])] if prepared else [(at.prepare,)]
    for call, *args in calls:
        for each in pool.attempt(call, *args):
            assert each.kind == "UnsupportedLayerError"
            assert "is in a group of FSDP, which would bring the old shards back" in each.text


def test_fsdp_around_a_model_whose_lora_is_whole_is_prepared_and_swapped(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    pool(at.wrapped, "FSDP2 around it, whole", fleet["a"], False)
    pool(at.prepare)
    for name in ("b", "a"):
        pool(at.swap, fleet[name])
        pool(at.reshard)
        for output in pool(at.run):
            torch.testing.assert_close(output, run(fresh(at.net(), fleet[name]), at.X))
