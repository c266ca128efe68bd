"""The contract on the deployment that the options name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_hotswap import HotswapContract

if TYPE_CHECKING:
    from pytest_hotswap.contract.deployment import Deployment


class TestHotswap(HotswapContract):
    """``--hotswap-subject``, or hotswap's own engine on ``--hotswap-base``."""

    def test_swap_atomic__refused(self, swapping: Deployment) -> None:
        """What the static check refuses, swap() refuses too, and the model stays as it was."""
        refused = getattr(swapping.subject, "refused", ())
        if not refused:
            pytest.skip("not applicable: no adapter was refused")
        accepted = [folder.name for folder in refused if not swapping.refuses(folder)]
        changes = swapping.snapshot.changes()
        if accepted or changes:
            told = [f"{name} was swapped in" for name in accepted] + list(changes)[:3]
            pytest.fail(f"swap-atomic: {'; '.join(told)}", pytrace=False)
