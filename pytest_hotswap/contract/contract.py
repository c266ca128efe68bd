"""HotswapContract: each law is a test, each control shows that the test can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

import hotswap
from hotswap.checks.equivalence import Comparison, compare
from hotswap.engine.layout.slots import lora_layers
from pytest_hotswap.adapters.derived import DEFECTS, break_adapter, widen_adapter
from pytest_hotswap.contract.deployment import Broken, Deployment
from pytest_hotswap.contract.envelope import EnvelopeLaws
from pytest_hotswap.contract.float64 import NotWidenableError, compare_in_float64
from pytest_hotswap.contract.knobs import KnobLaws
from pytest_hotswap.contract.placed import blame, misplaced, unlike_the_file, unreached
from pytest_hotswap.contract.preparation import ODD, STYLES, PreparationLaws
from pytest_hotswap.contract.probes import (
    added_beside,
    few,
    foreign_changes,
    lora_b,
    poke,
    uncovered,
)
from pytest_hotswap.contract.reading import is_read, traces
from pytest_hotswap.contract.refusals import RefusalLaws
from pytest_hotswap.contract.sequences import SequenceLaws
from pytest_hotswap.subjects.base import Subject
from pytest_hotswap.subjects.origin import (
    origin,
    plugin_is_loaded,
    subject_at_collection,
    subject_at_run,
)

CASES = {"defect": DEFECTS, "style": [*STYLES], "odd": [*ODD]}
"""What a test that takes one of these is run once for each of."""


class LawName(NamedTuple):
    """What the name of a contract's test says."""

    law: str
    case: str
    role: str

    @classmethod
    def of(cls, test: str) -> LawName:
        """Read ``test_law__case``, or ``test_control_of_law__case``."""
        name = test.removeprefix("test_")
        role = "control" if name.startswith("control_of_") else "law"
        law, _, case = name.removeprefix("control_of_").partition("__")
        return cls(law.replace("_", "-"), case, role)

    def excuse(self, subject: Subject) -> str | None:
        """Why the test does not apply to a subject, if it does not."""
        unsupported = subject.unsupported
        return unsupported.get(self.law) or unsupported.get(f"{self.law}[{self.case}]")


