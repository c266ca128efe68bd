"""Laws over the whole envelope of a plan: companions, odd moments, and what is not the adapter."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from hotswap.checks.equivalence import compare
from pytest_hotswap.adapters.derived import break_adapter, widen_adapter
from pytest_hotswap.contract.deployment import NOTE, Deployment, brief
from pytest_hotswap.contract.interrupts import interrupted
from pytest_hotswap.contract.placed import misplaced
from pytest_hotswap.contract.probes import few, uncovered
from pytest_hotswap.contract.surroundings import grown, growth, surroundings


class EnvelopeLaws:
    """What a swap must obey for every adapter that the plan admits, not only for those that are given."""

    def test_swap_equals_load__companions(self, swapping: Deployment) -> None:
        wrong = []
        for what, adapter in swapping.companions.items():
            swapping.restore()
            if swapping.refuses(adapter):
                wrong.append(f"{what} is refused: {swapping.refusal}")
                continue
            found = swapping.compare(adapter)
            if not found.equal:
                wrong.append(f"{what}: {found.detail}{swapping.blame(adapter)}")
            elif placed := misplaced(swapping, adapter):
                wrong.append(f"{what}: {placed[0]}")
        assert not wrong, f"swap-equals-load: of the companions, {few(wrong)}"

    def test_swap_equals_load__rewritten(self, swapping: Deployment) -> None:
        one, other = swapping.first, swapping.other(swapping.first)
        folder = swapping.new_folder()
        shutil.copytree(one, folder)
        swapping.swap(folder, one)  # not in place any more: a deployment may skip the path that is
        shutil.rmtree(folder)
        shutil.copytree(other, folder)
        swapping.swap(folder)
        found = swapping.compare(other)
        assert found.equal, (
            f"swap-equals-load: {other.name}, written to the folder that {one.name} was read from: "
            f"{found.detail}{swapping.blame(other)}"
        )

    def test_swap_forgets__companions(self, swapping: Deployment) -> None:
        """What is in place depends on the adapter only, not on the one before it."""
        adapters = {path.name: path for path in swapping.neighbours(swapping.first)}
        adapters |= swapping.companions
        names = [*adapters]
        for at, (name, adapter) in enumerate(adapters.items()):
            one, other = names[at - 1], names[(at + 1) % len(names)]
            swapping.swap(adapters[one], adapter)
            snapshot = swapping.fingerprint()
            swapping.swap(adapters[other], adapter)
            changes = snapshot.changes(storage=False)
            assert not changes, (
                f"swap-forgets: {name} is not the same after {other} as after {one}: {few(changes)}"
            )

    def test_swap_forgets__memory(self, swapping: Deployment) -> None:
        found = grown(swapping)
        assert not found, f"swap-forgets: {found}"

    def test_control_of_swap_forgets__memory(self, swapping: Deployment) -> None:
        kept: list[Any] = []
        assert growth(swapping, after=lambda: kept.append(torch.zeros(9))), (
            "swap-forgets would not see that each swap leaves a tensor behind"
        )

    def test_swap_has_effect__weights(self, swapping: Deployment) -> None:
        """The outputs come from the weights that are in place."""
        before = swapping.run()
        with torch.no_grad():
            for module in swapping.subject.models(swapping.compiled):
                for parameter in module.parameters():
                    if parameter.is_floating_point():
                        parameter.mul_(1.25)
        same = compare(swapping.run(), before).max_error == 0.0
        assert not same, (
            "swap-has-effect: the outputs stay as they are when every weight of the model changes: "
            "run() does not run it"
        )

    def test_swap_has_effect__distinct(self, swapping: Deployment) -> None:
        paths = swapping.neighbours(swapping.first)
        outputs = [swapping.expected(path) for path in paths]
        twins = [
            path.name
            for path, output in zip(paths[1:], outputs[1:], strict=True)
            if compare(output, outputs[0]).max_error == 0.0
        ]
        assert not twins or len(twins) < len(paths) - 1, (
            f"swap-has-effect: {paths[0].name} and {', '.join(twins)} are the same adapter: "
            "no law can tell whether a swap took place"
        )

    def test_swap_in_place__companions(self, swapping: Deployment) -> None:
        for what, adapter in swapping.companions.items():
            swapping.swap(adapter)
            moved = swapping.snapshot.changes(values=False)
            assert not moved, f"swap-in-place: companion, {what}: {few(moved)}"

    def test_zero_recompiles__companions(self, swapping: Deployment, record_property: Any) -> None:
        swapping.run()
        with hotswap.watch_compiles() as log:
            for adapter in swapping.companions.values():
                swapping.swap(adapter)
                swapping.run()
        # those too that showed whether bringing the snapshot back disturbs
        record_property("hotswap.swaps", len(swapping.companions) + swapping.probed)
        record_property("hotswap.recompiles", len(log.recompiles))
        record_property("hotswap.hits", log.total_hits)
        record_property(
            "hotswap.left_out", "; ".join(f"{k}: {v}" for k, v in swapping.left_out.items())
        )
        if swapping.disturbed:
            record_property("hotswap.note", NOTE)
        if swapping.companions:
            verdict = log.verdict()
            assert verdict.outcome == "passed", (
                f"zero-recompiles: among the companions, {few(verdict.reasons)}"
            )

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
            swapping.swap(other)
            found = swapping.compare(None)
            assert found.equal, (
                f"knobs-follow: {other.name}, swapped in while disabled, has an effect: {found.detail}"
            )
        found = swapping.compare(other)
        assert found.equal, (
            f"knobs-follow: {other.name}, swapped in while disabled, then enabled: {found.detail}"
            f"{swapping.blame(other)}"
        )

    def test_preparation_preserves__any_first(self, deployment: Deployment, adapter: Path) -> None:
        """Whichever adapter is loaded first, it is prepared, or refused before anything changes."""
        subject = deployment.subject
        model = subject.load(subject.base_model(), adapter)
        before, snapshot = deployment.run(model), deployment.fingerprint(model)
        refusal = ""
        try:
            subject.prepare(model, deployment.plan)
        except Exception as error:  # whatever the subject raises is a refusal
            refusal = brief(error)
        changes = snapshot.changes() if refusal else []
        assert not changes, (
            f"preparation-preserves: {adapter.name} is refused ({refusal}), but {few(changes)}"
        )
        found = compare(deployment.run(model), before)
        assert found.equal, (
            f"preparation-preserves: {adapter.name} loaded first: {found.detail}"
            f"{deployment.blame(adapter, model=model)}"
        )

    def test_preparation_covers__any_first(self, deployment: Deployment, adapter: Path) -> None:
        subject = deployment.subject
        model = subject.load(subject.base_model(), adapter)
        try:
            subject.prepare(model, deployment.plan)
        except Exception:  # refused: looked at by preparation-preserves
            return
        missed = uncovered(deployment, model)
        assert not missed, f"preparation-covers: {adapter.name} loaded first: {few(missed)}"

    def test_rank_bound__one_module(self, swapping: Deployment) -> None:
        modules = [*swapping.specs[swapping.first].modules]
        for module in dict.fromkeys((modules[0], modules[len(modules) // 2], modules[-1])):
            swapping.restore()
            groups = swapping.specs[swapping.first].modules[module].groups
            ranks = {**swapping.plan.ranks, module: swapping.room[module] + groups}
            wide = widen_adapter(swapping.first, swapping.new_folder(), ranks)
            refused = swapping.refuses(wide)
            changes = swapping.snapshot.changes()
            assert refused, (
                f"rank-bound: rank {ranks[module]} in {module} alone, above its "
                f"{swapping.room[module]}, was swapped in: {few(changes)}"
            )
            assert not changes, f"rank-bound: refused ({module} alone), but {few(changes)}"

    def test_swap_atomic__narrow_with_a_wrong_config(self, swapping: Deployment) -> None:
        narrow = swapping.companions.get("the narrowest")
        if narrow is None:
            pytest.skip("not run: the plan has no companions")
        bad = break_adapter(narrow, swapping.new_folder(), "wrong rank in the config")
        refused = swapping.refuses(bad)
        changes = swapping.snapshot.changes()
        assert refused, (
            f"swap-atomic: a narrow adapter whose config says another rank: {few(changes)}"
        )
        assert not changes, f"swap-atomic: a narrow adapter is refused, but {few(changes)}"

    def test_swap_atomic__interrupted(self, swapping: Deployment) -> None:
        """An interrupt leaves the adapter of before or the new one, whole, and the next swap works."""
        wrong = interrupted(swapping)
        assert not wrong, f"swap-atomic: {wrong}"

    def test_swap_isolated__surroundings(self, swapping: Deployment) -> None:
        swapping.swap(swapping.other(swapping.first))
        state = random.getstate()
        try:
            with torch.random.fork_rng():
                torch.manual_seed(3)  # a swap that seeds has left its own seed
                random.seed(3)
                before = surroundings(swapping)
                swapping.swap(swapping.first)
                after = surroundings(swapping)
        finally:
            random.setstate(state)
        changed = [f"{what} changed" for what, then in before.items() if after.get(what) != then]
        assert not changed, f"swap-isolated: a swap to {swapping.first.name}: {few(changed)}"

    def test_control_of_swap_isolated__surroundings(self, swapping: Deployment) -> None:
        before = surroundings(swapping)
        with torch.random.fork_rng():
            torch.rand(1)
            assert surroundings(swapping) != before, (
                "swap-isolated would not see that a swap draws random numbers"
            )


def knobs_follow(deployment: Deployment, adapter: Path, what: str) -> None:
    """Turn every knob on the adapter in place: scale, disable and enable, save and reload."""
    subject, model = deployment.subject, deployment.compiled
    tensor = isinstance(_scaling(deployment), torch.Tensor)
    subject.set_scale(model, 0.5)
    assert not tensor or isinstance(_scaling(deployment), torch.Tensor), (
        f"knobs-follow: {what}: after set_scale() the scaling is a number, which recompiles"
    )
    found = deployment.compare(adapter, scale=0.5)
    assert found.equal, f"knobs-follow: {what}: set_scale(0.5) after a swap: {found.detail}"
    subject.set_scale(model, 1.0)
    with subject.disabled(model):
        found = deployment.compare(None)
        assert found.equal, (
            f"knobs-follow: {what}: disabled is not the base model: {found.detail}"
            f"{deployment.blame(None)}"
        )
    found = deployment.compare(adapter)
    assert found.equal, (
        f"knobs-follow: {what}: enabled again is not the adapter: {found.detail}"
        f"{deployment.blame(adapter)}"
    )
    folder = deployment.new_folder()
    subject.save(model, folder)
    try:
        reloaded = deployment.fresh(folder)
    except Exception as error:  # whatever PEFT raises about the file
        pytest.fail(f"knobs-follow: {what}: the saved adapter cannot be loaded: {error}")
    saved = deployment.compare(adapter, model=reloaded)
    assert saved.equal, (
        f"knobs-follow: {what}: the saved adapter reloads differently: {saved.detail}"
        f"{deployment.blame(adapter, model=reloaded)}"
    )


def _scaling(deployment: Deployment) -> Any:
    from hotswap.engine.layout.slots import lora_layers

    name = deployment.subject.adapter_name
    layers = lora_layers(deployment.served, name)
    return next(iter(layers.values())).scaling[name] if layers else None
