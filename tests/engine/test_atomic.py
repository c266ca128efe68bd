"""All or nothing: whatever fails, wherever, the model is as it was and the next good swap works."""

from __future__ import annotations

import copy
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.adapters import texts
from hotswap.engine import transaction
from hotswap.engine.incoming import file_reader, parts, source
from hotswap.engine.layout import arena as arenas
from hotswap.engine.layout import dora, placement
from hotswap.engine.layout.arena import Arena, Layout
from hotswap.engine.layout.registry import entry_of, placement_of
from hotswap.engine.layout.slots import lora_layers
from hotswap.engine.layout.uses import Use, _mine
from hotswap.engine.peft.functions import hotswap_adapter
from hotswap.errors import AdapterError
from tests.support.models import (
    Around,
    Head,
    bits,
    fresh,
    micro,
    run,
    same_bits,
    seeded,
    write_fleet,
)

pytestmark = pytest.mark.filterwarnings("ignore")

FAILURES = [OSError, MemoryError, KeyboardInterrupt]
ENGINE = str(Path(arenas.__file__).parents[1])


@pytest.fixture
def base() -> Any:
    return micro()


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    return write_fleet(
        tmp_path,
        base,
        {
            "small": {"r": 2, "lora_alpha": 4},
            "dora": {"r": 6, "lora_alpha": 3, "use_dora": True, "alpha_pattern": {"first": 1}},
            "large": {"r": 8, "use_rslora": True},
        },
    )


@pytest.fixture
def model(base: Any, fleet: Any) -> Any:
    return hotswap.load(copy.deepcopy(base), hotswap.plan([*fleet.values()]), fleet["small"])


