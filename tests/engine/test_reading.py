"""What happens to a file, and to the model, while an adapter is read."""

# ruff: noqa: F811 -- fixtures are taken by name

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.engine.incoming import file_reader, parts
from hotswap.engine.layout.registry import entry_of
from hotswap.errors import AdapterError
from tests.engine.test_atomic import base, fleet, model  # noqa: F401
from tests.support.models import bits, fresh, micro, run, same_bits

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_file_that_is_overwritten_while_it_is_read_is_no_mixture(
    fleet: Any, model: Any, monkeypatch: Any
) -> None:
    """Another adapter of the same header, written to the same file after part of it was read."""
    path = fleet["dora"] / "adapter_model.safetensors"
    os.utime(path, (0, 0))
    other = {key: value + 1 for key, value in load_file(path).items()}
    before, readinto, reads = bits(model), file_reader.FileReader.read, []

    def overwrite(file: Any) -> None:
        if not reads:
            reads.append(1)
            save_file(other, path.parent / "other")
            path.write_bytes((path.parent / "other").read_bytes())

    class _File:
        def __init__(self, file: Any) -> None:
            self.file, self.name = file, file.name

        def readinto(self, view: Any) -> int:
            count = self.file.readinto(view)
            overwrite(self.file)
            return int(count)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(
        file_reader.FileReader, "read", lambda self, file, then: readinto(self, _File(file), then)
    )
    with pytest.raises(AdapterError, match="changed while it was read"):
        hotswap.swap(model, fleet["dora"])
    assert same_bits(before, bits(model))
    monkeypatch.undo()
    hotswap.swap(model, fleet["dora"])
    torch.testing.assert_close(run(model), run(fresh(micro(), fleet["dora"])))


def test_a_model_is_not_held_while_files_and_the_hub_are_asked(
    fleet: Any, model: Any, monkeypatch: Any
) -> None:
    uses, read, seen = entry_of(model).uses, parts.read, []

    def slow(*args: Any, **kwargs: Any) -> Any:
        seen.append(uses.mine())
        return read(*args, **kwargs)

    monkeypatch.setattr(parts, "read", slow)
    hotswap.swap(model, fleet["large"])
    assert seen == [[]]


def test_a_file_of_torch_save_is_taken_where_that_is_allowed(
    fleet: Any, model: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(fleet["dora"], folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    before, bank = bits(model), hotswap.AdapterBank(model)
    ways = (lambda: hotswap.swap(model, folder), lambda: bank.add("pickled", folder))
    for way in ways:
        with pytest.raises(AdapterError, match="allow_pickle=True"):
            way()
    assert same_bits(before, bits(model))
    expected = run(fresh(micro(), folder))
    report = hotswap.swap(model, folder, allow_pickle=True)
    assert report.adapter == str(folder)
    torch.testing.assert_close(run(model), expected)
    bank.add("pickled", folder, allow_pickle=True)
    hotswap.swap(model, None)
    with bank.using("pickled"):
        torch.testing.assert_close(run(model), expected)
    plan = hotswap.plan([folder], allow_pickle=True)
    loaded = hotswap.load(micro(), plan, folder, allow_pickle=True)
    torch.testing.assert_close(run(loaded), expected)


@pytest.mark.parametrize("end", [".weight", ".default.weight"])
def test_magnitudes_that_have_the_name_of_a_weight_are_taken_as_peft_does(
    end: str, fleet: Any, model: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "named"
    shutil.copytree(fleet["dora"], folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    names = {name: f"{name}{end}" if name.endswith("vector") else name for name in tensors}
    assert names != {name: name for name in tensors}
    save_file({names[name]: value for name, value in tensors.items()}, file)
    expected = run(fresh(micro(), folder))
    torch.testing.assert_close(expected, run(fresh(micro(), fleet["dora"])))
    hotswap.swap(model, folder)
    torch.testing.assert_close(run(model), expected)
