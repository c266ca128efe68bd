"""HotswapContract: each law is a test, each control shows that the test can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hotswap
from hotswap.checks.equivalence import Comparison, compare
from hotswap.checks.snapshot import Snapshot
from hotswap.engine.layout.slots import lora_layers, slots
from pytest_hotswap.adapters.derived import DEFECTS, break_adapter, widen_adapter
from pytest_hotswap.contract.deployment import Deployment, NotWidenableError
from pytest_hotswap.strategies import swap_sequences
from pytest_hotswap.subjects.base import Subject
from pytest_hotswap.subjects.origin import (
    origin,
    plugin_is_loaded,
    subject_at_collection,
    subject_at_run,
)

_BYSTANDER = "default2"  # contains the slot's name


def draws_examples(test: Any) -> Any:
    """Mark a law's test that Hypothesis runs many times."""
    test.draws_examples = True
    return test


class HotswapContract:
    """Subclass it, name it Test…, and set ``subject`` to a Subject class."""

    subject: ClassVar[type[Subject] | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test per adapter or defect."""
        if "adapter" in metafunc.fixturenames:
            paths = [Path("unknown")]  # without the plugin every test fails, and says so
            if plugin_is_loaded(metafunc.config):
                paths = subject_at_collection(metafunc.cls, metafunc.definition).adapter_paths()
            metafunc.parametrize("adapter", paths, ids=[path.name for path in paths])
        if "defect" in metafunc.fixturenames:
            metafunc.parametrize("defect", DEFECTS)
        if "style" in metafunc.fixturenames:
            metafunc.parametrize("style", list(STYLES))

    @pytest.fixture
    def deployment(self, hotswap_deployment: Deployment) -> Deployment:
        """The subject, brought up once for the class."""
        return hotswap_deployment

    @pytest.fixture(autouse=True)
    def _law(self, request: pytest.FixtureRequest, record_property: Any) -> None:
        """Record the law and role of the test; skip what does not apply to the subject."""
        if not plugin_is_loaded(request.config):
            pytest.fail(
                f"{request.cls.__name__} needs the plugin of hotswap: run pytest without -p no:hotswap, "
                "and with -p hotswap where PYTEST_DISABLE_PLUGIN_AUTOLOAD is set",
                pytrace=False,
            )
        name = request.node.originalname.removeprefix("test_")
        law = name.removeprefix("control_of_").replace("_", "-").partition("--")[0]
        role = "control" if name.startswith("control_of_") else "law"
        record_property("hotswap.law", law)
        record_property("hotswap.role", role)
        callspec = getattr(request.node, "callspec", None)
        if callspec is not None and "adapter" in callspec.params:
            record_property("hotswap.adapter", callspec.params["adapter"].name)
        subject = subject_at_run(request.cls, request)
        record_property("hotswap.subject", type(subject).__name__)
        record_property("hotswap.origin", origin(request.cls, request.node))
        unsupported = subject.unsupported
        case = f"{law}[{name.partition('__')[2]}]"
        reason = unsupported.get(law) or unsupported.get(case)
        if reason:
            pytest.skip(f"not applicable: {reason}")

    @pytest.fixture
    def swapping(self, deployment: Deployment) -> Deployment:
        """The compiled deployment, as it was after its first call."""
        deployment.restore()
        return deployment

    # ---- preparation -------------------------------------------------------------------------

    def test_preparation_preserves(self, deployment: Deployment, record_property: Any) -> None:
        model = deployment.loaded()
        before = deployment.run(model)
        deployment.subject.prepare(model, deployment.plan)
        found = compare(deployment.run(model), before)
        record_property("hotswap.max_error", found.max_error)
        record_property("hotswap.tolerance", found.tolerance)
        assert found.equal, (
            f"preparation-preserves: {found.detail}{deployment.blame(model, deployment.first)}"
        )

    def test_control_of_preparation_preserves(self, deployment: Deployment) -> None:
        model = deployment.prepared()
        before = deployment.run(model)
        _poke(model, deployment, 1.0)
        assert not compare(deployment.run(model), before).equal

    def test_preparation_idempotent(self, deployment: Deployment) -> None:
        model = deployment.prepared()
        snapshot = Snapshot.take(*deployment.subject.models(model))
        deployment.subject.prepare(model, deployment.plan)
        changes = snapshot.changes()
        assert not changes, f"preparation-idempotent: {_few(changes)}"

    def test_control_of_preparation_idempotent(self, deployment: Deployment) -> None:
        model = deployment.prepared()
        snapshot = Snapshot.take(*deployment.subject.models(model))
        _poke(model, deployment, 1.0)
        assert snapshot.changes()

    def test_preparation_covers(self, deployment: Deployment) -> None:
        uncovered = _uncovered(deployment.prepared(), deployment)
        assert not uncovered, f"preparation-covers: {_few(uncovered)}"

    def test_control_of_preparation_covers(self, deployment: Deployment) -> None:
        model = deployment.subject.base_model()
        from peft import PeftModel

        assert _uncovered(PeftModel.from_pretrained(model, deployment.first), deployment)

    def test_prepare_before_compile(self, deployment: Deployment, style: str) -> None:
        model = deployment.loaded()
        model = STYLES[style](model, deployment)
        try:
            deployment.subject.prepare(model, deployment.plan)
        except Exception:  # whatever the subject raises is a refusal
            return
        pytest.fail(f"prepare-before-compile: prepare() accepted a model with {style}")

    def test_control_of_prepare_before_compile(self, deployment: Deployment) -> None:
        deployment.subject.prepare(deployment.loaded(), deployment.plan)

    # ---- swaps -------------------------------------------------------------------------------

    def test_rank_bound(self, swapping: Deployment) -> None:
        ranks = {n: (m.rank // m.groups + 1) * m.groups for n, m in swapping.plan.modules.items()}
        wide = widen_adapter(swapping.first, swapping.new_folder(), ranks)
        refused = _refused(swapping, wide)
        changes = swapping.snapshot.changes()
        assert refused, (
            f"rank-bound: an adapter above the target rank was swapped in: {_few(changes)}"
        )
        assert not changes, f"rank-bound: refused, but {_few(changes)}"

    def test_control_of_rank_bound(self, swapping: Deployment) -> None:
        ranks = swapping.plan.ranks
        exact = widen_adapter(swapping.first, swapping.new_folder(), ranks)
        swapping.subject.swap(swapping.compiled, exact)

    def test_swap_equals_load(
        self, swapping: Deployment, adapter: Path, record_property: Any
    ) -> None:
        for step in (swapping.other(adapter), adapter):
            swapping.subject.swap(swapping.compiled, step)
        found = swapping.compare(adapter)
        record_property("hotswap.max_error", found.max_error)
        record_property("hotswap.tolerance", found.tolerance)
        assert found.equal, (
            f"swap-equals-load: {adapter.name}: {found.detail}, tolerance {found.tolerance:.3g}"
            f"{swapping.blame(swapping.compiled, adapter)}"
        )

    def test_control_of_swap_equals_load(self, swapping: Deployment) -> None:
        swapping.subject.swap(swapping.compiled, swapping.first)
        assert not swapping.compare(swapping.rescaled).equal

    def test_swap_equals_load__float64(self, swapping: Deployment, adapter: Path) -> None:
        for step in (swapping.other(adapter), adapter):
            swapping.subject.swap(swapping.compiled, step)
        found, blamed = _in_float64(swapping, adapter)
        assert found.equal, (
            f"swap-equals-load: {adapter.name} in float64: {found.detail}, tolerance "
            f"{found.tolerance:.3g}{blamed}"
        )

    def test_control_of_swap_equals_load__float64(self, swapping: Deployment) -> None:
        swapping.subject.swap(swapping.compiled, swapping.first)
        assert not _in_float64(swapping, swapping.rescaled)[0].equal

    def test_swap_forgets(self, swapping: Deployment) -> None:
        one, other = swapping.first, swapping.other(swapping.first)
        swapping.subject.swap(swapping.compiled, one)
        snapshot = Snapshot.take(*swapping.subject.models(swapping.compiled))
        before = swapping.run()
        swapping.subject.swap(swapping.compiled, other)
        swapping.subject.swap(swapping.compiled, one)
        changes = snapshot.changes(storage=False)
        assert not changes, f"swap-forgets: after {one.name}, {other.name}: {_few(changes)}"
        assert compare(swapping.run(), before).max_error == 0.0, "swap-forgets: outputs differ"

    def test_control_of_swap_forgets(self, swapping: Deployment) -> None:
        swapping.subject.swap(swapping.compiled, swapping.first)
        snapshot = Snapshot.take(*swapping.subject.models(swapping.compiled))
        swapping.subject.swap(swapping.compiled, swapping.rescaled)
        assert snapshot.changes(storage=False)

    def test_swap_has_effect(
        self, swapping: Deployment, adapter: Path, record_property: Any
    ) -> None:
        swapping.subject.swap(swapping.compiled, adapter)
        found = swapping.compare(None)
        record_property("hotswap.effect", found.max_error)
        assert not found.equal, (
            f"swap-has-effect: {adapter.name} leaves the base model's outputs as they are"
        )

    def test_swap_has_effect__none(self, swapping: Deployment) -> None:
        swapping.subject.swap(swapping.compiled, None)
        found = swapping.compare(None)
        assert found.equal, (
            f"swap-has-effect: no adapter is not the base model: {found.detail}"
            f"{swapping.blame(swapping.compiled, None)}"
        )

    def test_control_of_swap_has_effect(self, deployment: Deployment) -> None:
        assert compare(deployment.run(deployment.base), deployment.expected(None)).equal

    def test_swap_isolated(self, deployment: Deployment) -> None:
        changes = _foreign_changes(deployment, swap=True)
        assert not changes, f"swap-isolated: {_few(changes)}"

    def test_control_of_swap_isolated(self, deployment: Deployment) -> None:
        assert _foreign_changes(deployment, swap=False)

    def test_swap_atomic(self, swapping: Deployment, defect: str) -> None:
        swapping.subject.swap(swapping.compiled, swapping.first)
        before = swapping.run()  # first, as PEFT's MultiheadAttention moves weights at each call
        snapshot = Snapshot.take(*swapping.subject.models(swapping.compiled))
        other = swapping.other(swapping.first)
        bad = break_adapter(other, swapping.new_folder(), defect, room=swapping.plan.ranks)
        refused = _refused(swapping, bad)
        changes = snapshot.changes()
        assert refused, f"swap-atomic: an adapter with a {defect} was accepted: {_few(changes)}"
        assert not changes, f"swap-atomic: refused ({defect}), but {_few(changes)}"
        assert compare(swapping.run(), before).max_error == 0.0, "swap-atomic: outputs changed"
        assert not _refused(swapping, other), f"swap-atomic: no good swap after a {defect}"
        assert swapping.compare(other).equal, f"swap-atomic: no good swap after a {defect}"

    def test_control_of_swap_atomic(self, swapping: Deployment) -> None:
        model = swapping.subject.models(swapping.compiled)[0]
        _poke(model, swapping, 1.0)
        assert swapping.snapshot.changes()

    def test_swap_in_place(self, swapping: Deployment, adapter: Path, record_property: Any) -> None:
        swapping.subject.swap(swapping.compiled, adapter)
        moved = swapping.snapshot.changes(values=False)
        record_property("hotswap.moved", len(moved))
        assert not moved, f"swap-in-place: {adapter.name}: {_few(moved)}"

    def test_control_of_swap_in_place(self, swapping: Deployment) -> None:
        slot = _first_slot(swapping.subject.models(swapping.compiled)[0], swapping)
        slot.tensor.data = slot.tensor.data.clone()
        assert swapping.snapshot.changes(values=False)

    # ---- recompiles --------------------------------------------------------------------------

    def test_zero_recompiles(
        self, swapping: Deployment, adapter: Path, record_property: Any
    ) -> None:
        walk = [step for path in swapping.neighbours(adapter) for step in (path, adapter)]
        swapping.run()
        with hotswap.watch_compiles() as log:
            for step in walk:
                swapping.subject.swap(swapping.compiled, step)
                swapping.run()
        first = swapping.first_swaps.get(adapter)
        logs = [log] if first is None else [first, log]
        record_property("hotswap.swaps", len(walk) + len(logs) - 1)
        record_property("hotswap.recompiles", sum(len(log.recompiles) for log in logs))
        record_property("hotswap.hits", sum(log.total_hits for log in logs))
        for verdict in (log.verdict() for log in logs):
            assert verdict.outcome == "passed", f"zero-recompiles: {_few(verdict.reasons)}"

    def test_zero_recompiles__cuda_graphs(self, swapping: Deployment) -> None:
        weight = next(swapping.subject.models(swapping.compiled)[0].parameters())
        if weight.device.type != "cuda":
            pytest.skip(f"not run: CUDA graphs need a GPU, the model is on {weight.device.type}")
        with hotswap.watch_compiles() as warm:
            for _ in range(3):  # recorded at the second call, and once more where memory moves
                swapping.run()
        if not warm.cudagraph_records:
            pytest.skip("not run: no CUDA graph was recorded, compile with mode='reduce-overhead'")
        with hotswap.watch_compiles() as log:
            for step in swapping.neighbours(swapping.first):
                swapping.subject.swap(swapping.compiled, step)
                swapping.run()
        assert not log.cudagraph_records, (
            f"zero-recompiles: CUDA graphs were recorded again {log.cudagraph_records} times"
        )

    def test_control_of_zero_recompiles(self, deployment: Deployment) -> None:
        assert deployment.unprepared_recompiles["another alpha"]

    @draws_examples
    def test_zero_recompiles__any_swap_sequence(self, swapping: Deployment) -> None:
        swapping.run()

        @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
        @given(st.data())
        def holds(data: st.DataObject) -> None:
            sequence = data.draw(swap_sequences(len(paths)))
            swapping.snapshot.restore()
            with hotswap.watch_compiles() as log:
                for path in map(paths.__getitem__, sequence):
                    swapping.subject.swap(swapping.compiled, path)
                    assert swapping.compare(path).equal, f"swap-equals-load: {path.name}"
            verdict = log.verdict()
            assert verdict.outcome == "passed", f"zero-recompiles: {_few(verdict.reasons)}"

        paths = swapping.neighbours(swapping.first)
        for path in paths:  # the oracle runs first: its forwards are not in the scope
            swapping.expected(path)
        holds()

    def test_unprepared_recompiles(self, deployment: Deployment) -> None:
        assert deployment.unprepared_recompiles["another alpha"], (
            "unprepared-recompiles: another alpha did not recompile an unprepared model; "
            "the watch or the subject's compile() does not work"
        )

    def test_control_of_unprepared_recompiles(self, deployment: Deployment) -> None:
        assert deployment.unprepared_recompiles["no swap"] == []

    # ---- knobs -------------------------------------------------------------------------------

    def test_knobs_follow(self, swapping: Deployment) -> None:
        adapter = swapping.other(swapping.first)
        subject, model = swapping.subject, swapping.compiled
        subject.swap(model, adapter)
        subject.set_scale(model, 0.5)
        found = swapping.compare(adapter, scale=0.5)
        assert found.equal, f"knobs-follow: set_scale(0.5) after a swap: {found.detail}"
        subject.set_scale(model, 1.0)
        with subject.disabled(model):
            assert swapping.compare(None).equal, "knobs-follow: disabled is not the base model"
        assert swapping.compare(adapter).equal, "knobs-follow: enabled again is not the adapter"
        folder = swapping.new_folder()
        subject.save(model, folder)
        try:
            reloaded = swapping.fresh(folder)
        except Exception as error:  # whatever PEFT raises about the file
            pytest.fail(f"knobs-follow: the saved adapter cannot be loaded: {error}")
        saved = compare(swapping.run(reloaded), swapping.expected(adapter))
        assert saved.equal, f"knobs-follow: the saved adapter reloads differently: {saved.detail}"

    def test_control_of_knobs_follow(self, swapping: Deployment) -> None:
        swapping.subject.swap(swapping.compiled, swapping.first)
        assert not swapping.compare(swapping.first, scale=0.5).equal


def _in_float64(deployment: Deployment, adapter: Path) -> tuple[Comparison, str]:
    try:
        return deployment.compare_in_float64(adapter)
    except NotWidenableError as error:
        pytest.skip(f"not applicable: {error}")


def _few(texts: Any) -> str:
    shown = list(texts)
    more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""
    return "; ".join(shown[:3]) + more


def _first_slot(model: Any, deployment: Deployment) -> Any:
    name = deployment.subject.adapter_name
    layer = next(iter(lora_layers(model, name).values()))
    return slots(layer, name)[1]  # lora_B


def _poke(model: Any, deployment: Deployment, amount: float) -> None:
    with torch.no_grad():
        _first_slot(model, deployment).tensor.add_(amount)


def _refused(deployment: Deployment, adapter: Path) -> bool:
    try:
        deployment.subject.swap(deployment.compiled, adapter)
    except Exception:  # whatever the subject raises is a refusal
        return True
    return False


def _uncovered(model: Any, deployment: Deployment) -> list[str]:
    name = deployment.subject.adapter_name
    found = []
    for module, layer in lora_layers(model, name).items():
        wanted = deployment.plan.modules[module].rank if module in deployment.plan.modules else 0
        found += [
            f"{module}.{slot.key} has rank {slot.rank}, planned {wanted}"
            for slot in slots(layer, name)
            if slot.rank is not None and slot.rank < wanted
        ]
        if not isinstance(layer.scaling[name], torch.Tensor):
            found.append(f"{module}.scaling is a {type(layer.scaling[name]).__name__}")
    return found


def _foreign_changes(deployment: Deployment, *, swap: bool) -> list[str]:
    """What a swap (or, without, a poke) changes in the base weights and in another adapter."""
    subject = deployment.subject
    model = deployment.loaded()
    subject.add(model, deployment.first, _BYSTANDER)
    subject.prepare(model, deployment.plan)
    snapshot = Snapshot.take(*subject.models(model))
    if swap:
        # the one with the fewest modules: a swap that clears by name clears the most
        fewest = min(deployment.paths, key=lambda path: len(deployment.specs[path].modules))
        subject.swap(model, fewest)
    else:
        layer = next(iter(lora_layers(model, _BYSTANDER).values()))
        with torch.no_grad():
            slots(layer, _BYSTANDER)[0].tensor.add_(1.0)
    own = subject.adapter_name
    mine = (f".{own}.", f".{own} ", f"peft_config['{own}']")
    return [c for c in snapshot.changes() if _is_tensor_change(c) and not any(m in c for m in mine)]


def _is_tensor_change(change: str) -> bool:
    return any(word in change.split(" ", 1)[1] for word in ("values", "its ", "became", "tensor"))


def _in_place(model: Any, deployment: Deployment) -> Any:
    model.compile(backend=deployment.subject.backend)
    return model


def _submodule(model: Any, deployment: Deployment) -> Any:
    next(iter(lora_layers(model).values())).compile(backend=deployment.subject.backend)
    return model


def _forward(model: Any, deployment: Deployment) -> Any:
    model.forward = torch.compile(model.forward, backend=deployment.subject.backend)
    return model


STYLES = {
    "a torch.compile wrapper": lambda model, deployment: torch.compile(
        model, backend=deployment.subject.backend
    ),
    "compile() in place": _in_place,
    "a compiled submodule": _submodule,
    "a compiled forward": _forward,
}
