"""SpecReader: files that change while they are read, and texts that were read before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hotswap.adapters.reader import SpecReader
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import UnreadableAdapterError
from tests.support.adapter_files import write_adapter
from tests.support.adapter_samples import WEIGHTS, adapter


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
