"""A package is swapped right without its model, or refused: never silently wrong."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

import hotswap
from hotswap.bench.timing import default_backend
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.layout.uses import Uses
from hotswap.errors import (
    AdapterError,
    BusyError,
    HotswapError,
    PackageError,
    RankTooLargeError,
    UnknownAdapterError,
)
from tests.support.models import fresh
from tests.support.packages import INPUT, VARIANTS, Packages, base, needs_compiler, rewritten

pytestmark = pytest.mark.filterwarnings("ignore")

compiled = pytest.param("ours", marks=needs_compiler)


def expected(adapter: Path | None, scale: float = 1.0) -> torch.Tensor:
    """What PEFT's fresh load of the adapter gives."""
    model = base() if adapter is None else fresh(base(), adapter)
    if adapter is not None and scale != 1.0:
        for module in model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", scale)
    with torch.no_grad():
        return model(INPUT)


def close(package: Any, adapter: Path | None, scale: float = 1.0) -> None:
    torch.testing.assert_close(package(x=INPUT), expected(adapter, scale))


def in_place(package: Any) -> torch.Tensor:
    """A copy of the bytes that the package reads."""
    arena = placement_of(package, "default").arena
    assert arena is not None
    return arena.buffers[torch.device("cpu")].clone()


def from_folder(package: Any, fleet: dict[str, Path], _: Path) -> None:
    for name in ("large", "small", "some", "large"):
        package.swap(fleet[name])
        assert package.active == str(fleet[name])
        close(package, fleet[name])


def from_state_dict(package: Any, fleet: dict[str, Path], _: Path) -> None:
    for name in ("some", "large"):
        fields = json.loads((fleet[name] / "adapter_config.json").read_text())
        tensors = load_file(fleet[name] / "adapter_model.safetensors")
        for config in (fields, LoraConfig.from_pretrained(str(fleet[name]))):
            package.swap(None)
            package.swap(tensors, config=config)
            close(package, fleet[name])
    with pytest.raises(ValueError, match="pass config="):
        package.swap(tensors)


def from_bank(package: Any, fleet: dict[str, Path], _: Path) -> None:
    for name, folder in fleet.items():
        package.add(name, folder)
    for name in (*fleet, "small", "small"):
        with package.using(name):
            assert package.active == name
            close(package, fleet[name])
    with pytest.raises(UnknownAdapterError), package.using("nobody"):
        pass
    close(package, fleet["small"])


def to_none(package: Any, fleet: dict[str, Path], _: Path) -> None:
    assert package.active is None
    close(package, None)
    package.swap(fleet["large"])
    package.swap(None)
    assert package.active is None
    close(package, None)


def to_scale(package: Any, fleet: dict[str, Path], _: Path) -> None:
    package.swap(fleet["some"])
    for scale in (0.5, 2.0):
        package.set_scale(scale)
        close(package, fleet["some"], scale)
    assert package.swap(fleet["large"]).scale_reset == pytest.approx(2.0)
    close(package, fleet["large"])


def to_larger_rank(package: Any, fleet: dict[str, Path], larger: Path) -> None:
    package.swap(fleet["small"])
    before, output = in_place(package), package(x=INPUT)
    for refused in (package.swap, lambda adapter: package.add("larger", adapter)):
        with pytest.raises(RankTooLargeError, match="has rank 5, the plan allows 4"):
            refused(larger)
    assert torch.equal(before, in_place(package))
    assert torch.equal(output, package(x=INPUT))
    assert package.active == str(fleet["small"])


