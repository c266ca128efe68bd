"""Laws of refused and interrupted swaps: whatever is wrong, nothing has changed, and all goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_hotswap.adapters.derived import break_adapter, kinds_of
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.interrupts import interrupted
from pytest_hotswap.contract.knobs import knobs_follow
from pytest_hotswap.contract.probes import few
from pytest_hotswap.contract.surroundings import disturbed_by
from pytest_hotswap.contract.threads import torn


class RefusalLaws:
    """What a swap that does not end well leaves behind: nothing."""

    def test_swap_atomic__each_kind(self, swapping: Deployment) -> None:
        """A defect is found in every kind of tensor that an adapter has, the first of its file too."""
        kinds: dict[str, tuple[Path, str, list[tuple[str, int]]]] = {}
        other = swapping.other(swapping.first)  # a copy, in a fleet of one
        others = [other, *swapping.neighbours(swapping.first)]
        for adapter in (*others, *swapping.companions.values()):
            for kind, (key, defects) in kinds_of(adapter).items():
                kinds.setdefault(kind, (adapter, key, defects))
        for kind, (adapter, key, defects) in kinds.items():
            for defect, axis in defects:
                folder = swapping.new_folder()
                bad = break_adapter(adapter, folder, defect, key=key, axis=axis)
                refused = swapping.refuses(bad)
                changes = swapping.snapshot.changes()
                assert refused, (
                    f"swap-atomic: {adapter.name} with a {defect} in {kind} ({key}) is accepted: "
                    f"{few(changes)}"
                )
                assert not changes, (
                    f"swap-atomic: refused ({defect} in {kind}, {key}), but {few(changes)}"
                )

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

    def test_swap_atomic__surroundings(self, swapping: Deployment) -> None:
        """A refusal leaves settings and modes as they were; whether swaps draw numbers is asked elsewhere."""
        bad = [
            break_adapter(swapping.first, swapping.new_folder(), defect)
            for defect in ("not a number", "missing tensor", "truncated file")
        ]
        found = disturbed_by(lambda: [swapping.refuses(each) for each in bad], swapping)
        found = [what for what in found if "random state" not in what]
        assert not found, f"swap-atomic: after a refusal {few(dict.fromkeys(found))}"

    def test_swap_atomic__knobs(self, swapping: Deployment) -> None:
        """After a refusal knobs that follow a swap speak of the adapter in place, not of the refused one."""
        if excuse := swapping.subject.unsupported.get("knobs-follow"):
            pytest.skip(f"not applicable: {excuse}")
        one = swapping.other(swapping.first)
        bad = break_adapter(swapping.rescaled, swapping.new_folder(), "not a number")
        swapping.swap(one)
        try:
            knobs_follow(swapping, one, one.name)
        except AssertionError:
            pytest.skip("not run: the knobs do not follow a swap that goes well either")
        swapping.restore()
        swapping.swap(one)
        if swapping.refuses(bad):
            knobs_follow(swapping, one, f"{one.name}, after another was refused", "swap-atomic")

    def test_swap_atomic__interrupted(self, swapping: Deployment) -> None:
        """An interrupt leaves the adapter of before or the new one, whole, and the next swap works."""
        wrong = interrupted(swapping)
        assert not wrong, f"swap-atomic: {wrong}"

    def test_swap_atomic__threads(self, swapping: Deployment) -> None:
        """Beside a running call, and beside another swap, an adapter is in place whole or not at all."""
        if not getattr(swapping.subject, "thread_safe", False):
            pytest.skip(
                "not applicable: the subject does not promise that swaps and calls may run in several "
                "threads at once (thread_safe)"
            )
        wrong = torn(swapping)
        assert not wrong, f"swap-atomic: {wrong}"
