"""hotswap.AdapterBank: staged adapters, put in place with one copy, by one user at a time."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import hotswap
from hotswap.engine.layout import placement as placements
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.layout.slots import lora_layers
from hotswap.errors import (
    BusyError,
    HotswapError,
    NoAdapterError,
    NotPreparedError,
    RankTooLargeError,
    UnknownAdapterError,
)
from tests.support.models import fresh, micro, run, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base() -> Any:
    return micro(groups=2)


@pytest.fixture(scope="module")
def fleet(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fleet")
    configs: dict[str, dict[str, Any]] = {
        "a": {"r": 2, "lora_alpha": 4},
        "ab": {"r": 8, "lora_alpha": 3},
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["first", "conv"]},
    }
    return {
        name: write_adapter(folder / name, base, seed=seed, **config)
        for seed, (name, config) in enumerate(configs.items())
    }


@pytest.fixture
def model(base: Any, fleet: dict[str, Path]) -> Any:
    found = fresh(base, fleet["a"])
    hotswap.prepare(found, target_rank=8)
    return found


def bits(model: Any) -> list[torch.Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def filled(model: Any, fleet: dict[str, Path], **limits: Any) -> hotswap.AdapterBank:
    bank = hotswap.AdapterBank(model, **limits)
    for name, folder in fleet.items():
        bank.add(name, folder)
    return bank


def test_using_puts_each_adapter_in_place_without_a_recompile(
    base: Any, fleet: dict[str, Path], model: Any
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    run(compiled)
    bank = filled(compiled, fleet)
    bank.add("none", None)
    with hotswap.forbid_recompiles(compiled):
        for name in ("ab", "a", "lora", "none", "ab"):
            with bank.using(name):
                expected = base if name == "none" else fresh(base, fleet[name])
                torch.testing.assert_close(run(compiled), run(expected))
                assert hotswap.active(compiled) == (None if name == "none" else name)
    assert list(bank) == ["a", "lora", "none", "ab"]  # least recently used first
    assert len(bank) == 4
    assert "lora" in bank


def test_an_adapter_stays_in_place_and_is_not_copied_again(
    fleet: dict[str, Path], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = filled(model, fleet)
    copies: list[Any] = []
    placement = placement_of(model, "default")
    assert placement.arena is not None
    copy_ = placement.arena.copy
    monkeypatch.setattr(placement.arena, "copy", lambda image: (copies.append(image), copy_(image)))
    for _ in range(3):
        with bank.using("ab"):
            pass
    assert len(copies) == 1


def test_a_swap_in_between_is_noticed(base: Any, fleet: dict[str, Path], model: Any) -> None:
    bank = filled(model, fleet)
    with bank.using("ab"):
        pass
    hotswap.swap(model, fleet["a"])
    with bank.using("ab"):
        torch.testing.assert_close(run(model), run(fresh(base, fleet["ab"])))


def test_the_digest_names_the_content(fleet: dict[str, Path], model: Any, tmp_path: Path) -> None:
    bank = hotswap.AdapterBank(model)
    digests = {name: bank.add(name, folder) for name, folder in fleet.items()}
    assert len(set(digests.values())) == 3
    twin = Path(shutil.copytree(fleet["ab"], tmp_path / "twin"))
    assert bank.add("twin", twin) == digests["ab"] == bank.digest("ab")
    reports = [hotswap.swap(model, fleet[name]) for name in ("ab", "a", "lora")]
    assert [report.digest for report in reports] == [digests[n] for n in ("ab", "a", "lora")]


def test_adding_a_name_again_replaces_it(
    base: Any, fleet: dict[str, Path], model: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(fleet["a"], tmp_path / "changing"))
    bank = hotswap.AdapterBank(model)
    bank.add("x", folder)
    with bank.using("x"):
        pass
    shutil.rmtree(folder)
    shutil.copytree(fleet["ab"], folder)
    bank.add("x", folder)
    torch.testing.assert_close(run(model), run(fresh(base, fleet["a"])))  # not touched yet
    with bank.using("x"):
        torch.testing.assert_close(run(model), run(fresh(base, fleet["ab"])))
    assert len(bank) == 1


def test_the_least_recently_used_goes_but_never_the_one_in_place(
    fleet: dict[str, Path], model: Any
) -> None:
    bank = hotswap.AdapterBank(model, max_adapters=2)
    bank.add("a", fleet["a"])
    with bank.using("a"):
        pass
    bank.add("ab", fleet["ab"])
    bank.add("lora", fleet["lora"])
    assert list(bank) == ["a", "lora"]
    size = placement_of(model, "default").layout.bytes
    small = hotswap.AdapterBank(model, max_bytes=2 * size)
    for name, folder in fleet.items():
        small.add(name, folder)
    assert list(small) == ["ab", "lora"]
    assert small.bytes == 2 * size
    with pytest.raises(HotswapError, match=rf"{size} bytes, above max_bytes={size - 1}"):
        hotswap.AdapterBank(model, max_bytes=size - 1).add("a", fleet["a"])


def test_what_does_not_fit_is_refused_and_the_bank_keeps_what_it_had(
    base: Any, fleet: dict[str, Path], model: Any, tmp_path: Path
) -> None:
    bank = filled(model, fleet)
    wide = write_adapter(tmp_path / "wide", base, r=10)
    before = bank.digest("a")
    with pytest.raises(RankTooLargeError):
        bank.add("a", wide)
    assert bank.digest("a") == before
    with (
        pytest.raises(
            UnknownAdapterError, match=r"no adapter 'b' \(found: \['a', 'ab', 'lora'\]\)"
        ),
        bank.using("b"),
    ):
        pass
    bank.remove("ab")
    assert list(bank) == ["a", "lora"]
    with pytest.raises(KeyError):
        bank.remove("ab")


@pytest.mark.parametrize(
    "limits", [{"max_adapters": 0}, {"max_bytes": -1}, {"device": "cuda:0"}], ids=str
)
def test_a_bad_limit_is_refused(model: Any, limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        hotswap.AdapterBank(model, **limits)


def test_the_only_adapter_is_found_under_whatever_name(base: Any, fleet: Any) -> None:
    model = PeftModel.from_pretrained(copy.deepcopy(base), fleet["a"], adapter_name="best").eval()
    hotswap.prepare(model, target_rank=8)
    bank = hotswap.AdapterBank(model)
    bank.add("ab", fleet["ab"])
    with bank.using("ab"):
        torch.testing.assert_close(run(model), run(fresh(base, fleet["ab"])))
    with pytest.raises(NoAdapterError, match="pass adapter_name='best'"):
        hotswap.AdapterBank(model, adapter_name="bets")


def test_an_unprepared_model_is_refused(base: Any, fleet: dict[str, Path]) -> None:
    with pytest.raises(NotPreparedError):
        hotswap.AdapterBank(fresh(base, fleet["a"]))


def test_a_swap_inside_ones_own_use_is_an_error_and_a_scale_is_not(
    base: Any, fleet: dict[str, Path], model: Any
) -> None:
    bank = filled(model, fleet)
    with bank.using("ab"):
        before = bits(model)
        with pytest.raises(BusyError, match=r"inside AdapterBank\.using"):
            hotswap.swap(model, fleet["a"])
        with pytest.raises(BusyError), bank.using("a"):
            pass
        assert same(before, bits(model))
        hotswap.set_scale(model, 0.5)
    hotswap.swap(model, fleet["a"])  # the lock is free again


def test_another_thread_waits_until_its_timeout(fleet: dict[str, Path], model: Any) -> None:
    bank = filled(model, fleet)
    outcomes: list[object] = []

    def attempt() -> None:
        try:
            hotswap.swap(model, fleet["a"], timeout=0.01)
        except TimeoutError as error:
            outcomes.append(str(error))

    with bank.using("ab"):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert outcomes == ["the model's adapters were in use for 0.01 s; raise timeout="]


def _torn(model: Any, bank: hotswap.AdapterBank, turns: int, *, exclusive: bool) -> int:
    """How many outputs of two threads are neither adapter's; each lets go between any two layers."""
    expected = {}
    for name in ("a", "ab"):
        with bank.using(name):
            expected[name] = run(model)
    torn = [0, 0]
    start = threading.Barrier(2)

    def serve(index: int, name: str) -> None:
        start.wait()
        for _ in range(turns):
            if exclusive:
                with bank.using(name):
                    output = run(model)
                torn[index] += not torch.equal(output, expected[name])
            else:
                with bank.using(name):
                    pass
                output = run(model)
                torn[index] += not any(torch.equal(output, e) for e in expected.values())

    threads = [
        threading.Thread(target=serve, args=(index, name)) for index, name in enumerate(("a", "ab"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(torn)


def test_two_threads_never_see_a_mix_in_10000_turns(
    fleet: dict[str, Path], model: Any, many_switches: None
) -> None:
    assert _torn(model, filled(model, fleet), 5_000, exclusive=True) == 0


def test_without_using_outputs_are_torn(
    fleet: dict[str, Path], model: Any, many_switches: None
) -> None:
    bank = filled(model, fleet)
    assert any(_torn(model, bank, 200, exclusive=False) for _ in range(50))


@pytest.mark.parametrize("step", ["tell", "copy", "bump"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_activation_is_undone(
    fleet: dict[str, Path],
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[BaseException],
) -> None:
    bank = filled(model, fleet)
    with bank.using("ab"):
        pass
    hotswap.set_scale(model, 0.25)
    before, config = bits(model), model.peft_config["default"].to_dict()
    placement = placement_of(model, "default")
    targets: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "tell": (placements, "_tell", placements._tell),
        "copy": (placement.arena, "copy", placement.arena.copy),  # type: ignore[union-attr]
        "bump": (torch.autograd.graph, "increment_version", torch.autograd.graph.increment_version),
    }
    owner, name, real = targets[step]
    calls: list[int] = []

    def failing(*arguments: Any) -> None:
        real(*arguments)
        calls.append(1)
        if len(calls) == 1:
            raise error("injected")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(error, match="injected"), bank.using("a"):
            pytest.fail("the body must not run")
    assert same(before, bits(model))
    assert model.peft_config["default"].to_dict() == config
    assert hotswap.active(model) == "ab"
    with bank.using("a"):
        assert hotswap.active(model) == "a"


def test_a_moved_model_is_served_by_the_fallback(
    base: Any, fleet: dict[str, Path], model: Any
) -> None:
    bank = filled(model, fleet)
    assert hotswap.swap(model, fleet["a"]).path == "arena"
    model.to(torch.float64)
    with bank.using("ab"):
        expected = run(fresh(base, fleet["ab"]).to(torch.float64))
        torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-6)
    report = hotswap.swap(model, fleet["lora"])
    assert report.path == "fallback"
    expected = run(fresh(base, fleet["lora"]).to(torch.float64))
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-6)


def test_the_bank_works_on_the_device_of_the_model(
    base: Any, fleet: dict[str, Path], model: Any
) -> None:
    bank = filled(model, fleet, device="model")
    with bank.using("ab"):
        torch.testing.assert_close(run(model), run(fresh(base, fleet["ab"])))


def test_new_modules_under_the_same_name_get_the_adapter_too(
    base: Any, fleet: dict[str, Path], model: Any
) -> None:
    bank = filled(model, fleet)
    with bank.using("a"):
        pass
    _, *others = lora_layers(model).values()
    for layer in others:  # no parameter is assigned
        layer.update_layer("default", 8, 8, config=model.peft_config["default"])
    with bank.using("ab"):
        assert torch.equal(run(model), run(fresh(base, fleet["ab"])))
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.load_state_dict(weights, strict=False, assign=True)
    with bank.using("lora"):
        torch.testing.assert_close(run(model), run(fresh(base, fleet["lora"])))


@pytest.mark.parametrize("written", ["weights in place", "a scale with DoRA", "PEFT's scale"])
def test_a_failing_activation_restores_what_was_written_since(
    base: Any,
    fleet: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: str,
) -> None:
    dora = write_adapter(tmp_path / "dora", base, seed=7, r=4, use_dora=True)
    served = hotswap.load(copy.deepcopy(base), hotswap.plan([*fleet.values(), dora]), dora)
    bank = filled(served, fleet)
    with bank.using("ab"):
        pass
    assert placement_of(served, "default").untouched
    if written == "weights in place":
        with torch.no_grad():
            for slot in placement_of(served, "default").slots:
                slot.tensor.mul_(0.5)
    elif written == "a scale with DoRA":
        hotswap.set_scale(served, 0.25)
    else:
        for layer in lora_layers(served).values():
            layer.scale_layer(0.25)
    before = bits(served)
    assert not placement_of(served, "default").untouched

    with monkeypatch.context() as patch:
        patch.setattr(placements.Placement, "_write", _first_fails())
        with pytest.raises(MemoryError), bank.using("a"):
            pytest.fail("the body must not run")
    assert same(before, bits(served))
    with bank.using("a"):
        torch.testing.assert_close(run(served), run(fresh(base, fleet["a"])))


def _first_fails() -> Callable[..., None]:
    """Write into the arena, but fail after the first time."""
    calls: list[int] = []

    def write(self: Any, image: Any) -> None:
        self.arena.copy(image)
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("injected")

    return write


@pytest.mark.parametrize("inference", [True, False])
def test_an_exchange_counts_its_own_writes(
    fleet: dict[str, Path], model: Any, inference: bool
) -> None:
    bank, placement = filled(model, fleet), placement_of(model, "default")
    for name in ("a", "ab", "a"):
        with torch.inference_mode(inference), bank.using(name):
            assert placement.untouched
    hotswap.swap(model, fleet["lora"])
    assert placement.untouched