WAYS: dict[str, Callable[[Any, dict[str, Path], Path], None]] = {
    "folder": from_folder,
    "state dict": from_state_dict,
    "bank": from_bank,
    "None": to_none,
    "set_scale": to_scale,
    "larger rank": to_larger_rank,
}
REFUSED = {
    "plain": {"HSW312", "HSW313"},
    "keep": {"HSW312"},
    "runtime folding": {"HSW312", "HSW314"},
    "freezing": {"HSW312", "HSW315"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", [compiled, "program"])
def test_what_was_exported_for_swaps_is_swapped_right(
    packages: Packages, form: str, way: str
) -> None:
    package = hotswap.Package(getattr(packages, form))
    WAYS[way](package, packages.fleet, packages.larger)


@needs_compiler
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("variant", REFUSED)
def test_what_others_compile_is_refused_before_a_swap_could_be_wrong(
    packages: Packages, variant: str, way: str
) -> None:
    assert set(REFUSED) == {"keep", *VARIANTS}
    with pytest.raises(PackageError) as refused:
        WAYS[way](hotswap.Package(packages.of(variant)), packages.fleet, packages.larger)
    assert {finding.code for finding in refused.value.findings} == REFUSED[variant]
    assert all("hotswap.export" in finding.remedy for finding in refused.value.findings)


@pytest.mark.parametrize("form", [compiled, "program"])
def test_the_verbs_for_models_take_a_package(packages: Packages, form: str) -> None:
    package, fleet = hotswap.Package(getattr(packages, form)), packages.fleet
    report = hotswap.swap(package, fleet["large"])
    assert (report.path, hotswap.active(package)) == ("arena", str(fleet["large"]))
    hotswap.set_scale(package, 0.5)
    close(package, fleet["large"], 0.5)
    bank = hotswap.AdapterBank(package, max_adapters=2)
    assert bank.add("large", fleet["large"]) == report.digest
    with bank.using("large"):
        close(package, fleet["large"])


@pytest.mark.parametrize("form", [compiled, "program"])
def test_what_is_in_place_stays_where_it_is_and_alive(packages: Packages, form: str) -> None:
    package = hotswap.Package(getattr(packages, form))
    package.swap(packages.fleet["large"])
    before = package(x=INPUT)
    gc.collect()
    noise = [
        torch.full((4096,), float("nan")) for _ in range(200)
    ]  # what was freed is written over
    assert torch.equal(package(x=INPUT), before)
    del noise
    place = placement_of(package, "default")
    addresses = [slot.tensor.data_ptr() for slot in place.slots]
    for _ in range(3):
        for folder in packages.fleet.values():
            package.swap(folder)
    package.swap(packages.fleet["large"])
    assert addresses == [slot.tensor.data_ptr() for slot in place.slots]
    assert torch.equal(package(x=INPUT), before)


@needs_compiler
def test_constants_are_never_copied_from_views_of_one_storage(
    packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """load_constants(user_managed=False) reads each view to the end of the storage, into other constants."""
    calls = []
    load = torch._inductor.aoti_load_package

    def watched(*args: Any) -> Any:
        model = load(*args)
        own = model.load_constants
        model.load_constants = lambda *a, **options: calls.append(options) or own(*a, **options)
        return model

    monkeypatch.setattr(torch._inductor, "aoti_load_package", watched)
    package = hotswap.Package(packages.ours)
    package.swap(packages.fleet["large"])
    assert calls == [{"check_full_update": False, "user_managed": True}]


def served_wrong(package: Any, fleet: dict[str, Path]) -> list[bool]:
    """Whether each of the forwards of four threads, inside of using, gave another adapter's output."""
    outputs, names, wrong = {}, ("small", "large"), []
    for name in names:
        package.add(name, fleet[name])
        with package.using(name):
            outputs[name] = package(x=INPUT)

    def serve(name: str) -> None:
        for _ in range(100):
            with package.using(name):
                wrong.append(not torch.equal(package(x=INPUT), outputs[name]))

    threads = [threading.Thread(target=serve, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 400
    return wrong


@pytest.mark.parametrize("form", [compiled, "program"])
def test_within_using_no_forward_sees_two_adapters(packages: Packages, form: str) -> None:
    package = hotswap.Package(getattr(packages, form))
    assert not any(served_wrong(package, packages.fleet))


def test_without_turns_forwards_see_another_adapter(
    packages: Packages, monkeypatch: pytest.MonkeyPatch, many_switches: None
) -> None:
    package = hotswap.Package(packages.program)
    monkeypatch.setattr(Uses, "take", lambda *_: None)
    assert any(served_wrong(package, packages.fleet))


@pytest.mark.parametrize("form", [compiled, "program"])
def test_a_swap_waits_for_who_uses_the_package(packages: Packages, form: str) -> None:
    package, fleet = hotswap.Package(getattr(packages, form)), packages.fleet
    package.add("small", fleet["small"])
    found: list[Any] = []

    def swap() -> None:
        try:
            found.append(package.swap(fleet["large"], timeout=0.05))
        except BusyError as error:
            found.append(error)

    with package.using("small"):
        thread = threading.Thread(target=swap)
        thread.start()
        thread.join()
        close(package, fleet["small"])
    assert isinstance(found[0], BusyError)
    swap()
    close(package, fleet["large"])


@pytest.mark.parametrize("form", [compiled, "program"])
def test_a_swap_that_fails_half_way_is_undone(
    packages: Packages, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, fleet = hotswap.Package(getattr(packages, form)), packages.fleet
    package.swap(fleet["small"])
    package.set_scale(0.5)
    before = in_place(package)
    arena: Any = placement_of(package, "default").arena
    own, calls = type(arena).copy, []

    def fails_once(self: Any, other: Any) -> None:
        own(self, other)
        calls.append(self is arena)
        if self is arena and calls.count(True) == 1:
            raise OSError("half way")

    monkeypatch.setattr(type(arena), "copy", fails_once)
    with pytest.raises(OSError, match="half way"):
        package.swap(fleet["large"])
    assert torch.equal(before, in_place(package))
    assert package.active == str(fleet["small"])
    package.swap(fleet["large"])
    close(package, fleet["large"])


def test_an_adapter_that_does_not_fit_is_refused_as_by_a_model(
    packages: Packages, tmp_path: Path
) -> None:
    package, model = hotswap.Package(packages.program), fresh(base(), packages.fleet["small"])
    hotswap.prepare(model, target_rank=4)
    tensors = load_file(packages.fleet["small"] / "adapter_model.safetensors")
    config = LoraConfig.from_pretrained(str(packages.fleet["small"]))
    key = next(iter(tensors))
    for wrong in (
        {**tensors, key: tensors[key][:, :-1].contiguous()},
        {**tensors, key: tensors[key] * float("nan")},
        {**tensors, key.replace("up", "side").replace("down", "side"): tensors[key]},
        {name: value for name, value in tensors.items() if name != key},
    ):
        told = []
        for target in (package, model):
            with pytest.raises(AdapterError) as refused:
                hotswap.swap(target, wrong, config=config)
            told.append([(f.code, f.where, f.message) for f in refused.value.findings])
        assert told[0] == told[1]
    close(package, None)


def test_what_fits_is_the_plan_of_the_model(packages: Packages) -> None:
    plan = hotswap.Package(packages.program).plan
    assert plan.ranks == {"up": 4, "down": 4}


@pytest.mark.parametrize("form", [compiled, "program"])
def test_a_package_is_neither_moved_nor_copied(packages: Packages, form: str) -> None:
    package = hotswap.Package(getattr(packages, form))
    for move in (package.half, package.cpu, lambda: package.to(torch.float64)):
        with pytest.raises(HotswapError, match="export the model again"):
            move()
    with pytest.raises(HotswapError, match=r"Package\(path\)"):
        copy.deepcopy(package)
    close(package, None)


def change(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Change what the note says of its first slot, or of itself."""

    def changed(told: dict[str, Any]) -> dict[str, Any]:
        (told["slots"][0] if key in told["slots"][0] else told)[key] = value
        return told

    return changed


@needs_compiler
@pytest.mark.parametrize(
    ("note", "code", "text"),
    [
        (change("version", 2), "HSW312", "expected version 1"),
        (change("slots", None), "HSW312", "cannot be read"),
        (change("plan", {}), "HSW312", "not a swap plan"),
        (change("dtype", "float31"), "HSW312", "float31"),
        (change("dtype", "float64"), "HSW316", r"is float32 \[4, 8\] with strides \[8, 1\]"),
        (change("shape", [8, 4]), "HSW316", r"float32 \[8, 4\] with strides \[4, 1\] for its"),
        (change("shape", [4, 8, 1]), "HSW316", r"\[4, 8, 1\]"),
        (change("constant", "nowhere"), "HSW313", "not among the constants"),
        (change("scalings", []), "HSW312", "other modules than its scalings"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_note_that_is_not_of_the_package_is_refused(
    packages: Packages, tmp_path: Path, note: Any, code: str, text: str
) -> None:
    path = rewritten(packages.ours, tmp_path / "changed.pt2", note=note)
    with pytest.raises(PackageError, match=text) as refused:
        hotswap.Package(path)
    assert [finding.code for finding in refused.value.findings] == [code]


@needs_compiler
def test_constants_in_another_order_of_memory_are_refused(
    packages: Packages, tmp_path: Path
) -> None:
    def transposed(code: str) -> str:
        return code.replace("shape = {4, 8};", "shape = {4, 8}; //").replace(
            "stride = {8, 1};", "stride = {1, 4};"
        )

    path = rewritten(packages.ours, tmp_path / "strides.pt2", code=transposed)
    with pytest.raises(PackageError, match=r"with strides \[1, 4\] in the package"):
        hotswap.Package(path)


@needs_compiler
def test_a_package_of_an_unknown_torch_is_refused(packages: Packages, tmp_path: Path) -> None:
    def other(code: str) -> str:
        return code.replace("constants_info_[", "constants[")

    path = rewritten(packages.ours, tmp_path / "unknown.pt2", code=other)
    with pytest.raises(PackageError, match="shows no constants"):
        hotswap.Package(path)


@pytest.mark.parametrize(
    ("data", "text"),
    [(None, "no such file"), (b"", "not a zip"), (b"PK\5\6" + 18 * b"\0", "shows no")],
)
def test_a_file_that_is_no_package_is_refused(
    tmp_path: Path, data: bytes | None, text: str
) -> None:
    path = tmp_path / "model.pt2"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(PackageError, match=text) as refused:
        hotswap.Package(path)
    assert [finding.code for finding in refused.value.findings] == ["HSW311"]


SERVE = """
import json, sys
import hotswap
from safetensors.torch import load_file
import torch

own, folder, larger, *paths = sys.argv[1:]
for path in paths:
    package = hotswap.Package(path)
    package.swap(folder)
    package.add("one", folder)
    with package.using("one"):
        package.set_scale(0.5)
    config = json.load(open(folder + "/adapter_config.json"))
    package.swap(load_file(folder + "/adapter_model.safetensors"), config=config)
    try:
        package.swap(larger)
    except hotswap.HotswapError:
        pass
    torch.save(package(x=torch.load(own + "/input")), path + ".output")
seen = lambda: [name for name in ("peft", "transformers", "diffusers") if name in sys.modules]
print(seen())
hotswap.prepare  # is of PEFT's models
print(seen())
"""


def test_a_process_that_serves_loads_neither_peft_nor_transformers(
    packages: Packages, tmp_path: Path
) -> None:
    paths, folder = [packages.program], packages.fleet["large"]
    if default_backend() == "inductor":
        paths.append(packages.ours)
    torch.save(INPUT, tmp_path / "input")
    command = [sys.executable, "-W", "ignore", "-c", SERVE]
    command += [str(path) for path in (tmp_path, folder, packages.larger, *paths)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["[]", "['peft', 'transformers']"]
    for path in paths:
        torch.testing.assert_close(torch.load(f"{path}.output"), expected(folder))
