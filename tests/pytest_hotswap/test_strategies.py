"""Strategies draw plain data within their bounds; what they describe is an adapter that fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from hotswap.adapters.fit import fits
from hotswap.adapters.planner import plan
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import UnreadableAdapterError
from pytest_hotswap import strategies
from pytest_hotswap.adapters.derived import DEFECTS, break_adapter
from pytest_hotswap.adapters.described import AdapterDescription, BrokenAdapter, write_adapter


@given(strategies.swap_sequences(3, min_size=2, max_size=4))
def test_sequences_index_into_the_fleet(sequence: list[int]) -> None:
    assert 2 <= len(sequence) <= 4
    assert set(sequence) <= {0, 1, 2}


@given(strategies.broken_adapters(max_rank=8, modules=["q_proj", "v_proj"]))
def test_a_repr_gives_the_adapter_again(broken: BrokenAdapter) -> None:
    names = {"AdapterDescription": AdapterDescription, "BrokenAdapter": BrokenAdapter}
    assert eval(repr(broken), names) == broken  # noqa: S307
    assert broken.adapter.rank <= 8
    assert len(broken.adapter.without) < 2


def test_a_repr_says_only_what_is_unusual() -> None:
    assert repr(AdapterDescription(2, 4)) == "AdapterDescription(rank=2, alpha=4)"


@given(st.lists(strategies.adapter_specs(), min_size=1, max_size=4))
def test_every_adapter_fits_the_plan_of_its_fleet(specs: list[AdapterSpec]) -> None:
    whole = plan(specs)
    assert all(not spec.findings and not fits(whole, spec) for spec in specs)


def smallest(strategy: st.SearchStrategy[object]) -> object:
    return find(strategy, lambda _: True)


def test_fleets_and_sequences_shrink_to_the_smallest() -> None:
    assert smallest(strategies.fleets(modules=["q_proj"])) == [AdapterDescription(1, 1)]
    assert smallest(strategies.swap_sequences(4)) == [0]
    assert smallest(strategies.broken_adapters()) == BrokenAdapter(
        AdapterDescription(1, 1), "wrong shape"
    )


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_broken_adapter_is_found_by_its_spec_or_by_the_plan(tmp_path: Path, defect: str) -> None:
    whole = plan([strategies._spec(AdapterDescription(4, 8), strategies.MODULES)])
    good = write_adapter(tmp_path / "good", AdapterDescription(2, 4), whole)
    assert not AdapterSpec.read(good).findings
    assert not fits(whole, AdapterSpec.read(good))
    bad = break_adapter(good, tmp_path / "bad", defect, room=whole.ranks)
    if defect == "truncated file":
        with pytest.raises(UnreadableAdapterError, match="truncated"):
            AdapterSpec.read(bad)
    elif defect == "not a number":  # in the values only
        assert not fits(whole, AdapterSpec.read(bad))
    else:
        assert fits(whole, AdapterSpec.read(bad))


@settings(max_examples=20, deadline=None)
@given(strategies.adapter_descriptions(max_rank=8, modules=list(strategies.MODULES)))
def test_a_described_adapter_is_written_within_the_plan(description: AdapterDescription) -> None:
    whole = plan([strategies._spec(AdapterDescription(4, 8), strategies.MODULES)])
    with TemporaryDirectory() as folder:
        spec = AdapterSpec.read(write_adapter(Path(folder) / "one", description, whole))
    assert not spec.findings
    assert not fits(whole, spec)
    assert spec.modules.keys() == strategies.MODULES.keys() - set(description.without)


@pytest.mark.wheel
def test_specs_are_drawn_by_their_type_because_of_the_entry_point() -> None:
    code = (
        "import sys; from hypothesis import strategies as st; "
        "from hotswap import AdapterSpec; print(st.from_type(AdapterSpec)); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "AdapterDescription" in done.stdout


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: strategies.swap_sequences(0), "n_adapters"),
        (lambda: strategies.ranks(min_value=0), "at least 1"),
        (lambda: strategies.adapter_specs(modules={}), "modules is empty"),
    ],
)
def test_impossible_arguments_are_refused_at_once(call: object, text: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=text):
        call()
