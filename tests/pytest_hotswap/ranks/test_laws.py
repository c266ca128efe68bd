"""Every law is judged on every rank: a defect of one rank is found, by the law that it breaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

from hotswap.report.laws import LAWS
from pytest_hotswap import HotswapContract, TensorParallelSubject
from pytest_hotswap.contract.contract import LawName
from pytest_hotswap.contract.judge import names_of
from pytest_hotswap.contract.preparation import ODD
from pytest_hotswap.ranks.controller import OverRanks, end_ranks, worst_of
from tests.support import rank_models, rank_subjects
from tests.support.models import write_fleet

RECIPES = {"a": (4, 8), "b": (2, 8)}
CASES = {"defect": "missing tensor", "style": "compile() in place", "odd": next(iter(ODD))}
DRAWN = "test_zero_recompiles__any_swap_sequence"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    recipes = {
        name: {"r": rank, "lora_alpha": alpha, "target_modules": rank_models.NAMES}
        for name, (rank, alpha) in RECIPES.items()
    }
    write_fleet(folder, rank_models.net(), recipes)
    return folder


def deployed(kind: type[Any], fleet: Path, folder: Path, **given: Any) -> OverRanks:
    deployment = OverRanks(kind(adapters=[str(fleet / "*")], **given), folder)
    assert deployment.bring_up() == ""
    return deployment


@pytest.fixture(scope="module", params=[rank_subjects.Cut, rank_subjects.Replicas])
def sound(
    request: pytest.FixtureRequest, fleet: Path, tmp_path_factory: pytest.TempPathFactory
) -> OverRanks:
    return deployed(request.param, fleet, tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module", autouse=True)
def _few_examples() -> Iterator[None]:
    settings.register_profile("few", max_examples=10)
    settings.load_profile("few")
    yield
    settings.load_profile("default")
    end_ranks()


def judged(deployment: OverRanks, test: str, **params: Any) -> dict[str, Any]:
    """Judge one test as pytest does; what it recorded. Raises what a test raises."""
    item = SimpleNamespace(
        name=test,
        originalname=test,
        cls=HotswapContract,
        obj=getattr(HotswapContract(), test),
        user_properties=[],
        callspec=SimpleNamespace(params=params),
    )
    deployment.judge(item)
    return dict(item.user_properties)


def violations(deployment: OverRanks, law: str, *, controls: bool = False) -> Iterator[str]:
    """What the tests of a law say, each of one case only; those that do not apply are silent."""
    adapter = deployment.subject.adapter_paths()[0]
    for test in names_of(law, controls=controls):
        if LawName.of(test).excuse(deployment.subject):
            continue
        wanted = getattr(HotswapContract, test).__code__.co_varnames
        params = {
            key: value for key, value in (CASES | {"adapter": adapter}).items() if key in wanted
        }
        try:
            judged(deployment, test, **params)
        except pytest.skip.Exception:
            continue
        except pytest.fail.Exception as error:
            yield str(error)


@pytest.mark.parametrize("law", LAWS)
def test_a_sound_deployment_obeys_on_every_rank(sound: OverRanks, law: str) -> None:
    assert list(violations(sound, law)) == []
    assert list(violations(sound, law, controls=True)) == []


def test_swaps_that_Hypothesis_draws_are_the_same_on_every_rank(sound: OverRanks) -> None:
    assert judged(sound, DRAWN)["hotswap.swap_times"]


def test_what_is_recorded_is_the_worst_of_any_rank(sound: OverRanks) -> None:
    adapter = sound.subject.adapter_paths()[0]
    found = judged(sound, "test_zero_recompiles", adapter=adapter)
    assert found["hotswap.recompiles"] == 0
    assert found["hotswap.hits"] >= found["hotswap.swaps"] > 0
    assert found["hotswap.swap_times"]


@pytest.mark.parametrize("law", rank_subjects.TWINS)
def test_a_defect_on_one_rank_is_found_by_its_law(law: str, fleet: Path, tmp_path: Path) -> None:
    deployment = deployed(rank_subjects.TWINS[law], fleet, tmp_path)
    found = next(violations(deployment, law), None)
    assert found is not None, f"{law} does not see it"
    assert f"{law}: " in found


def test_what_fails_on_one_rank_fails_what_Hypothesis_draws(fleet: Path, tmp_path: Path) -> None:
    deployment = deployed(rank_subjects.KeepsItsShard, fleet, tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"swap-equals-load: . at the end of "):
        judged(deployment, DRAWN)


def test_a_rank_that_fails_is_named_and_the_next_law_is_judged(fleet: Path, tmp_path: Path) -> None:
    file = tmp_path / "fails"
    deployment = deployed(rank_subjects.FailsOnce, fleet, tmp_path, file=str(file))
    for how, says in {
        "raises": r"^rank 1: UnreadableAdapterError: gone: ",
        "dies": r"^rank 1 has died \(exit code 3\); the ranks are started again$",
        "hangs": r"^rank 1 has not answered, and no rank did anything, for 15 s; the ranks are",
    }.items():
        judged(deployment, "test_swap_has_effect__none")
        file.write_text(how)
        with pytest.raises(pytest.fail.Exception, match=says):
            judged(deployment, "test_swap_has_effect__none")


def test_a_class_within_a_function_is_refused(fleet: Path, tmp_path: Path) -> None:
    class Local(rank_subjects.Cut):
        pass

    deployment = OverRanks(Local(adapters=[str(fleet / "*")]), tmp_path)
    with pytest.raises(pytest.UsageError, match="is within a function, where no rank finds it"):
        deployment.bring_up()


def test_inputs_that_each_rank_draws_for_itself_are_refused(fleet: Path, tmp_path: Path) -> None:
    deployment = OverRanks(rank_subjects.FeedsEachAnother(adapters=[str(fleet / "*")]), tmp_path)
    assert "inputs() gives rank 1 others than rank 0; draw them" in deployment.bring_up()


def test_a_model_that_is_cut_is_brought_up_by_the_contract_only() -> None:
    with pytest.raises(pytest.UsageError, match="on a rank, which HotswapContract starts"):
        TensorParallelSubject(base="base").sharded()


def test_the_worst_of_each_property_is_kept() -> None:
    one = [("hotswap.hits", 3), ("hotswap.recompiles", 0), ("hotswap.note", "a")]
    other = [("hotswap.hits", 2), ("hotswap.recompiles", 1), ("hotswap.law", "b")]
    assert dict(worst_of([one, other])) == {
        "hotswap.hits": 2,
        "hotswap.recompiles": 1,
        "hotswap.note": "a",
        "hotswap.law": "b",
    }
