"""Laws over sequences of swaps, which Hypothesis draws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import hotswap
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.placed import blame
from pytest_hotswap.contract.probes import few


def draws_examples(test: Any) -> Any:
    """Mark a law's test that Hypothesis runs many times."""
    test.draws_examples = True
    return test


class SequenceLaws:
    """What holds after any sequence of swaps."""

    @draws_examples
    def test_zero_recompiles__any_swap_sequence(self, swapping: Deployment) -> None:
        for path, log in swapping.first_swaps.items():  # else each example would find the same
            verdict = log.verdict()
            if verdict.outcome != "passed":
                pytest.fail(f"zero-recompiles: {path.name}: {few(verdict.reasons)}")
        swapping.run()
        paths = swapping.neighbours(swapping.first)
        for path in paths:  # the oracle runs first: its forwards are not in the scope
            swapping.expected(path)

        @_examples(anew=swapping.disturbed)
        @given(st.lists(st.sampled_from([path.name for path in paths]), min_size=1, max_size=6))
        def holds(names: list[str]) -> None:
            with swapping.as_one():
                swapping.restore()
                with hotswap.watch_compiles() as log:
                    for path in (by_name[name] for name in names):
                        swapping.swap(path)
                        found = swapping.compare(path)
                        assert found.equal, (
                            f"swap-equals-load: {path.name} at the end of {', '.join(names)}: "
                            f"{found.detail}{blame(swapping, path)}"
                        )
                verdict = log.verdict()
                assert verdict.outcome == "passed", f"zero-recompiles: {few(verdict.reasons)}"

        by_name = {path.name: path for path in paths}
        holds()


def _examples(*, anew: bool) -> settings:
    """The profile's settings; few examples where each brings the deployment up anew."""
    base = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
    return settings(base, max_examples=10, phases=[Phase.generate]) if anew else base