class HotswapContract(PreparationLaws, EnvelopeLaws, RefusalLaws, KnobLaws, SequenceLaws):
    """Subclass it, name it Test…, and set ``subject`` to a Subject class."""

    subject: ClassVar[type[Subject] | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test per adapter or defect."""
        if "adapter" in metafunc.fixturenames:
            paths = [Path("unknown")]  # without the plugin every test fails, and says so
            if plugin_is_loaded(metafunc.config):
                try:
                    subject = subject_at_collection(metafunc.cls, metafunc.definition)
                    paths = subject.adapter_paths()
                except pytest.UsageError as error:  # as a sentence, without the plugin's frames
                    raise pytest.Collector.CollectError(str(error)) from None
            metafunc.parametrize("adapter", paths, ids=[path.name for path in paths])
        for name, cases in CASES.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, list(cases))

    @pytest.fixture
    def deployment(
        self, hotswap_deployment: Deployment | Broken, record_property: Any
    ) -> Deployment:
        """The subject, brought up once for the class; where that fails one test does, and no other runs."""
        if not isinstance(hotswap_deployment, Broken):
            return hotswap_deployment  # or what stands for it, where it is over several ranks
        record_property("hotswap.law", None)  # none was tried
        if hotswap_deployment.told:
            pytest.skip(f"not run: {hotswap_deployment.text}")
        hotswap_deployment.told = True
        pytest.fail(hotswap_deployment.text, pytrace=False)

    @pytest.fixture(autouse=True)
    def _law(self, request: pytest.FixtureRequest, record_property: Any) -> None:
        """Record the law and role of the test; skip what does not apply to the subject."""
        if not plugin_is_loaded(request.config):
            pytest.fail(
                f"{request.cls.__name__} needs the plugin of hotswap: run pytest without -p no:hotswap, "
                "and with -p hotswap where PYTEST_DISABLE_PLUGIN_AUTOLOAD is set",
                pytrace=False,
            )
        name = LawName.of(request.node.originalname)
        record_property("hotswap.law", name.law)
        record_property("hotswap.role", name.role)
        callspec = getattr(request.node, "callspec", None)
        if callspec is not None and "adapter" in callspec.params:
            record_property("hotswap.adapter", callspec.params["adapter"].name)
        subject = subject_at_run(request.cls, request)
        record_property("hotswap.subject", type(subject).__name__)
        record_property("hotswap.origin", origin(request.cls, request.node))
        if getattr(subject, "exported", False):
            record_property("hotswap.exported", True)
        if excuse := name.excuse(subject):
            pytest.skip(f"not applicable: {excuse}")

    @pytest.fixture
    def swapping(self, deployment: Deployment) -> Deployment:
        """The compiled deployment, as it was after its first call."""
        deployment.restore()
        return deployment

    def test_preparation_preserves(self, deployment: Deployment, record_property: Any) -> None:
        model = deployment.loaded()
        before = deployment.run(model)
        deployment.subject.prepare(model, deployment.plan)
        found = compare(deployment.run(model), before)
        _record(record_property, found)
        assert found.equal, (
            f"preparation-preserves: {found.detail}{blame(deployment, deployment.first, model=model)}"
        )

    def test_control_of_preparation_preserves(self, deployment: Deployment) -> None:
        model = deployment.prepared()
        before = deployment.run(model)
        poke(deployment, model)
        assert not compare(deployment.run(model), before).equal, (
            "preparation-preserves would not see a change of lora_B: the outputs are as before"
        )

    def test_preparation_idempotent(self, deployment: Deployment) -> None:
        model = deployment.prepared()
        snapshot = deployment.fingerprint(model)
        deployment.subject.prepare(model, deployment.plan)
        changes = snapshot.changes()
        assert not changes, f"preparation-idempotent: {few(changes)}"

    def test_control_of_preparation_idempotent(self, deployment: Deployment) -> None:
        model = deployment.prepared()
        snapshot = deployment.fingerprint(model)
        poke(deployment, model)
        assert snapshot.changes(), "preparation-idempotent would not see a change of lora_B"

    def test_preparation_covers(self, deployment: Deployment) -> None:
        missed = uncovered(deployment, deployment.prepared())
        assert not missed, f"preparation-covers: {few(missed)}"

    def test_control_of_preparation_covers(self, deployment: Deployment) -> None:
        from peft import PeftModel

        model = deployment.subject.base_model()
        assert uncovered(deployment, PeftModel.from_pretrained(model, deployment.first)), (
            "preparation-covers would not see that a model was not prepared"
        )

    def test_rank_bound(self, swapping: Deployment) -> None:
        room, folder = swapping.room, swapping.new_folder()
        refused = swapping.refuses(break_adapter(swapping.first, folder, "larger rank", room=room))
        changes = swapping.snapshot.changes()
        assert refused, (
            f"rank-bound: an adapter above the target rank was swapped in: {few(changes)}"
        )
        assert not changes, f"rank-bound: refused, but {few(changes)}"

    def test_control_of_rank_bound(self, swapping: Deployment) -> None:
        ranks = swapping.plan.ranks
        wide = widen_adapter(swapping.first, swapping.new_folder(), ranks)
        assert not swapping.refuses(wide), (
            f"rank-bound: an adapter at the target rank is refused: {swapping.refusal}"
        )

    def test_swap_equals_load(
        self, swapping: Deployment, adapter: Path, record_property: Any
    ) -> None:
        swapping.swap(swapping.other(adapter), adapter)
        found = swapping.compare(adapter)
        _record(record_property, found)
        assert found.equal, (
            f"swap-equals-load: {adapter.name}: {found.detail}{blame(swapping, adapter)}"
        )

    def test_control_of_swap_equals_load(self, swapping: Deployment) -> None:
        swapping.swap(swapping.first)
        assert not swapping.compare(swapping.rescaled).equal, (
            f"swap-equals-load would not see {swapping.first.name} under three times its alpha: "
            "the outputs are the same"
        )

    def test_swap_equals_load__placed(
        self, swapping: Deployment, adapter: Path, record_property: Any
    ) -> None:
        _has_layers(swapping)
        swapping.swap(swapping.other(adapter), adapter)
        found = unlike_the_file(swapping, adapter)
        if dead := unreached(swapping):
            record_property("hotswap.unreached", ", ".join(dead))
        if found and not is_read(swapping):
            pytest.skip(_ELSEWHERE)
        assert not found, f"swap-equals-load: {adapter.name}: {few(found)}"

    def test_control_of_swap_equals_load__placed(self, swapping: Deployment) -> None:
        _has_layers(swapping)
        swapping.swap(swapping.first)
        if not is_read(swapping):
            pytest.skip(_ELSEWHERE)
        assert misplaced(swapping, swapping.rescaled), (
            "swap-equals-load would not see another scaling in a layer that no input reaches"
        )

    def test_swap_equals_load__float64(self, swapping: Deployment, adapter: Path) -> None:
        swapping.swap(swapping.other(adapter), adapter)
        found, blamed = _in_float64(swapping, adapter)
        assert found.equal, f"swap-equals-load: {adapter.name} in float64: {found.detail}{blamed}"

    def test_control_of_swap_equals_load__float64(self, swapping: Deployment) -> None:
        swapping.swap(swapping.first)
        assert not _in_float64(swapping, swapping.rescaled)[0].equal, (
            f"swap-equals-load in float64 would not see {swapping.first.name} under another alpha"
        )

    def test_swap_forgets(self, swapping: Deployment) -> None:
        one, other = swapping.first, swapping.other(swapping.first)
        swapping.swap(one)
        snapshot = swapping.fingerprint()
        before = swapping.run()
        swapping.swap(other, one)
        changes = traces(swapping, snapshot)
        assert not changes, f"swap-forgets: after {one.name}, {other.name}: {few(changes)}"
        found = compare(swapping.run(), before)
        assert found.max_error == 0.0, (
            f"swap-forgets: after {one.name}, {other.name}, {one.name}: {found.detail}"
        )

    def test_control_of_swap_forgets(self, swapping: Deployment) -> None:
        swapping.swap(swapping.first)
        snapshot, before = swapping.fingerprint(), swapping.run()
        swapping.swap(swapping.rescaled)
        seen = snapshot.changes(storage=False) or not is_read(swapping)
        assert seen, "swap-forgets would not see that another adapter is in place"
        assert swapping.differs(before), (
            "swap-forgets would not see that another adapter computes something else"
        )

    def test_swap_has_effect(
        self, swapping: Deployment, adapter: Path, record_property: Any
    ) -> None:
        swapping.swap(adapter)
        found = swapping.compare(None)
        record_property("hotswap.effect", found.max_error)
        assert not found.equal, (
            f"swap-has-effect: {adapter.name} leaves the base model's outputs as they are"
        )

    def test_swap_has_effect__none(self, swapping: Deployment) -> None:
        swapping.swap(None)
        found = swapping.compare(None)
        assert found.equal, (
            f"swap-has-effect: no adapter is not the base model: {found.detail}"
            f"{blame(swapping, None)}"
        )

    def test_control_of_swap_has_effect(self, deployment: Deployment) -> None:
        model = deployment.fresh(deployment.first)
        with model.disable_adapter():
            found = deployment.compare(None, model=model)
        assert found.equal, (
            f"swap-has-effect would take an adapter without effect for one that has: {found.detail}"
        )

    def test_swap_isolated(self, deployment: Deployment) -> None:
        added, found = added_beside(deployment)
        assert found.equal, (
            f"swap-isolated: {deployment.first.name} is in place, and {added.name}, added beside it, "
            f"changes what is computed: {found.detail}"
        )
        for adapter in deployment.by_size[:2]:
            changes = foreign_changes(deployment, adapter)
            assert not changes, f"swap-isolated: {adapter.name}: {few(changes)}"

    def test_control_of_swap_isolated(self, deployment: Deployment) -> None:
        assert foreign_changes(deployment, None), (
            "swap-isolated would not see a change of another adapter"
        )

    def test_swap_atomic(self, swapping: Deployment, defect: str) -> None:
        swapping.swap(swapping.first)
        before = swapping.run()  # first, as PEFT's MultiheadAttention moves weights at each call
        snapshot = swapping.fingerprint()
        other = swapping.other(swapping.first)
        bad = break_adapter(other, swapping.new_folder(), defect, room=swapping.room)
        refused = swapping.refuses(bad)
        changes = snapshot.changes()
        assert refused, f"swap-atomic: an adapter with a {defect} was accepted: {few(changes)}"
        assert not changes, f"swap-atomic: refused ({defect}), but {few(changes)}"
        error = compare(swapping.run(), before).max_error
        assert error == 0.0, f"swap-atomic: refused ({defect}), but outputs differ by {error:.3g}"
        assert not swapping.refuses(other), (
            f"swap-atomic: {other.name} is refused after a {defect}: {swapping.refusal}"
        )
        found = swapping.compare(other)
        assert found.equal, (
            f"swap-atomic: {other.name} after a {defect}: {found.detail}{blame(swapping, other)}"
        )

    def test_control_of_swap_atomic(self, swapping: Deployment) -> None:
        poke(swapping, swapping.served)
        assert swapping.snapshot.changes(), "swap-atomic would not see a change of lora_B"

    def test_swap_in_place(self, swapping: Deployment, adapter: Path, record_property: Any) -> None:
        # three swaps in a row: of two buffers that take turns, one is the snapshot's own
        for count, path in enumerate((adapter, swapping.other(adapter), adapter), start=1):
            swapping.swap(path)
            moved = swapping.snapshot.changes(values=False)
            record_property("hotswap.moved", len(moved))
            assert not moved, f"swap-in-place: {path.name}, swap {count}: {few(moved)}"

    def test_control_of_swap_in_place(self, swapping: Deployment) -> None:
        weight = lora_b(swapping, swapping.served)
        weight.data = weight.data.clone()
        assert swapping.snapshot.changes(values=False), (
            "swap-in-place would not see that lora_B lies elsewhere"
        )

    def test_zero_recompiles(
        self, swapping: Deployment, adapter: Path, record_property: Any
    ) -> None:
        walk = [step for path in swapping.neighbours(adapter) for step in (path, adapter)]
        swapping.run()
        with hotswap.watch_compiles() as log:
            for step in walk:
                swapping.swap(step)
                swapping.run()
        first = swapping.first_swaps.get(adapter)
        logs = [log] if first is None else [first, log]
        record_property("hotswap.swaps", len(walk) + len(logs) - 1)
        record_property("hotswap.recompiles", sum(len(log.recompiles) for log in logs))
        record_property("hotswap.hits", sum(log.total_hits for log in logs))
        for verdict in (log.verdict() for log in logs):
            assert verdict.outcome == "passed", f"zero-recompiles: {few(verdict.reasons)}"

    def test_zero_recompiles__cuda_graphs(self, swapping: Deployment) -> None:
        device = next(swapping.served.parameters()).device.type
        if device != "cuda":
            pytest.skip(f"not run: CUDA graphs need a GPU, the model is on {device}")
        with hotswap.watch_compiles() as warm:
            for _ in range(3):  # recorded at the second call, and once more where memory moves
                swapping.run()
        if not warm.cudagraph_records:
            pytest.skip("not run: no CUDA graph was recorded, compile with mode='reduce-overhead'")
        with hotswap.watch_compiles() as log:
            for step in swapping.neighbours(swapping.first):
                swapping.swap(step)
                swapping.run()
        assert not log.cudagraph_records, (
            f"zero-recompiles: CUDA graphs were recorded again {log.cudagraph_records} times"
        )

    def test_control_of_zero_recompiles(self, deployment: Deployment) -> None:
        assert deployment.unprepared_recompiles["another alpha"], (
            "zero-recompiles would see no recompile: another alpha causes none in an unprepared model"
        )

    def test_unprepared_recompiles(self, deployment: Deployment) -> None:
        assert deployment.unprepared_recompiles["another alpha"], (
            "unprepared-recompiles: another alpha did not recompile an unprepared model; "
            "the watch or the subject's compile() does not work"
        )

    def test_control_of_unprepared_recompiles(self, deployment: Deployment) -> None:
        found = deployment.unprepared_recompiles["no swap"]
        assert not found, (
            f"unprepared-recompiles: without a swap the model recompiles: {few(found)}"
        )

    def test_control_of_knobs_follow(self, swapping: Deployment) -> None:
        swapping.swap(swapping.first)
        assert not swapping.compare(swapping.first, scale=0.5).equal, (
            f"knobs-follow would not see that {swapping.first.name} is scaled by 0.5"
        )


_ELSEWHERE = (
    "not applicable: a call reads its adapter from no LoRA layer of PEFT's of this name, so its tensors "
    "cannot be compared with the file"
)


def _record(record_property: Any, found: Comparison) -> None:
    record_property("hotswap.max_error", found.max_error)
    record_property("hotswap.tolerance", found.tolerance)


def _has_layers(deployment: Deployment) -> None:
    if not lora_layers(deployment.served, deployment.subject.adapter_name):
        pytest.skip(_ELSEWHERE)


def _in_float64(deployment: Deployment, adapter: Path) -> tuple[Comparison, str]:
    try:
        found, blamed = compare_in_float64(deployment, adapter)
    except NotWidenableError as error:
        pytest.skip(f"not applicable: {error}")
    if not found.equal and not is_read(deployment):
        pytest.skip(
            "not applicable: a call reads other weights than those in the model's LoRA layers"
        )
    return found, blamed
