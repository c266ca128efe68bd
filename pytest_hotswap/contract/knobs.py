"""Laws of the knobs: scale, disable and save speak of the adapter that was swapped in last."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from hotswap.engine.layout.slots import lora_layers
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.placed import blame, misplaced
from pytest_hotswap.contract.probes import few


class KnobLaws:
    """What every knob does after a swap, and what a swap does to a knob that was turned."""

    def test_knobs_follow(self, swapping: Deployment) -> None:
        adapter = swapping.other(swapping.first)
        if (
            swapping.first_scale is not None
            and "zero-recompiles" not in swapping.subject.unsupported
        ):
            verdict = swapping.first_scale.verdict()
            assert verdict.outcome == "passed", (
                f"knobs-follow: the first set_scale() recompiles: {few(verdict.reasons)}"
            )
        _as_loaded(swapping, swapping.first, swapping.prepared())
        swapping.swap(adapter)
        knobs_follow(swapping, adapter, adapter.name)
        for scale in (2.5, 0.0, -0.5):
            swapping.subject.set_scale(swapping.compiled, scale)
            found = swapping.compare(adapter, scale=scale)
            assert found.equal, (
                f"knobs-follow: {adapter.name}: set_scale({scale}) after a swap: {found.detail}"
                f"{blame(swapping, adapter, scale=scale)}"
            )
        _saved(swapping, adapter, f"knobs-follow: {adapter.name}, saved while scaled")
        swapping.swap(swapping.rescaled)  # which has the most modules
        swapping.subject.set_scale(swapping.compiled, 2.5)
        wrong = misplaced(swapping, swapping.rescaled, 2.5)
        assert not wrong, (
            f"knobs-follow: {swapping.first.name} at another alpha: set_scale(2.5): {few(wrong)}"
        )
        least = swapping.by_size[0]  # a model with room for others may be loaded with it
        if least != swapping.first:
            try:
                model = swapping.subject.load(swapping.subject.base_model(), least)
                swapping.subject.prepare(model, swapping.plan)
            except Exception:  # refused, which is judged elsewhere
                return
            _as_loaded(swapping, least, model)

    def test_knobs_follow__companions(self, swapping: Deployment) -> None:
        for what, adapter in swapping.companions.items():
            swapping.restore()
            swapping.swap(adapter)
            knobs_follow(swapping, adapter, what)

    def test_knobs_follow__disabled(self, swapping: Deployment) -> None:
        subject, model = swapping.subject, swapping.compiled
        one, other = swapping.first, swapping.other(swapping.first)
        swapping.swap(one)
        with subject.disabled(model):
            swapping.swap(swapping.rescaled, other)
            found = swapping.compare(None)
            assert found.equal, (
                f"knobs-follow: {other.name}, swapped in while disabled, has an effect: {found.detail}"
                f"{blame(swapping, None)}"
            )
            what = f"knobs-follow: {other.name}, saved while disabled"
            _saved(swapping, other, what, may_refuse=True)
        found = swapping.compare(other)
        assert found.equal, (
            f"knobs-follow: {other.name}, swapped in while disabled, then enabled: {found.detail}"
            f"{blame(swapping, other)}"
        )
        with subject.disabled(model):
            subject.set_scale(model, 0.5)
            found = swapping.compare(None)
            assert found.equal, (
                f"knobs-follow: set_scale(0.5) while disabled has an effect: {found.detail}"
                f"{blame(swapping, None)}"
            )
        found = swapping.compare(other, scale=0.5)
        assert found.equal, (
            f"knobs-follow: {other.name}: set_scale(0.5) while disabled, then enabled: {found.detail}"
            f"{blame(swapping, other, scale=0.5)}"
        )
        subject.set_scale(model, 1.0)
        with suppress(_GoneWrongError), subject.disabled(model):
            raise _GoneWrongError
        found = swapping.compare(other)
        assert found.equal, (
            f"knobs-follow: {other.name} is not enabled again after an error while it was disabled: "
            f"{found.detail}{blame(swapping, other)}"
        )
        swapping.swap(one)
        found = swapping.compare(one)
        assert found.equal, (
            f"knobs-follow: {one.name}, swapped in after an error while {other.name} was disabled: "
            f"{found.detail}{blame(swapping, one)}"
        )

    def test_knobs_follow__scaled_before(self, swapping: Deployment) -> None:
        """A factor belongs to the adapter that it was set for, and is gone when that one comes back."""
        subject, model = swapping.subject, swapping.compiled
        one, other = swapping.first, swapping.other(swapping.first)
        swapping.swap(one)
        for before, after in ((one, other), (other, one)):  # of two buffers each is left once
            subject.set_scale(model, 0.5)
            swapping.swap(after)
            found = swapping.compare(after)
            assert found.equal, (
                f"knobs-follow: {after.name}, swapped in after set_scale(0.5) on {before.name}: "
                f"{found.detail}{blame(swapping, after)}"
            )
            _saved(swapping, after, f"knobs-follow: {after.name}, saved after {before.name}")
        if not swapping.takes_none:
            return
        swapping.swap(None)
        subject.set_scale(model, 0.5)
        found = swapping.compare(None)
        assert found.equal, (
            f"knobs-follow: after a swap to no adapter set_scale(0.5) brings one back: {found.detail}"
            f"{blame(swapping, None)}"
        )
        swapping.swap(other)
        subject.set_scale(model, 0.5)
        found = swapping.compare(other, scale=0.5)
        assert found.equal, (
            f"knobs-follow: {other.name}: set_scale(0.5), after it was called without an adapter: "
            f"{found.detail}{blame(swapping, other, scale=0.5)}"
        )


class _GoneWrongError(Exception):
    """What a program raises while the adapter is disabled."""


def knobs_follow(
    deployment: Deployment, adapter: Path, what: str, law: str = "knobs-follow"
) -> None:
    """Turn every knob on the adapter in place: scale, disable and enable, save and reload."""
    what = f"{law}: {what}"
    _scaled(deployment, adapter, what)
    subject, model = deployment.subject, deployment.compiled
    with subject.disabled(model):
        found = deployment.compare(None)
        assert found.equal, (
            f"{what}: disabled is not the base model: {found.detail}{blame(deployment, None)}"
        )
    found = deployment.compare(adapter)
    assert found.equal, (
        f"{what}: enabled again is not the adapter: {found.detail}{blame(deployment, adapter)}"
    )
    _saved(deployment, adapter, what)


def _scaled(deployment: Deployment, adapter: Path, what: str) -> None:
    subject, model = deployment.subject, deployment.compiled
    tensors = _tensor_scalings(deployment)
    deployment.expected(adapter, 0.5)  # the oracle runs first: its forwards are not in the scope
    deployment.run()
    snapshot = deployment.fingerprint()
    with hotswap.watch_compiles() as log:
        subject.set_scale(model, 0.5)
        numbers = tensors - _tensor_scalings(deployment)
        assert not numbers, (
            f"{what}: after set_scale() the scaling is a number, which recompiles: "
            f"{few(sorted(numbers))}"
        )
        moved = snapshot.changes(values=False)
        assert not moved, f"{what}: set_scale() does not write in place: {few(moved)}"
        found = deployment.compare(adapter, scale=0.5)
        assert found.equal, (
            f"{what}: set_scale(0.5) after a swap: {found.detail}"
            f"{blame(deployment, adapter, scale=0.5)}"
        )
        subject.set_scale(model, 1.0)
        deployment.run()
    verdict, other = log.verdict(), not what.startswith("knobs-follow")  # told there
    assert other or "zero-recompiles" in subject.unsupported or verdict.outcome == "passed", (
        f"{what}: set_scale() recompiles: {few(verdict.reasons)}"
    )


def _saved(
    deployment: Deployment,
    adapter: Path,
    what: str,
    *,
    may_refuse: bool = False,
) -> None:
    """Save and reload; a factor is the user's, and no part of what is saved, as it is not in PEFT."""
    before = deployment.run()
    snapshot, folder = deployment.fingerprint(), deployment.new_folder()
    try:
        deployment.subject.save(deployment.compiled, folder)
    except Exception:  # whatever the subject raises
        if may_refuse:
            return
        raise
    changes = snapshot.changes(values=False)
    # PEFT's MultiheadAttention does this whenever it is asked for its tensors
    changes = [change for change in changes if not change.endswith("of the same storage")]
    if deployment.differs(before):
        changes.append("its outputs are others")
    assert not changes, f"{what}: saving changes the model: {few(changes)}"
    reloaded = _reloaded(deployment, adapter, folder, what)
    saved = deployment.compare(adapter, model=reloaded)
    assert saved.equal, (
        f"{what}: the saved adapter reloads differently: {saved.detail}"
        f"{blame(deployment, adapter, model=reloaded)}"
    )


