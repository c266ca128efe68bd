"""The texts of an adapter: config and header, from wherever they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

import hotswap
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import UnreadableAdapterError
from tests.support.adapter_files import write_adapter
from tests.support.adapter_samples import WEIGHTS, adapter


def test_a_broken_config_and_broken_weights_are_both_reported(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, config={"r": 0})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UnreadableAdapterError) as caught:
        AdapterSpec.read(folder)
    assert [finding.code for finding in caught.value.findings] == ["HSW003", "HSW004"]


def test_a_weights_file_stands_for_its_folder(tmp_path: Path) -> None:
    adapter(config={"r": 3})(tmp_path)
    found = hotswap.check_adapters(tmp_path / "a" / WEIGHTS)
    assert [finding.code for finding in found] == ["HSW104"]


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_devices_are_not_read(target: str, name: str, tmp_path: Path) -> None:
    adapter()(tmp_path)
    (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / name).symlink_to(target)
    found = {finding.code for finding in hotswap.check_adapters(tmp_path / "a")}
    assert found == {"HSW007"}
