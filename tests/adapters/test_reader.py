"""SpecReader: files that change while they are read, and texts that were read before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hotswap.adapters.reader import SpecReader
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import UnreadableAdapterError
from tests.support.adapter_files import write_adapter
from tests.support.adapter_samples import WEIGHTS, adapter, diffusers_file


def test_a_file_that_changes_while_it_is_read_is_a_finding(tmp_path: Path) -> None:
    adapter()(tmp_path)
    file = tmp_path / "a" / WEIGHTS

    def read(change: bytes) -> None:
        with SpecReader().open(str(tmp_path / "a")):
            file.write_bytes(file.read_bytes() + change)
            os.utime(file, ns=(1, 1))

    with pytest.raises(UnreadableAdapterError) as caught:
        read(b"x")
    assert [finding.code for finding in caught.value.findings] == ["HSW009"]


def test_equal_texts_are_described_alike_each_under_its_own_path(tmp_path: Path) -> None:
    reader = SpecReader()
    folders = [write_adapter(tmp_path / name) for name in "abcd"]
    write_adapter(folders[3], rank=4)
    marks = []
    for folder in folders:
        with reader.open(str(folder)) as opened:
            assert opened.spec == AdapterSpec.read(folder)
            assert opened.file is not None
            assert opened.file.name == str(folder / WEIGHTS)
            marks.append(opened.mark)
    assert len({*marks}) == 2
    assert marks[3] != marks[0]


@pytest.mark.parametrize("rank", [2, 3])
def test_texts_of_files_alone_are_told_from_their_headers(rank: int, tmp_path: Path) -> None:
    tensors = {"q.lora_A.weight": ("F32", (2, 8)), "q.lora_B.weight": ("F32", (8, 2))}
    told = {"r": rank, "lora_alpha": 2, "target_modules": ["q"]}
    files = [diffusers_file(tmp_path / f"{n}.safetensors", tensors, told) for n in range(4)]
    reader = SpecReader()
    for file in files:
        assert reader.spec(str(file)) == AdapterSpec.read(file)
        assert bool(reader.spec(str(file)).findings) == (rank == 3)
