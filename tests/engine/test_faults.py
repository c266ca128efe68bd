"""An exception at any executed line of the engine: all or nothing is done, and nothing stays held.

Lines are drawn from all that an action executes, with their repetitions, by a seed; none is named.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from torch import nn

import hotswap
from hotswap.compiler.compiled import walk
from hotswap.engine.layout import arena
from hotswap.engine.layout.registry import entry_of
from hotswap.engine.layout.slots import lora_layers
from hotswap.engine.peft.functions import hotswap_adapter
from hotswap.engine.transaction import Changes
from hotswap.errors import HotswapError
from tests.support.models import fresh, micro, run, seeded, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")

ENGINE = str(Path(arena.__file__).parents[1])
FAILURES = (KeyboardInterrupt, MemoryError, OSError)
RAISED = (
    *FAILURES,
    HotswapError,
)  # an OSError while a file is read is told as what is wrong with it


class Raise:
    """Raises at the given executed lines of the engine, counted from 1; ``lines`` were there."""

    def __init__(self, *at: int, failure: type[BaseException] = KeyboardInterrupt) -> None:
        self.at, self.failure, self.lines = set(at), failure, 0

    def __enter__(self) -> Raise:
        sys.settrace(self.call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def call(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        return self.line if frame.f_code.co_filename.startswith(ENGINE) else None

    def line(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if event == "line":
            self.lines += 1
            if self.lines in self.at:
                raise self.failure("injected")
        return self.line


@dataclass
class Scene:
    """Some models, what is done to them and what takes that back, and what else may have changed."""

    models: list[Any]
    action: Callable[[], Any]
    back: Callable[[], Any]
    bank: Any = None
    folder: Path | None = None


State = tuple[dict[str, torch.Tensor], dict[str, int], list[Any]]


def state(scene: Scene) -> State:
    """All that an action may change: tensors, what layers and configs say, classes, flags and the bank."""
    tensors: dict[str, torch.Tensor] = {}
    ids: dict[str, int] = {}
    records: list[Any] = []
    for index, model in enumerate(scene.models):
        for name, module in walk(model):
            for key, value in (*module._parameters.items(), *module._buffers.items()):
                if value is not None:
                    path = f"{index}.{name}.{key}"
                    tensors[path] = value.detach().clone()
                    records.append((path, type(value), value.requires_grad))
                    ids |= {path: id(value)} if isinstance(value, nn.Parameter) else {}
            hooks = module._state_dict_hooks, module._load_state_dict_pre_hooks
            counts = [len(each) for each in hooks]
            records.append((name, type(module), sorted(vars(module)), counts))
        for name, layer in lora_layers(model).items():
            scalings = {key: float(value) for key, value in layer.scaling.items()}
            states = dict(getattr(layer.scaling, "states", {}))
            own = (layer.r, layer.lora_alpha, layer.use_rslora, layer.use_dora, layer.lora_bias)
            records.append((name, scalings, states, *map(dict, own), layer.merged_adapters[:]))
        for name, config in getattr(model, "peft_config", {}).items():
            records.append((name, dataclasses.asdict(config), sorted(vars(config))))
        entry = entry_of(model)
        labels = {key: place.label for key, place in entry.placements.items()}
        records.append((entry.on_the_fly, labels))
    if scene.bank is not None:
        records.append((scene.bank.bytes, {n: scene.bank.digest(n) for n in scene.bank}))
    return tensors, ids, records


def same(one: Any, other: Any, *, parameters: bool = True) -> bool:
    """Whether two states are equal; ``parameters``: also which objects the parameters are."""
    (tensors, ids, records), (their_tensors, their_ids, their_records) = one, other
    return (
        records == their_records
        and (ids == their_ids or not parameters)
        and tensors.keys() == their_tensors.keys()
        and all(torch.equal(value, their_tensors[key]) for key, value in tensors.items())
    )


def is_free(scene: Scene) -> bool:
    """Whether nobody has the model's adapters, or waits for them."""
    return not any(
        uses.mine() or uses.waiting or any(ref() for ref in uses._holders.values())
        for uses in (entry_of(model).uses for model in scene.models)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


CONFIGS = {
    "small": {"r": 2, "lora_alpha": 4},
    "dora": {"r": 6, "lora_alpha": 3, "use_dora": True, "alpha_pattern": {"first": 1}},
    "large": {
        "r": 8,
        "use_rslora": True,
        "modules_to_save": ["head"],
        "trainable_token_indices": None,
    },
}


class Both(nn.Module):
    """The layer kinds of ``Micro``, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = micro()
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(tokens).reshape(tokens.shape[0], -1)[:, :32])


@pytest.fixture(scope="module")
def base() -> Any:
    return seeded(Both)


@pytest.fixture(scope="module")
def fleet(base: Any, folder: Path) -> dict[str, Path]:
    return write_fleet(folder, base, CONFIGS)


@pytest.fixture(scope="module")
def plan(fleet: dict[str, Path]) -> Any:
    return hotswap.plan([*fleet.values()])


def scene_of(kind: str, base: Any, fleet: dict[str, Path], plan: Any, folder: Path) -> Scene:
    small, dora, large = fleet["small"], fleet["dora"], fleet["large"]
    if kind in ("prepare", "PEFT's function, unprepared"):
        model = fresh(base, small)
        prepare = lambda: hotswap.prepare(model, target_rank=8)  # noqa: E731
        on_the_fly = lambda: hotswap_adapter(model, dora_free(base, folder), "default")  # noqa: E731
        return Scene([model], prepare if kind == "prepare" else on_the_fly, lambda: None)
    if kind == "swap a pipeline":
        return pipeline_scene(folder)
    if kind == "load":
        model = copy.deepcopy(base)
        return Scene([model], lambda: hotswap.load(model, plan, dora), lambda: None)
    model = hotswap.load(copy.deepcopy(base), plan, small)
    bank = hotswap.AdapterBank(model)
    back = lambda: hotswap.swap(model, small, timeout=1)  # noqa: E731
    bank.add("large", large)
    bank.add("dora", dora)
    loaded = fresh(base, dora)
    tensors, config = get_peft_model_state_dict(loaded), loaded.peft_config["default"]

    def use() -> None:
        with bank.using("large", timeout=1):
            pass

    def unadd() -> None:
        if "new" in bank:
            bank.remove("new")

    actions: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "swap a folder": (lambda: hotswap.swap(model, large), back),
        "swap a state dict": (lambda: hotswap.swap(model, tensors, config=config), back),
        "swap to the base": (lambda: hotswap.swap(model, None), back),
        "set_scale": (lambda: hotswap.set_scale(model, 0.5), lambda: hotswap.set_scale(model, 1.0)),
        "using": (use, back),
        "add": (lambda: bank.add("new", small), unadd),
        "PEFT's function": (lambda: hotswap_adapter(model, dora, "default"), back),
        "save": (lambda: model.save_pretrained(folder / "saved"), lambda: None),
        "prepare again": (lambda: hotswap.prepare(model, target_rank=9), lambda: None),
    }
    back()
    return Scene([model], *actions[kind], bank, folder / "saved")


def pipeline_scene(folder: Path) -> Scene:
    """Two denoisers, of which one is emptied."""
    denoisers = pytest.importorskip("tests.engine.test_denoisers")
    names = {name: folder / f"{name}.safetensors" for name in ("high", "low", "other")}
    for seed, path in enumerate(names.values()):
        if not path.exists():
            denoisers.write(path, 3 + seed, seed)
    pipe = denoisers.fresh(names["high"], names["low"])
    hotswap.prepare(pipe, target_rank=8)
    back = lambda: hotswap.swap(  # noqa: E731
        pipe, {"transformer": names["high"], "transformer_2": names["low"]}, timeout=1
    )
    back()
    action = lambda: hotswap.swap(  # noqa: E731
        pipe, {"transformer": names["other"], "transformer_2": None}
    )
    return Scene([pipe.transformer, pipe.transformer_2], action, back)


def dora_free(base: Any, folder: Path) -> Path:
    """An adapter of another rank for the layers of the small one."""
    if not (folder / "wide").exists():
        write_fleet(folder, base, {"wide": {"r": 5, "lora_alpha": 2}})
    return folder / "wide"


EVENTS = {
    "swap a folder": 700,
    "swap a state dict": 500,
    "swap to the base": 500,
    "swap a pipeline": 300,
    "set_scale": 500,
    "using": 500,
    "add": 400,
    "PEFT's function": 500,
    "save": 300,
    "prepare": 400,
    "prepare again": 300,
    "load": 250,
    "PEFT's function, unprepared": 300,
}
"""How many lines are drawn for each action: 5,450 in all."""
ONCE = {
    "prepare",
    "prepare again",
    "load",
    "PEFT's function, unprepared",
}  # nothing takes these back


def faults(scene: Scene, count: int, draw: random.Random) -> Iterator[tuple[int, ...]]:
    """Run the action with an exception at drawn lines, again and again; one in eight gets a second one."""
    with Raise() as seen:
        scene.action()
    scene.back()
    for turn in range(count):
        at = draw.randint(1, seen.lines)
        more = (at + draw.randint(1, 40),) if turn % 8 == 0 else ()
        failure = FAILURES[turn % 3] if not more else KeyboardInterrupt
        try:
            with Raise(at, *more, failure=failure):
                scene.action()
        except RAISED:
            pass
        yield (at, *more)


@pytest.mark.parametrize("kind", EVENTS)
def test_an_exception_at_any_line_leaves_all_or_nothing(
    kind: str, base: Any, fleet: Any, plan: Any, folder: Path
) -> None:
    draw = random.Random(kind)  # noqa: S311
    make = lambda: scene_of(kind, base, fleet, plan, folder)  # noqa: E731
    scene = make()
    old = state(scene)
    untouched = done = left = 0
    new: Any = None
    if kind not in ONCE:
        scene.action()
        new = state(scene)
        scene.back()
        assert same(old, state(scene))
        for at in faults(scene, EVENTS[kind], draw):
            assert is_free(scene), at
            assert torch.is_grad_enabled(), at
            now = state(scene)
            if same(now, old):
                untouched += 1
            else:
                assert same(now, new), at
                done += 1
                scene.back()
                assert same(state(scene), old), at
        assert untouched + done == EVENTS[kind]
        assert untouched > EVENTS[kind] * 0.7
        return
    with Raise() as seen:
        scene.action()
    new = state(scene)
    scene = make()
    old = state(scene)
    for turn in range(EVENTS[kind]):
        at = [draw.randint(1, seen.lines)]
        at += [at[0] + draw.randint(1, 40)] if turn % 8 == 0 else []
        try:
            with Raise(*at, failure=FAILURES[turn % 3] if len(at) == 1 else KeyboardInterrupt):
                scene.action()
        except RAISED:
            pass
        assert is_free(scene), at
        assert torch.is_grad_enabled(), at
        now = state(scene)
        if same(now, old):
            left += 1
        else:  # done before the exception, or without one
            assert same(now, new, parameters=False), at
            del scene
            scene = make()
            old = state(scene)
    assert left > EVENTS[kind] * 0.7


@pytest.mark.parametrize("kind", ["set_scale", "swap a folder", "prepare"])
def test_what_is_not_taken_back_is_seen(  # noqa: HSW200
    kind: str, base: Any, fleet: Any, plan: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Changes, "callback", lambda *_: None)

    def late(self: random.Random, low: int, high: int) -> int:
        return self.randrange(max(low, high - 80), high + 1)  # where the changes are made

    if kind == "swap a folder":  # which changes the model in few of its lines
        monkeypatch.setattr(random.Random, "randint", late)
    with pytest.raises(AssertionError, match="same"):
        test_an_exception_at_any_line_leaves_all_or_nothing(kind, base, fleet, plan, folder)


@pytest.mark.parametrize("verb", ["swap", "add"])
def test_an_interrupt_in_no_grad_leaves_gradients_on(
    verb: str, base: Any, fleet: Any, plan: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of("swap a folder", base, fleet, plan, folder)

    def interrupted(self: Any, *error: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.no_grad, "__exit__", interrupted)
        verbs = {
            "swap": partial(hotswap.swap, scene.models[0]),
            "add": partial(scene.bank.add, "x"),
        }
        with pytest.raises(KeyboardInterrupt):
            verbs[verb](fleet["small"])
    assert torch.is_grad_enabled()


def test_interrupts_at_random_times_leave_all_or_nothing(
    base: Any, fleet: Any, plan: Any, folder: Path
) -> None:
    """Real signals, 200 of them, into a process that swaps and uses a bank."""
    draw = random.Random(7)  # noqa: S311
    scene = scene_of("swap a folder", base, fleet, plan, folder)
    (model,), bank = scene.models, scene.bank
    expected = {}
    for name, adapter in (("small", fleet["small"]), ("large", fleet["large"]), ("none", None)):
        hotswap.swap(model, adapter)
        expected[name] = state(scene)[0]

    def use() -> None:
        with bank.using("large", timeout=1):
            pass

    actions = [
        lambda: hotswap.swap(model, fleet["small"], timeout=1),
        lambda: hotswap.swap(model, None, timeout=1),
        use,
    ]
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        while interrupted < 200:
            try:
                # once more where Python ignored it, as in the callback of a weak reference
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.0002, 0.012), 1)
                while True:
                    draw.choice(actions)()
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                interrupted += 1
            now = state(scene)[0]
            assert any(
                all(torch.equal(value, now[key]) for key, value in each.items())
                for each in expected.values()
            )
            assert is_free(scene)
            assert torch.is_grad_enabled()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    others = threading.Thread(target=lambda: hotswap.swap(model, fleet["small"], timeout=5))
    others.start()
    others.join()
    torch.testing.assert_close(run(model), run(fresh(base, fleet["small"])))
