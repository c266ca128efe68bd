"""Every faulty engine is killed by the law that it breaks; the sound engine obeys them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hotswap.checks.equivalence import Comparison
from hotswap.engine.layout.slots import lora_layers
from hotswap.report.laws import LAWS
from pytest_hotswap.contract.judge import names_of, violations
from pytest_hotswap.contract.placed import blame
from tests.mutants.engines import ENGINES
from tests.mutants.run import SOUND, Bench, main
from tests.mutants.subject import Engine


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    torch._dynamo.reset()
    yield Bench(tmp_path_factory.mktemp("mutants"))
    torch._dynamo.reset()


@pytest.mark.parametrize("fleet", SOUND)
@pytest.mark.parametrize("law", LAWS)
def test_the_sound_engine_obeys(bench: Bench, law: str, fleet: str) -> None:
    assert list(violations(bench.shared[fleet], law)) == []


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
def test_a_faulty_engine_is_killed_by_the_law_it_breaks(bench: Bench, engine: type[Engine]) -> None:
    found = bench.killed_by(engine, engine.law)
    assert found is not None
    assert found.raised is None, found  # an error of the engine is not the law's finding


SAME = Comparison(equal=True, max_error=0.0, tolerance=1.0, detail="")
OTHER = Comparison(equal=False, max_error=2.0, tolerance=1.0, detail="")


class RefusesAlways(Engine):
    """No model is prepared and no adapter swapped in."""

    own = True

    def prepare(self, model: Any, plan: Any) -> None:
        raise ValueError("refused")

    def swap(self, model: Any, adapter: Any) -> None:
        raise ValueError("refused")


class SwapsRefused(Engine):
    """No adapter is swapped in."""

    def swap(self, model: Any, adapter: Any) -> None:
        raise ValueError("refused")


class NeverCompiled(Engine):
    """compile() forgets to."""

    own = True

    def compile(self, model: Any) -> Any:
        return model


class RecompilesAlways(Engine):
    """Each call changes a number that the next one reads."""

    own = True

    def base_model(self) -> Any:
        model = super().base_model()
        model.calls = 0

        def count(module: Any, _inputs: Any, output: Any) -> Any:
            module.calls += 1
            return output + 0 * module.calls

        model.register_forward_hook(count)
        return model


CONTRACT, DEPLOYMENT = "pytest_hotswap.contract.contract", "pytest_hotswap.contract.deployment"
FLOAT64 = "pytest_hotswap.contract.float64"
EQUAL = {f"{module}.compare": lambda *_, **__: SAME for module in (CONTRACT, DEPLOYMENT, FLOAT64)}
UNEQUAL = {f"{DEPLOYMENT}.compare": lambda *_, **__: OTHER}
UNCHANGED = {"hotswap.checks.snapshot.Snapshot.changes": lambda *_, **__: []}
COVERED = {f"{CONTRACT}.uncovered": lambda *_: []}
ENVELOPE = "pytest_hotswap.contract.envelope"
PLACED = {f"{CONTRACT}.misplaced": lambda *_: []}
KEPT = {f"{ENVELOPE}.growth": lambda *_, **__: ""}
AROUND = {f"{ENVELOPE}.surroundings": lambda *_: {}}
BLIND: dict[str, tuple[type[Engine], dict[str, Any]]] = {
    "preparation-preserves": (Engine, EQUAL),
    "preparation-idempotent": (Engine, UNCHANGED),
    "preparation-covers": (Engine, COVERED),
    "prepare-before-compile": (RefusesAlways, {}),
    "rank-bound": (SwapsRefused, {}),
    "swap-equals-load": (Engine, EQUAL | PLACED),
    "swap-forgets": (Engine, UNCHANGED | KEPT),
    "swap-has-effect": (Engine, UNEQUAL),
    "swap-isolated": (Engine, UNCHANGED | AROUND),
    "swap-atomic": (Engine, UNCHANGED),
    "swap-in-place": (Engine, UNCHANGED),
    "zero-recompiles": (NeverCompiled, {}),
    "knobs-follow": (Engine, EQUAL),
    "unprepared-recompiles": (RecompilesAlways, {}),
}
"""What makes a law's control fail: a deployment of which the law would show nothing, or a blind detector."""


@pytest.mark.parametrize("law", LAWS)
def test_the_control_of_a_law_holds_and_can_fail(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, law: str
) -> None:
    assert list(violations(bench.shared["fleet"], law, controls=True)) == []
    engine, blinded = BLIND[law]
    for name, replacement in blinded.items():
        monkeypatch.setattr(name, replacement)
    if engine.own:
        for shared in bench.shared.values():
            shared.close()  # so many variants of the same code are there that the next one runs eagerly
    with bench.of(engine) as deployment:
        failed = list(violations(deployment, law, controls=True))
    assert len(failed) == len(names_of(law, controls=True))


@pytest.mark.parametrize("module", ["embed", "first", "second", "conv"])
def test_the_module_that_is_blamed_is_the_one_at_fault(bench: Bench, module: str) -> None:
    deployment = bench.shared["fleet"]
    layer = lora_layers(deployment.served, "default")[module]
    for tensor in (layer.scaling["default"], layer.get_base_layer().weight):
        deployment.restore()
        deployment.swap(deployment.first)
        with torch.no_grad():  # so little that it shows in a module behind it, if in any
            tensor.mul_(1 + 2e-5)
        assert f" differs is {module}" in blame(deployment, deployment.first)
    deployment.restore()


def test_one_engine_is_judged_by_one_law(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["StaleRows", "swap-forgets"]) == 0
    assert capsys.readouterr().out.startswith("swap-forgets: after patterns, large: embed.")
    for words, told in ((["Nobody", "swap-forgets"], "Nobody"), (["StaleRows", "no"], "law is no")):
        with pytest.raises(SystemExit, match=told):
            main(words)


def test_every_law_kills_somebody_and_nobody_is_there_twice() -> None:
    laws = Counter(engine.law for engine in ENGINES)
    assert laws.keys() == LAWS.keys()
    assert len(ENGINES) >= 160
    assert len({engine.__name__ for engine in ENGINES}) == len(ENGINES)
