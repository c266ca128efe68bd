"""Laws of refused and interrupted swaps: whatever is wrong, nothing has changed, and all goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_hotswap.adapters.derived import TOO_LARGE, break_adapter, kinds_of, with_a_module
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

    def test_swap_atomic__too_large(self, swapping: Deployment) -> None:
        """A number may be finite in the file, and infinite as what the model holds."""
        if next(swapping.served.parameters()).dtype == torch.float64:
            pytest.skip("not applicable: nothing is too large for a model in float64")
        bad = break_adapter(swapping.first, swapping.new_folder(), TOO_LARGE)
        refused = swapping.refuses(bad)
        changes = swapping.snapshot.changes()
        assert refused, f"swap-atomic: an adapter with a {TOO_LARGE} is accepted: {few(changes)}"
        assert not changes, f"swap-atomic: refused ({TOO_LARGE}), but {few(changes)}"

    def test_swap_atomic__not_prepared(self, swapping: Deployment) -> None:
        """An adapter with a module that the plan has not is taken whole, or refused."""
        plan = swapping.plan.modules
        plain = (
            path
            for path, spec in swapping.specs.items()
            if not any(m.parameters or m.bias or m.dora for m in spec.modules.values())
        )
        adapter = next(plain, None)
        free = {n: m for n, m in swapping.base.named_modules() if type(m) is torch.nn.Linear}
        name = next((n for n in free if n not in plan and n not in swapping.plan.saved), "")
        if not name or adapter is None:
            pytest.skip(
                "not run: the plan has every linear layer, or no adapter is of such layers alone"
            )
        sizes = (free[name].in_features, free[name].out_features)
        more = with_a_module(adapter, swapping.new_folder(), name, sizes)
        try:
            swapping.expected(more)
        except Exception:  # PEFT takes no LoRA for it
            pytest.skip(f"not run: PEFT loads no adapter of {name}")
        if swapping.refuses(more):
            changes = swapping.snapshot.changes()
            assert not changes, f"swap-atomic: refused ({name} is not prepared), but {few(changes)}"
            return
        found = swapping.compare(more)
        assert found.equal, (
            f"swap-atomic: {adapter.name} with {name}, which is not prepared, is taken in part: "
            f"{found.detail}"
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
