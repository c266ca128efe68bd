"""Whatever happens to one rank during a swap, every rank that survives is bit-identical to before."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_hotswap.ranks.pool import DEAD, RankPool
from tests.support import rank_models as at
from tests.support.models import fresh, run, write_adapter, write_fleet
from tests.support.rank_interrupts import interrupted_swap

STEPS = ["read", "vote", "before", "middle", "after"]
SOON, LATE = 0.4, 0.8  # seconds that the others wait, and that a late rank takes
RECIPES = {"a": (4, 8), "b": (2, 8), "c": (8, 4)}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fleet")
    recipes = {
        name: {"r": rank, "lora_alpha": alpha, "target_modules": at.NAMES}
        for name, (rank, alpha) in RECIPES.items()
    }
    return write_fleet(folder, at.net(), recipes)


def pool_of(kind: str, fleet: dict[str, Path], count: int = 2) -> RankPool:
    pool = RankPool(count)
    pool(at.bring_up, kind, fleet["a"])
    pool(at.swap, fleet["a"])
    return pool


@pytest.fixture(scope="module", params=["tensor parallel", "replica"])
def pool(request: pytest.FixtureRequest, fleet: dict[str, Path]) -> Iterator[RankPool]:
    pool = pool_of(request.param, fleet)
    yield pool
    pool.close()


def faults(
    victim: int, step: str, fault: str, count: int = 2
) -> list[tuple[tuple[str, str, float] | None]]:
    return [((step, fault, LATE) if rank == victim else None,) for rank in range(count)]


def check_a_good_swap(pool: RankPool, folder: Path) -> None:
    pool(at.swap, folder)
    for output in pool(at.run):
        torch.testing.assert_close(output, run(fresh(at.net(), folder), at.X))


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(("step", "fault"), [*itertools.product(STEPS, ["raise", "late"])])
def test_a_rank_that_fails_or_is_late(
    pool: RankPool, fleet: dict[str, Path], step: str, fault: str, victim: int
) -> None:
    patience = SOON if fault == "late" else 30
    found = pool(at.faulty_swap, patience, fleet["b"], own=faults(victim, step, fault))
    for rank, (raised, same, _) in enumerate(found):
        assert same, f"rank {rank} has changed"
        assert raised is not None, f"rank {rank} has swapped"
        kind, text, named = raised
        if rank == victim and fault == "raise":
            assert (kind, text) == ("OSError", f"injected at {step}")
        else:
            assert kind == "RankError"
            assert named == victim
            said = f"cannot (OSError: injected at {step})"
            late = f"did not answer within {SOON:g} s"
            assert text.startswith(f"rank {victim} {said if fault == 'raise' else late};")
    check_a_good_swap(pool, fleet["c"])
    pool(at.swap, fleet["a"])


def test_what_fails_on_one_rank_after_the_last_vote_takes_nothing_back(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    found = pool(at.faulty_swap, 30, fleet["b"], own=faults(1, "report", "raise"))
    assert [raised and raised[0] for raised, _, _ in found] == [None, "OSError"]
    assert [active for _, _, active in found] == [str(fleet["b"])] * 2
    for output in pool(at.run):
        torch.testing.assert_close(output, run(fresh(at.net(), fleet["b"]), at.X))
    pool(at.swap, fleet["a"])


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("fault", [None, ("after", "raise", 0.0), ("after", "late", 0.2)])
def test_a_rank_that_is_interrupted_after_its_last_word_has_what_the_others_have(
    pool: RankPool, fleet: dict[str, Path], fault: tuple[str, str, float] | None, victim: int
) -> None:
    own = [(rank == victim, fault) for rank in range(2)]
    found = pool(interrupted_swap, fleet["b"], own=own)
    stands = fault is None or fault[1] == "late"
    want = fleet["b" if stands else "a"]
    assert found[victim][0] == "KeyboardInterrupt"
    assert found[1 - victim][0] == ("" if stands else "OSError")
    for _, active, output in found:
        assert active == str(want)
        torch.testing.assert_close(output, run(fresh(at.net(), want), at.X))
    check_a_good_swap(pool, fleet["c"])
    pool(at.swap, fleet["a"])


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("step", STEPS)
def test_a_rank_that_dies(fleet: dict[str, Path], step: str, victim: int) -> None:
    pool = pool_of("tensor parallel", fleet)
    try:
        found = pool.attempt(at.faulty_swap, SOON, fleet["b"], own=faults(victim, step, "die"))
        assert found[victim] == DEAD
        raised, same, active = found[1 - victim]
        assert same
        assert active == str(fleet["a"])
        kind, text, named = raised
        assert kind == "RankError"
        if victim == 0:  # the store was in this process
            assert text.startswith("the store through which the ranks agree is lost")
        else:
            assert (named, text.partition(" ")[2].partition(";")[0]) == (
                1,
                f"1 did not answer within {SOON:g} s",
            )
    finally:
        pool.close()


def other(fleet: dict[str, Path], folder: Path, what: str) -> Path:
    """A copy of an adapter in which one value is another one."""
    shutil.copytree(fleet["b"], folder)
    if what == "too large":
        shutil.rmtree(folder)
        return write_adapter(folder, at.net(), r=16, target_modules=at.NAMES)
    if what == "missing":
        (folder / "adapter_model.safetensors").unlink()
        return folder
    if what == "another alpha":
        config = folder / "adapter_config.json"
        config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
        return folder
    name = "base_model.model.up.lora_B.weight"  # (12, 2), cut by rows
    tensors = load_file(folder / "adapter_model.safetensors")
    row = 0 if "first" in what else -1
    tensors[name][row, 0] = float("nan") if "NaN" in what else 3.0
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    "what",
    [
        "a value of the first shard",
        "a value of the last shard",
        "another alpha",
        "NaN in the first",
        "NaN in the last",
        "too large",
        "missing",
    ],
)
def test_a_rank_that_is_given_something_else(
    pool: RankPool, fleet: dict[str, Path], tmp_path: Path, what: str, victim: int
) -> None:
    odd = other(fleet, tmp_path / "odd", what)
    own = [(odd if rank == victim else fleet["b"], None) for rank in range(2)]
    found = pool(at.faulty_swap, 30, own=own)
    assert all(same for _, same, _ in found)
    assert None not in [raised for raised, _, _ in found]
    assert "RankError" in [raised[0] for raised, _, _ in found]
    check_a_good_swap(pool, fleet["c"])
    pool(at.swap, fleet["a"])


@pytest.mark.parametrize("shard", ["first", "last"])
def test_NaN_that_only_one_rank_puts_in_place_is_refused_by_all(
    pool: RankPool, fleet: dict[str, Path], tmp_path: Path, shard: str
) -> None:
    odd = other(fleet, tmp_path / "odd", f"NaN in the {shard}")
    found = pool(at.faulty_swap, 30, odd, None)
    assert all(same and raised is not None for raised, same, _ in found)
    assert any("NaN" in raised[1] for raised, _, _ in found)
    check_a_good_swap(pool, fleet["c"])
    pool(at.swap, fleet["a"])


def test_a_swap_that_one_rank_leaves_out_is_refused_and_the_next_one_is_good(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    for _ in range(2):
        (alone,) = pool.attempt_on([0], at.faulty_swap, SOON, fleet["b"], None)
        assert (alone[0][0], alone[0][2], alone[1]) == ("RankError", 1, True)
    check_a_good_swap(pool, fleet["c"])
    pool(at.swap, fleet["a"])


def test_a_swap_that_one_rank_makes_alone_is_refused_and_the_next_one_is_good(
    pool: RankPool, fleet: dict[str, Path]
) -> None:
    for _ in range(2):
        (alone,) = pool.attempt_on([0], at.faulty_swap, SOON, fleet["b"], None)
        assert alone[0][:1] == ("RankError",)
        assert alone[1]
    (late,) = pool.attempt_on([1], at.faulty_swap, SOON, fleet["b"], None)
    assert late[1]
    assert late[0][2] == 1  # the others had given it up
    check_a_good_swap(pool, fleet["c"])
    pool(at.swap, fleet["a"])


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("step", ["vote", "before", "middle", "after"])
def test_a_rank_that_fails_while_a_bank_is_used(
    pool: RankPool, fleet: dict[str, Path], step: str, victim: int
) -> None:
    pool(at.bank_of, fleet)
    pool(at.use, "a")
    own = [(one[0], at.use) for one in faults(victim, step, "raise")]
    found = pool(at.faulty_swap, 30, "b", own=own)
    for rank, (raised, same, active) in enumerate(found):
        assert same
        assert active == "a"
        assert raised[0] == ("OSError" if rank == victim else "RankError")
    for output in pool(at.use, "c"):
        torch.testing.assert_close(output, run(fresh(at.net(), fleet["c"]), at.X))
    pool(at.swap, fleet["a"])


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("step", ["vote", "after"])
def test_a_rank_that_fails_while_a_scale_is_set(
    pool: RankPool, fleet: dict[str, Path], step: str, victim: int
) -> None:
    own = [(one[0], at.set_scale) for one in faults(victim, step, "raise")]
    found = pool(at.faulty_swap, 30, 0.5, own=own)
    for rank, (raised, same, _) in enumerate(found):
        assert same
        assert raised[0] == ("OSError" if rank == victim else "RankError")
    check_a_good_swap(pool, fleet["c"])
    pool(at.swap, fleet["a"])


def test_a_process_that_speaks_as_a_rank_has_spoken_before_changes_nothing(
    fleet: dict[str, Path],
) -> None:
    pool = pool_of("replica", fleet)
    try:
        pool.attempt_on([1], at.started_again)
        found = pool(at.faulty_swap, 1.0, fleet["b"], None)
        assert all(same for _, same, _ in found)
        assert "rank 1 has spoken in this store before" in found[1][0][1]
    finally:
        pool.close()


@pytest.fixture(scope="module")
def four(fleet: dict[str, Path]) -> Iterator[RankPool]:
    pool = pool_of("tensor parallel", fleet, 4)
    yield pool
    pool.close()


class TestFourRanks:
    @pytest.mark.parametrize("victim", [0, 3])
    @pytest.mark.parametrize(
        ("step", "fault"),
        [*((step, "raise") for step in STEPS), ("vote", "late"), ("middle", "late")],
    )
    def test_one_that_fails_or_is_late_is_named_to_the_three_others(
        self, four: RankPool, fleet: dict[str, Path], step: str, fault: str, victim: int
    ) -> None:
        patience = SOON if fault == "late" else 30
        found = four(at.faulty_swap, patience, fleet["b"], own=faults(victim, step, fault, 4))
        assert [same for _, same, _ in found] == [True] * 4
        for rank, (raised, _, _) in enumerate(found):
            assert raised is not None, f"rank {rank} has swapped"
            if rank != victim:
                assert (raised[0], raised[2]) == ("RankError", victim)
        check_a_good_swap(four, fleet["c"])
        four(at.swap, fleet["a"])

    def test_two_that_fail_at_different_steps(self, four: RankPool, fleet: dict[str, Path]) -> None:
        own: list[tuple[Any]] = [
            (None,),
            (("middle", "raise", 0.0),),
            (None,),
            (("after", "raise", 0.0),),
        ]
        found = four(at.faulty_swap, 30, fleet["b"], own=own)
        assert [same for _, same, _ in found] == [True] * 4
        assert [raised[0] for raised, _, _ in found] == ["RankError", "OSError"] * 2
        check_a_good_swap(four, fleet["c"])
        four(at.swap, fleet["a"])

    def test_NaN_in_one_of_four_shards_and_other_bytes_on_one_rank(
        self, four: RankPool, fleet: dict[str, Path], tmp_path: Path
    ) -> None:
        for what in ("NaN in the last", "a value of the first shard"):
            odd = other(fleet, tmp_path / what, what)
            own = [(odd if rank == 2 else fleet["b"], None) for rank in range(4)]
            found = four(at.faulty_swap, 30, own=own)
            assert [same for _, same, _ in found] == [True] * 4
            assert None not in [raised for raised, _, _ in found]
        check_a_good_swap(four, fleet["c"])
        four(at.swap, fleet["a"])

    def test_three_survive_the_death_of_one(self, four: RankPool, fleet: dict[str, Path]) -> None:
        """The last one: nothing can be swapped afterwards."""
        found = four.attempt(at.faulty_swap, SOON, fleet["b"], own=faults(2, "middle", "die", 4))
        assert found[2] == DEAD
        for raised, same, active in found[:2] + found[3:]:
            assert same
            assert active == str(fleet["a"])
            assert (raised[0], raised[2]) == ("RankError", 2)
