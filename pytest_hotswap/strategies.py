"""Hypothesis strategies: plain data, from which tests build tensors. Drawing imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from hotswap import AdapterSpec
from hotswap.adapters.header import TensorInfo
from pytest_hotswap.adapters.derived import DEFECTS
from pytest_hotswap.adapters.described import AdapterDescription, BrokenAdapter, config_of

MODULES: dict[str, tuple[int, int]] = {"q_proj": (32, 32), "v_proj": (32, 16)}
"""The modules of ``adapter_specs()`` where none are given: name → (in_features, out_features)."""


def ranks(*, min_value: int = 1, max_value: int = 16) -> st.SearchStrategy[int]:
    """LoRA ranks; shrinks to small ones."""
    if not 1 <= min_value <= max_value:
        raise ValueError(
            f"ranks from {min_value} to {max_value}: a rank is at least 1, and min_value must not be "
            "above max_value"
        )
    return st.integers(min_value, max_value)


def alphas(*, min_value: int = 1, max_value: int = 64) -> st.SearchStrategy[int]:
    """Values of ``lora_alpha``; shrinks to small ones."""
    return st.integers(min_value, max_value)


def adapter_descriptions(
    *, max_rank: int = 16, modules: Sequence[str] = ()
) -> st.SearchStrategy[AdapterDescription]:
    """Adapters as data; they shrink to rank 1 and alpha 1 on every module.

    With ``modules`` some of these may be left out, and each may have a rank and an alpha of its own.
    """
    names = sorted(modules)
    one = st.sampled_from(names) if names else st.nothing()
    return st.builds(
        AdapterDescription,
        rank=ranks(max_value=max_rank),
        alpha=alphas(),
        use_rslora=st.booleans(),
        seed=st.integers(0, 2**16),
        without=st.lists(one, max_size=max(len(names) - 1, 0), unique=True).map(
            lambda left: tuple(sorted(left))
        ),
        rank_pattern=_pattern(one, ranks(max_value=max_rank), names),
        alpha_pattern=_pattern(one, alphas(), names),
    )


def adapter_specs(
    *, modules: Mapping[str, tuple[int, int]] | None = None, max_rank: int = 16
) -> st.SearchStrategy[AdapterSpec]:
    """What a reader of adapter files may find: specs of linear layers without a finding."""
    sizes = dict(MODULES if modules is None else modules)
    if not sizes:
        raise ValueError("modules is empty; give a name with (in_features, out_features)")
    return adapter_descriptions(max_rank=max_rank, modules=list(sizes)).map(
        lambda description: _spec(description, sizes)
    )


def fleets(
    *,
    min_size: int = 1,
    max_size: int = 4,
    max_rank: int = 16,
    modules: Sequence[str] = (),
) -> st.SearchStrategy[list[AdapterDescription]]:
    """Adapters that one prepared model may swap between; shrinks to few of small ranks."""
    each = adapter_descriptions(max_rank=max_rank, modules=modules)
    return st.lists(each, min_size=min_size, max_size=max_size, unique=True)


def swap_sequences(
    n_adapters: int, *, min_size: int = 1, max_size: int = 6
) -> st.SearchStrategy[list[int]]:
    """Sequences of indices into a fleet; shrinks to short ones of low indices."""
    if n_adapters < 1:
        raise ValueError(f"n_adapters is {n_adapters}; expected at least 1")
    return st.lists(st.integers(0, n_adapters - 1), min_size=min_size, max_size=max_size)


def broken_adapters(
    *, max_rank: int = 16, modules: Sequence[str] = ()
) -> st.SearchStrategy[BrokenAdapter]:
    """Adapters with exactly one defect each, which a swap must refuse; shrinks to the first of DEFECTS."""
    return st.builds(
        BrokenAdapter,
        adapter=adapter_descriptions(max_rank=max_rank, modules=modules),
        defect=st.sampled_from(DEFECTS),
    )


def register() -> None:
    """Let ``st.from_type(AdapterSpec)`` draw adapter_specs(); Hypothesis calls this by its entry point."""
    st.register_type_strategy(AdapterSpec, adapter_specs())


def _pattern(
    one: st.SearchStrategy[str], values: st.SearchStrategy[int], names: Sequence[str]
) -> st.SearchStrategy[tuple[tuple[str, int], ...]]:
    drawn = st.dictionaries(one, values, max_size=min(2, len(names)))
    return drawn.map(lambda pattern: tuple(sorted(pattern.items())))


def _spec(description: AdapterDescription, sizes: Mapping[str, tuple[int, int]]) -> AdapterSpec:
    tensors: dict[str, TensorInfo] = {}
    for name, (width, height) in sizes.items():
        if name not in description.without:
            rank = description.rank_of(name)
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = TensorInfo("F32", (rank, width), 0, 0)
            tensors[f"{key}.lora_B.weight"] = TensorInfo("F32", (height, rank), 0, 0)
    return AdapterSpec.from_tensors("drawn", config_of(description, sizes), tensors)
