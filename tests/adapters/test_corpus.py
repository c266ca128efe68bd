"""The corpus of the fuzzer: what is kept there, and a little of what it grows into, does no harm."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotswap.adapters.inspect import Inspector
from tests.support.adapter_files import raw_safetensors

CORPUS = sorted((Path(__file__).parents[1] / "corpus").glob("*.bin"))


def inspected(data: bytes) -> list[str]:
    """The codes of an adapter whose config and header stand in a file of the corpus."""
    text, _, header = data.partition(b"\0")
    with tempfile.TemporaryDirectory() as root:
        if text:
            (Path(root) / "adapter_config.json").write_bytes(text)
        name = "adapter_model" if text else "pytorch_lora_weights"
        file = Path(root) / f"{name}.safetensors"
        file.write_bytes(raw_safetensors(header, 4096))
        return [finding.code for finding in Inspector()(root).findings]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_is_kept_is_findings(path: Path) -> None:
    assert "HSW005" in inspected(path.read_bytes())  # of another length than its header says


@settings(max_examples=100, deadline=None)
@given(path=st.sampled_from(CORPUS), seed=st.integers(0, 2**32))
def test_changed_bytes_are_findings(path: Path, seed: int) -> None:
    chance, data = random.Random(seed), bytearray(path.read_bytes())  # noqa: S311
    for _ in range(3):
        at = chance.randrange(len(data))
        data[at : at + chance.randrange(3)] = chance.randbytes(2)
    assert inspected(bytes(data)) != []