def state(model: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Everything that a swap may change: every tensor, and what the layers and the config say."""
    records = [
        (name, dict(la.r), dict(la.lora_alpha), dict(la.use_rslora), dict(la.scaling.states))
        for name, la in lora_layers(model).items()
    ]
    config = dataclasses.asdict(model.peft_config["default"])
    return bits(model), (records, config, hotswap.active(model))


def same(one: Any, other: Any) -> bool:
    return same_bits(one[0], other[0]) and one[1] == other[1]


def check_recovered(model: Any, before: Any, base: Any, fleet: Any) -> None:
    """Assert that nothing changed, and that the model serves, swaps and saves."""
    assert same(before, state(model))
    for name in ("large", "small"):
        hotswap.swap(model, fleet[name])
        torch.testing.assert_close(run(model), run(fresh(base, fleet[name])))
    assert same(before, state(model))


STEPS: dict[str, tuple[Any, str]] = {
    "reading the config": (texts, "config_text"),
    "reading the header": (texts, "read_raw_header"),
    "allocating the buffer": (file_reader, "_buffer"),
    "reading": (parts, "read"),
    "validating": (transaction, "validate"),
    "staging": (transaction, "stage"),
    "a DoRA norm": (dora, "norm_of"),
    "looking for NaN": (Arena, "finite"),
    "telling the config": (placement, "_tell"),
    "the copy": (Arena, "copy"),
    "autograd's counters": (torch.autograd.graph, "increment_version"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failing_step_changes_nothing(
    step: str, when: str, failure: type, base: Any, fleet: Any, model: Any, monkeypatch: Any
) -> None:
    before = state(model)
    owner, name = STEPS[step]
    works = getattr(owner, name)

    def fails(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, works)
        if when == "after":
            works(*args, **kwargs)
        raise failure("injected")

    hotswap.swap(model, fleet["small"])  # the copy of the old state, too, is made by Arena.copy
    monkeypatch.setattr(owner, name, fails)
    with pytest.raises(failure, match="injected"):
        hotswap.swap(model, fleet["large" if step == "a DoRA norm" else "dora"])
    check_recovered(model, before, base, fleet)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_copy_that_fails_half_way_is_undone(
    failure: type, base: Any, fleet: Any, model: Any, monkeypatch: Any
) -> None:
    before = state(model)
    works = Arena.copy

    def half(self: Arena, other: Arena) -> None:
        if self is not placement_of(model, "default").arena:
            return works(self, other)
        monkeypatch.setattr(Arena, "copy", works)
        for device, buffer in self.buffers.items():
            middle = buffer.numel() // 2
            buffer[:middle].copy_(other.buffers[device][:middle])
        assert not same(before, state(model))
        raise failure("injected")

    monkeypatch.setattr(Arena, "copy", half)
    with pytest.raises(failure, match="injected"):
        hotswap.swap(model, fleet["dora"])
    check_recovered(model, before, base, fleet)


class Interrupt:
    """Raises at the n-th new line of the engine that is run; ``lines`` are those that it saw."""

    def __init__(self, at: int, failure: type) -> None:
        self.at, self.failure = at, failure
        self.lines: set[tuple[str, int]] = set()

    def __enter__(self) -> Interrupt:
        sys.settrace(self.call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def call(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        return self.line if code.co_filename.startswith(ENGINE) else None

    def line(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        place = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and place not in self.lines:
            self.lines.add(place)
            if len(self.lines) == self.at:
                sys.settrace(None)
                raise self.failure("injected")
        return self.line


def interrupts(failure: type, action: Callable[[], Any]) -> Iterator[int]:
    """Run an action again and again, interrupted at each line of the engine in turn.

    What is raised has been dealt with, and its traceback is gone, when the turn is given.
    """
    for at in range(1, 10_000):
        try:
            with Interrupt(at, failure):
                action()
        except failure:
            pass
        else:
            return
        yield at


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("given", ["folder", "state dict", "none"])
def test_a_swap_that_is_interrupted_at_any_line_is_all_or_nothing(
    given: str, failure: type, base: Any, fleet: Any, model: Any, monkeypatch: Any
) -> None:
    adapter: Any = {"folder": fleet["dora"], "none": None}.get(given)
    options = {}
    if given == "state dict":
        loaded = fresh(base, fleet["dora"])
        adapter = get_peft_model_state_dict(loaded)
        options = {"config": loaded.peft_config["default"]}
    old = state(model)
    hotswap.swap(model, adapter, **options)
    new = state(model)
    assert not same(old, new)
    hotswap.swap(model, fleet["small"])
    untouched = swapped = 0
    for _ in interrupts(failure, lambda: hotswap.swap(model, adapter, **options)):
        if same(old, state(model)):
            untouched += 1
        else:
            assert same(new, state(model))  # interrupted after it was done
            swapped += 1
            hotswap.swap(model, fleet["small"])
            assert same(old, state(model))
    assert untouched > 50
    assert swapped < 15
    hotswap.swap(model, fleet["large"])
    made: list[Layout] = []
    new_image = Layout.new
    monkeypatch.setattr(
        Layout, "new", lambda self, *args, **kw: made.append(self) or new_image(self, *args, **kw)
    )
    for name in ("small", "large", "small"):
        hotswap.swap(model, fleet[name])
    assert made == []  # the buffers that are kept were given back


@pytest.mark.parametrize("kind", ["lora", "trained"])
def test_a_prepare_that_is_interrupted_at_any_line_changes_nothing(
    kind: str, base: Any, fleet: Any, tmp_path: Path
) -> None:
    if kind == "trained":
        base = seeded(Head)
        targets = {"target_modules": ["first"]}
        fleet = write_fleet(
            tmp_path / "heads",
            base,
            {
                "small": {"r": 2, **targets, "modules_to_save": ["head"]},
                "dora": {"r": 4, **targets, "modules_to_save": ["head"], "lora_bias": True},
            },
        )
    plan = hotswap.plan([*fleet.values()])
    model = fresh(base, fleet["small"])
    output, before = run(model), unprepared(model)
    count = 0
    for _ in interrupts(KeyboardInterrupt, lambda: hotswap.prepare(model, plan=plan)):
        after = unprepared(model)
        if type(lora_layers(model)["first"].scaling) is not dict:
            break  # interrupted after it was done
        count += 1
        assert before[1] == after[1]
        assert same_bits(before[0], after[0])
    assert count > 50
    torch.testing.assert_close(run(model), output)
    hotswap.prepare(model, plan=plan)
    for folder in fleet.values():
        hotswap.swap(model, folder)
        torch.testing.assert_close(run(model), run(fresh(base, folder)))


def unprepared(model: Any) -> tuple[dict[str, torch.Tensor], Any]:
    return bits(model), [
        (type(module), sorted(set(vars(module))), len(module._state_dict_hooks))
        for module in model.modules()
    ]


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("how", ["set_scale", "using", "PEFT's function"])
def test_what_else_changes_a_model_is_all_or_nothing_at_any_line(
    how: str, failure: type, base: Any, fleet: Any, model: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    for name, folder in fleet.items():
        bank.add(name, folder)

    def use() -> None:
        with bank.using("dora"):
            pass

    action: Callable[[], Any] = {
        "set_scale": lambda: hotswap.set_scale(model, 0.5),
        "using": use,
        "PEFT's function": lambda: hotswap_adapter(model, fleet["dora"], "default"),
    }[how]
    old = state(model)
    action()
    new = state(model)
    hotswap.swap(model, fleet["small"])
    assert not same(old, new)
    untouched = done = 0
    for _ in interrupts(failure, action):
        free = threading.Thread(target=lambda: hotswap.set_scale(model, 1.0))
        if same(old, state(model)):
            untouched += 1
        else:
            assert same(new, state(model))
            done += 1
            hotswap.swap(model, fleet["small"], timeout=1)
        free.start()
        free.join(5)
        assert not free.is_alive()  # no lock stays taken
        assert same(old, state(model))
    assert untouched > 20
    assert done < 20


def test_a_model_that_peft_functions_prepare_on_the_fly_is_as_it_was_when_the_swap_fails(
    base: Any, fleet: Any
) -> None:
    model = fresh(base, fleet["small"])
    before = unprepared(model)
    count = 0
    for _ in interrupts(MemoryError, lambda: hotswap_adapter(model, fleet["large"], "default")):
        after = unprepared(model)
        if type(lora_layers(model)["first"].scaling) is not dict:
            break  # interrupted after it was done
        count += 1
        assert before[1] == after[1]
        assert same_bits(before[0], after[0])
    assert count > 50
    hotswap_adapter(model, fleet["large"], "default")
    torch.testing.assert_close(run(model), run(fresh(base, fleet["large"])))


def test_a_bad_tensor_at_any_position_changes_nothing(
    base: Any, fleet: Any, model: Any, tmp_path: Path
) -> None:
    before = state(model)
    good = load_file(fleet["dora"] / "adapter_model.safetensors")
    for name in good:
        tensors = {key: value.clone() for key, value in good.items()}
        tensors[name].view(-1)[-1] = float("nan")
        save_file(tensors, fleet["dora"] / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match="NaN"):
            hotswap.swap(model, fleet["dora"])
        assert same(before, state(model))
    check_recovered(model, before, base, fleet)


def test_a_file_that_shrinks_while_it_is_read_changes_nothing(
    tmp_path: Path, monkeypatch: Any
) -> None:
    base = seeded(
        lambda: Around(torch.nn.Linear(1024, 8))
    )  # larger than the buffer of an open file
    fleet = write_fleet(
        tmp_path,
        base,
        {
            "one": {"r": 4, "target_modules": ["layer"]},
            "two": {"r": 8, "target_modules": ["layer"]},
        },
    )
    model = hotswap.load(copy.deepcopy(base), hotswap.plan([*fleet.values()]), fleet["one"])
    before = bits(model)
    path = fleet["two"] / "adapter_model.safetensors"
    whole, read_data = path.read_bytes(), file_reader.FileReader.read

    def shrink(*args: Any) -> Any:
        path.write_bytes(whole[:-8])
        return read_data(*args)

    monkeypatch.setattr(file_reader.FileReader, "read", shrink)
    with pytest.raises(AdapterError, match=r"(shrunk|changed) while it was read"):
        hotswap.swap(model, fleet["two"])
    assert same_bits(before, bits(model))
    monkeypatch.undo()
    path.write_bytes(whole)
    hotswap.swap(model, fleet["two"])


def test_a_file_that_is_exchanged_before_it_is_read_changes_nothing(
    fleet: Any, model: Any, monkeypatch: Any
) -> None:
    before = bits(model)
    load = source.IncomingAdapter.load

    def exchange(*args: Any) -> Any:
        other = (fleet["dora"] / "adapter_model.safetensors").read_bytes()
        (fleet["small"] / "adapter_model.safetensors").write_bytes(other)
        return load(*args)

    monkeypatch.setattr(source.IncomingAdapter, "load", exchange)
    with pytest.raises(AdapterError, match="changed while it was read"):
        hotswap.swap(model, fleet["small"])
    assert same_bits(before, bits(model))


def test_an_interrupt_while_it_waits_leaves_the_queue(base: Any, fleet: Any, model: Any) -> None:
    before = state(model)
    uses = entry_of(model).uses
    other = Use("default")
    uses.take(other)

    def take(*_: Any, **__: Any) -> bool:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Event, "wait", take)
        _mine.set(())  # as another request
        with pytest.raises(KeyboardInterrupt):
            hotswap.swap(model, fleet["large"])
    assert uses.waiting == 0
    uses.end(other)
    others = threading.Thread(target=lambda: hotswap.swap(model, fleet["large"], timeout=5))
    others.start()
    others.join()
    assert hotswap.active(model) == str(fleet["large"])
    hotswap.swap(model, fleet["small"])
    check_recovered(model, before, base, fleet)


def test_a_swap_never_asks_for_the_models_state_dict(
    fleet: Any, model: Any, monkeypatch: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("state_dict() packs every quantised weight again")

    monkeypatch.setattr(torch.nn.Module, "state_dict", refuse)
    for folder in fleet.values():
        hotswap.swap(model, folder)
    hotswap.swap(model, None)
