"""What happens to a file, and to the model, while an adapter is read."""

# ruff: noqa: F811 -- fixtures are taken by name

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.engine.incoming import file_reader, source
from hotswap.engine.layout.arena import Arena
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import entry_of
from hotswap.engine.layout.uses import Use
from hotswap.engine.peft.functions import hotswap_adapter
from hotswap.errors import AdapterError, BusyError, HotswapError
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


HOTSWAP: dict[str, Any] = {
    "swap": lambda model, folder: hotswap.swap(model, folder),
    "PEFT's function": lambda model, folder: hotswap_adapter(model, folder, "default"),
}


@pytest.mark.parametrize(
    ("way", "step"),
    [
        *itertools.product(HOTSWAP, ("describing", "reading")),
        ("swap", "looking for NaN"),  # PEFT's function does that when it holds the model
    ],
)
def test_a_model_serves_while_an_adapter_is_read(
    way: str, step: str, fleet: Any, model: Any, monkeypatch: Any
) -> None:
    """A disk, or the hub, may take its time: whoever uses the model, or swaps, does not wait for it."""
    bank = hotswap.AdapterBank(model)
    bank.add("dora", fleet["dora"])
    reading, served = threading.Event(), threading.Event()
    owner, name = {
        "describing": (source, "read_components"),
        "reading": (file_reader.FileReader, "read"),
        "looking for NaN": (Arena, "finite"),
    }[step]
    works = getattr(owner, name)

    def slow(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is thread:
            reading.set()
            assert served.wait(60)
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)
    thread = threading.Thread(target=HOTSWAP[way], args=(model, fleet["large"]))
    thread.start()
    assert reading.wait(60)
    with bank.using("dora", timeout=0):
        torch.testing.assert_close(run(model), run(fresh(micro(), fleet["dora"])))
    for adapter in (fleet["large"], fleet["small"], fleet["dora"]):
        hotswap.swap(model, adapter, timeout=0)
        torch.testing.assert_close(run(model), run(fresh(micro(), adapter)))
    served.set()
    thread.join(60)
    torch.testing.assert_close(run(model), run(fresh(micro(), fleet["large"])))


def test_what_changes_while_an_adapter_waits_for_its_turn_is_noticed(
    fleet: Any, model: Any
) -> None:
    """It was staged by then: base weights, of which it has norms, and the room of the model."""
    base = micro()
    bank = hotswap.AdapterBank(model)
    bank.add("large", fleet["large"])
    hotswap.swap(model, fleet["dora"])
    uses, other = entry_of(model).uses, Use("default")
    uses.take(other)
    errors: list[BaseException] = []

    def swap() -> None:
        try:
            hotswap.swap(model, fleet["large"])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=swap)
    thread.start()
    while not uses.waiting:
        time.sleep(0.001)
    with torch.no_grad():
        for module in ("first", "second", "conv"):
            model.base_model.model.get_submodule(module).get_base_layer().weight.mul_(1.5)
            base.get_submodule(module).weight.mul_(1.5)
    hotswap.prepare(model, target_rank=16)
    uses.end(other)
    thread.join(60)
    assert not errors
    torch.testing.assert_close(run(model), run(fresh(base, fleet["large"])))
    bank = hotswap.AdapterBank(model)
    for name in ("large", "dora"):
        bank.add(name, fleet[name])
    with bank.using("dora"), torch.no_grad():
        model.base_model.model.first.get_base_layer().weight.mul_(1.5)
    with pytest.raises(
        HotswapError, match=r"base weights were written .*'large'.*add\(\) it again"
    ):
        bank.using("large").__enter__()
    with bank.using("dora"):
        pass


def test_what_is_put_back_was_not_staged_in_meanwhile(
    fleet: Any, model: Any, monkeypatch: Any
) -> None:
    """An adapter is put in place, another is staged, and then the first one fails after its copy."""
    bank = hotswap.AdapterBank(model)
    bank.add("dora", fleet["dora"])
    for name in ("large", "small"):  # both of the buffers that are kept have been in place
        hotswap.swap(model, fleet[name])
    before, put, refused = bits(model), Placement.put, []

    def swap() -> None:
        with pytest.raises(BusyError):
            hotswap.swap(model, fleet["large"], timeout=0)
        refused.append(1)

    def fails(self: Placement, *args: Any) -> None:
        put(self, *args)
        for _ in range(2):
            thread = threading.Thread(target=swap)
            thread.start()
            thread.join(60)
        raise OSError("after the copy")

    monkeypatch.setattr(Placement, "put", fails)
    with pytest.raises(OSError, match="after the copy"):
        bank.using("dora").__enter__()
    assert len(refused) == 2
    assert same_bits(before, bits(model))
    monkeypatch.undo()
    for name in ("large", "small", "dora"):
        hotswap.swap(model, fleet[name])
        torch.testing.assert_close(run(model), run(fresh(micro(), fleet[name])))


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
