"""Strategies draw plain data within their bounds, without torch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_hotswap.strategies import AdapterDescription, adapter_descriptions, swap_sequences


@given(st.data())
def test_sequences_index_into_the_fleet(data: st.DataObject) -> None:
    sequence = data.draw(swap_sequences(3, min_size=2, max_size=4))
    assert 2 <= len(sequence) <= 4
    assert set(sequence) <= {0, 1, 2}


@given(adapter_descriptions(max_rank=8))
def test_descriptions_stay_within_the_rank(description: AdapterDescription) -> None:
    assert 1 <= description.rank <= 8
    assert "rank=" in repr(description)


def test_an_empty_fleet_is_refused() -> None:
    with pytest.raises(ValueError, match="n_adapters"):
        swap_sequences(0)
