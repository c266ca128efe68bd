"""Scopes of a bank: entered several times, and over pipelines that share their models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

import hotswap
from hotswap.engine.layout.uses import Uses
from hotswap.errors import BusyError
from tests.support.served import prepared

pytestmark = pytest.mark.filterwarnings("ignore")


def elsewhere(action: Callable[[], Any]) -> Any:
    """Do it in a thread of its own, to its end."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result()


def test_one_scope_object_is_entered_several_times_and_lasts_as_often(
    model: Any, fleet: Any
) -> None:
    bank = hotswap.AdapterBank(model, max_shared=2)
    bank.add("one", fleet["one"])
    scope = bank.using("one")
    for enter in (scope.__enter__, lambda: elsewhere(scope.__enter__)):  # within it, and beside it
        with scope:
            enter()
            scope.__exit__(None, None, None)
            with pytest.raises(BusyError):
                elsewhere(lambda: hotswap.swap(model, fleet["two"], timeout=0.01))
        elsewhere(lambda: hotswap.swap(model, fleet["two"], timeout=5))
    scope.__exit__(None, None, None)  # once too often


def test_pipelines_with_the_same_models_ask_for_them_in_one_order(
    base: Any, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one would have what the other waits for, and wait for what that has."""
    models = {name: prepared(base, fleet["one"]) for name in ("text_encoder", "transformer")}
    turned = dict(reversed(models.items()))
    asked: list[list[int]] = []
    ask = Uses.ask

    def noted(self: Uses, *args: Any, **options: Any) -> bool:
        asked[-1].append(id(self))
        return ask(self, *args, **options)

    monkeypatch.setattr(Uses, "ask", noted)
    for components in (models, turned):
        pipeline = SimpleNamespace(components=components)
        bank = hotswap.AdapterBank(pipeline)
        bank.add("none", None)
        asked.append([])
        hotswap.swap(pipeline, None)
        asked.append([])
        with bank.using("none"):
            pass
    assert asked == [asked[0]] * 4
    assert len(asked[0]) == 2


def test_a_task_whose_event_loop_is_closed_keeps_nobody_waiting(model: Any, fleet: Any) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("one", fleet["one"])
    scope, loop = bank.using("one"), asyncio.new_event_loop()
    elsewhere(scope.__enter__)

    async def until_it_waits() -> None:
        while not hotswap.state(model)["waiting"]:
            await asyncio.sleep(0)

    waiting = loop.create_task(bank.swap("one"))
    loop.run_until_complete(until_it_waits())
    loop.close()
    scope.__exit__(None, None, None)
    hotswap.swap(model, fleet["two"], timeout=5)
    assert not waiting.done()