def _as_loaded(deployment: Deployment, adapter: Path, model: Any) -> None:
    """Save and scale what was loaded, of a model of its own: a snapshot is no fresh load."""
    folder, what = deployment.new_folder(), f"knobs-follow: {adapter.name}, before any swap"
    deployment.subject.save(model, folder)
    reloaded = _reloaded(deployment, adapter, folder, what)
    saved = deployment.compare(adapter, model=reloaded)
    assert saved.equal, (
        f"{what}: the saved adapter reloads differently: {saved.detail}"
        f"{blame(deployment, adapter, model=reloaded)}"
    )
    deployment.subject.set_scale(model, 0.5)
    found = deployment.compare(adapter, model=model, scale=0.5)
    assert found.equal, (
        f"{what}: set_scale(0.5): {found.detail}{blame(deployment, adapter, model=model, scale=0.5)}"
    )


def _reloaded(deployment: Deployment, adapter: Path, folder: Path, what: str) -> Any:
    """What PEFT loads, of which file and config name the same modules, as those of the adapter do."""
    try:
        model = deployment.fresh(folder)
    except Exception as error:  # whatever PEFT raises about the file
        pytest.fail(f"{what}: the saved adapter cannot be loaded: {error}")
    if odd := _at_odds(model, folder):
        odd -= _at_odds(deployment.fresh(adapter), adapter)
    assert not odd, (
        f"{what}: of these modules the saved file has tensors or the saved config is for them, and not "
        f"both: {few(sorted(odd))}"
    )
    return model


def _at_odds(model: Any, folder: Path) -> set[str]:
    """The modules for which a folder has tensors that PEFT does not load, or none where it adds LoRA."""
    try:
        spec = hotswap.AdapterSpec.read(folder)
    except hotswap.UnreadableAdapterError:  # what PEFT has loaded is judged by what it computes
        return set()
    return lora_layers(model).keys() ^ {*spec.modules, *spec.left_out}


def _tensor_scalings(deployment: Deployment) -> set[str]:
    """The layers whose scaling is a tensor."""
    name = deployment.subject.adapter_name
    return {
        module
        for module, layer in lora_layers(deployment.served, name).items()
        if isinstance(layer.scaling[name], torch.Tensor)
    }
