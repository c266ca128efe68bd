"""Hypothesis strategies: plain data, from which tests build tensors."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True, slots=True)
class AdapterDescription:
    """An adapter as data: PEFT's words and the seed of its weights."""

    rank: int
    alpha: int
    use_rslora: bool
    seed: int


def ranks(*, min_value: int = 1, max_value: int = 16) -> st.SearchStrategy[int]:
    """LoRA ranks; shrinks to small ones."""
    return st.integers(min_value, max_value)


def alphas(*, min_value: int = 1, max_value: int = 64) -> st.SearchStrategy[int]:
    """Values of ``lora_alpha``; shrinks to small ones."""
    return st.integers(min_value, max_value)


def adapter_descriptions(*, max_rank: int = 16) -> st.SearchStrategy[AdapterDescription]:
    """Descriptions of single adapters."""
    return st.builds(
        AdapterDescription,
        rank=ranks(max_value=max_rank),
        alpha=alphas(),
        use_rslora=st.booleans(),
        seed=st.integers(0, 2**16),
    )


def swap_sequences(
    n_adapters: int, *, min_size: int = 1, max_size: int = 6
) -> st.SearchStrategy[list[int]]:
    """Sequences of indices into a fleet; shrinks to short ones of low indices."""
    if n_adapters < 1:
        raise ValueError(f"n_adapters is {n_adapters}; expected at least 1")
    return st.lists(st.integers(0, n_adapters - 1), min_size=min_size, max_size=max_size)
