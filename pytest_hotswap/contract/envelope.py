"""Laws over the whole envelope of a plan: companions, odd moments, and what is not the adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

import hotswap
from hotswap.adapters.config import CONFIG
from hotswap.checks.equivalence import compare
from pytest_hotswap.adapters.derived import widen_adapter
from pytest_hotswap.contract.deployment import NOTE, Deployment
from pytest_hotswap.contract.placed import blame, misplaced
from pytest_hotswap.contract.probes import changes_of_an_active_one, few
from pytest_hotswap.contract.reading import traces
from pytest_hotswap.contract.settings import changed, files_of
from pytest_hotswap.contract.surroundings import disturbed_by, grown, growth, surroundings


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
                wrong.append(f"{what}: {found.detail}{blame(swapping, adapter)}")
            elif placed := misplaced(swapping, adapter):
                wrong.append(f"{what}: {placed[0]}")
        assert not wrong, f"swap-equals-load: of the companions, {few(wrong)}"

    def test_swap_equals_load__alike(self, swapping: Deployment) -> None:
        """Adapters that differ in a single thing are told apart, either way round."""
        first = swapping.first
        swapping.swap(first)
        for what, alike in swapping.alike.items():
            for name, adapter in ((f"with {what}", alike), (f"after one with {what}", first)):
                swapping.swap(adapter)
                found = swapping.compare(adapter)
                wrong = "" if found.equal else f"{found.detail}{blame(swapping, adapter)}"
                wrong = wrong or few(misplaced(swapping, adapter))
                assert not wrong, f"swap-equals-load: {first.name} {name}: {wrong}"

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
            f"{found.detail}{blame(swapping, other)}"
        )
        for adapter in (one, swapping.negated):  # of the same size and config, one after the other
            shutil.rmtree(folder)
            shutil.copytree(adapter, folder, copy_function=shutil.copyfile)
            swapping.swap(other, folder)
        found = swapping.compare(swapping.negated)
        assert found.equal, (
            f"swap-equals-load: {one.name}, written anew with other weights of the same size: "
            f"{found.detail}{blame(swapping, swapping.negated)}"
        )

    def test_swap_equals_load__names(self, swapping: Deployment) -> None:
        """What is swapped in is what is in the folder, not what another of that name holds."""
        place, adapters = swapping.new_folder(), (swapping.first, swapping.negated)
        one, other = adapters
        named = {
            place / "v1": one,
            place / "elsewhere" / "v1": other,  # the same name in another folder
            place / "v10": one,  # a name that contains the other's
            place / "v1-of-another": other,
            place / "v": one,
        }
        for folder, adapter in named.items():
            shutil.copytree(adapter, folder)
        last = ""
        for folder, adapter in named.items():
            swapping.swap(folder)
            found = swapping.compare(adapter)
            name = folder.relative_to(place)
            assert found.equal, (
                f"swap-equals-load: an adapter named {name}{last}: {found.detail}"
                f"{blame(swapping, adapter)}"
            )
            last = f" after one named {name}"

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
            changes = traces(swapping, snapshot)
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
        swapping.swap(swapping.first)
        before = swapping.run()
        with torch.no_grad():
            for module in swapping.subject.models(swapping.compiled):
                for weight in [*module.parameters()] or [*module.buffers()]:
                    if weight.is_floating_point():
                        weight.mul_(1.25)
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
        if swapping.takes_none:
            swapping.swap(None)
            moved = swapping.snapshot.changes(values=False)
            assert not moved, f"swap-in-place: to no adapter: {few(moved)}"

    def test_swap_in_place__first(self, swapping: Deployment) -> None:
        """The first swaps of all: of two buffers that take turns, the snapshot brings one back."""
        for adapter, moved in swapping.first_moves.items():
            assert not moved, f"swap-in-place: the first swap to {adapter.name}: {few(moved)}"

    def test_zero_recompiles__companions(self, swapping: Deployment, record_property: Any) -> None:
        """Among companions, and to no adapter and back."""
        walk: list[Path | None] = [*swapping.companions.values()]
        if swapping.takes_none:
            walk += [None, swapping.first]
        swapping.run()
        with hotswap.watch_compiles() as log:
            for adapter in walk:
                swapping.swap(adapter)
                swapping.run()
        # those too that showed whether bringing the snapshot back disturbs
        record_property("hotswap.swaps", len(walk) + swapping.probed)
        record_property("hotswap.recompiles", len(log.recompiles))
        record_property("hotswap.hits", log.total_hits)
        record_property(
            "hotswap.left_out", "; ".join(f"{k}: {v}" for k, v in swapping.left_out.items())
        )
        if swapping.disturbed:
            record_property("hotswap.note", NOTE)
        logs = [log] if swapping.first_none is None else [swapping.first_none, log]
        for verdict in (log.verdict() for log in logs if walk):
            assert verdict.outcome == "passed", (
                f"zero-recompiles: among the companions and no adapter, {few(verdict.reasons)}"
            )

    def test_rank_bound__one_module(self, swapping: Deployment) -> None:
        spec = swapping.specs[swapping.first].modules
        modules = [*spec]
        some = [modules[0], modules[len(modules) // 2], modules[-1]]
        narrowest = min(modules, key=lambda name: swapping.room[name])
        each = {(m.kind, m.groups): name for name, m in spec.items()}  # the last one of each kind
        for module in dict.fromkeys([*some, narrowest, *each.values()]):
            swapping.restore()
            groups = swapping.specs[swapping.first].modules[module].groups
            full = swapping.room[module]
            own = {
                name: found.rank for name, found in swapping.specs[swapping.first].modules.items()
            }
            narrow = widen_adapter(swapping.first, swapping.new_folder(), {**own, module: full})
            assert not swapping.refuses(narrow), (
                f"rank-bound: rank {full} in {module}, which takes just that, is refused: "
                f"{swapping.refusal}"
            )
            swapping.restore()
            ranks = {**swapping.plan.ranks, module: full + groups}
            wide = widen_adapter(swapping.first, swapping.new_folder(), ranks)
            refused = swapping.refuses(wide)
            changes = swapping.snapshot.changes()
            assert refused, (
                f"rank-bound: rank {ranks[module]} in {module} alone, above its "
                f"{swapping.room[module]}, was swapped in: {few(changes)}"
            )
            assert not changes, f"rank-bound: refused ({module} alone), but {few(changes)}"

    def test_rank_bound__config(self, swapping: Deployment) -> None:
        """What counts is the rank of the weights, whatever the config says."""
        first, room = swapping.first, swapping.room
        spec = swapping.specs[first].modules
        above = {name: room[name] + module.groups for name, module in spec.items()}
        bad = widen_adapter(first, swapping.new_folder(), above)
        bound = widen_adapter(first, swapping.new_folder(), {name: room[name] for name in spec})
        shutil.copyfile(bound / CONFIG, bad / CONFIG)
        refused = swapping.refuses(bad)
        changes = swapping.snapshot.changes()
        assert refused, (
            "rank-bound: weights above the target rank, whose config says the target, were swapped "
            f"in: {few(changes)}"
        )
        assert not changes, f"rank-bound: refused (the config says less), but {few(changes)}"

    def test_swap_isolated__surroundings(self, swapping: Deployment) -> None:
        first, other = swapping.first, swapping.other(swapping.first)
        walk: list[Path | None] = [other, *[*swapping.companions.values()][:1], first]
        if swapping.takes_none:
            walk.insert(1, None)
        swapping.swap(other)

        def swaps() -> None:
            swapping.swap(*walk)

        found = disturbed_by(swaps, swapping)
        found += changed(swapping.files, files_of(swapping.paths))
        for changes in swapping.first_changes.values():
            found += changes
        names = ", ".join("no adapter" if path is None else path.name for path in walk)
        assert not found, f"swap-isolated: swaps to {names}: {few(dict.fromkeys(found))}"

    def test_swap_isolated__active(self, deployment: Deployment) -> None:
        """A swap of an adapter that is not the active one leaves the active one as it is."""
        changes = changes_of_an_active_one(deployment)
        assert not changes, f"swap-isolated: while another adapter is active: {few(changes)}"

    def test_control_of_swap_isolated__surroundings(self, swapping: Deployment) -> None:
        before = surroundings(swapping)
        with torch.random.fork_rng():
            torch.rand(1)
            assert surroundings(swapping) != before, (
                "swap-isolated would not see that a swap draws random numbers"
            )
