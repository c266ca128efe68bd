"""Scopes of a watch: they nest, overlap, count threads exactly, and leave nothing installed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import hotswap
from hotswap.compiler import private
from tests.support.watched import (
    X,
    warm,
)


def test_the_body_keeps_its_own_exception() -> None:
    with pytest.raises(KeyError, match="mine"), hotswap.forbid_recompiles():
        raise KeyError("mine")


def test_watches_nest_and_leave_nothing_installed() -> None:
    callbacks = list(private.start_callbacks())
    _, compiled = warm()
    heard = []

    def mine(hit: bool) -> bool:
        heard.append(hit)
        return hit

    before = private.set_guard_hook(mine)
    try:
        with hotswap.watch_compiles() as outer:
            compiled(X)
            with hotswap.watch_compiles() as inner:
                compiled(X)
        inner.verdict()
        assert (outer.total_hits, inner.total_hits) == (2, 1)
        assert heard == [True, True]
        assert private.set_guard_hook(mine) is mine
    finally:
        private.set_guard_hook(before)
    assert list(private.start_callbacks()) == callbacks


def test_watches_may_overlap() -> None:
    _, compiled = warm()
    one, two = hotswap.watch_compiles(), hotswap.watch_compiles()
    first = one.__enter__()
    compiled(X)
    second = two.__enter__()
    compiled(X)
    one.__exit__(None, None, None)
    compiled(X)
    two.__exit__(None, None, None)
    assert (first.total_hits, second.total_hits) == (2, 2)


def test_nothing_of_the_users_is_touched() -> None:
    from torch._dynamo.utils import counters

    _, compiled = warm()
    config, stance = torch._dynamo.config.get_config_copy(), private.stance()
    counted = {name: dict(counter) for name, counter in counters.items()}
    with hotswap.watch_compiles() as log:
        compiled(X)
        assert (torch._dynamo.config.get_config_copy(), private.stance()) == (config, stance)
    assert {name: dict(counter) for name, counter in counters.items()} == counted
    assert log.total_hits == 1


def test_threads_are_counted_exactly_and_an_eager_miss_of_a_finished_one_is_kept() -> None:
    model, compiled = warm()

    def work() -> None:
        for _ in range(50):
            compiled(X)

    def miss() -> None:
        with torch._dynamo.config.patch(recompile_limit=1):  # a patch holds in its own thread
            model.scaling["default"] = 3.0
            compiled(X)

    def run(*targets: Any) -> None:
        threads = [threading.Thread(target=target) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with hotswap.watch_compiles(model) as log:
        run(work, work, work, work)
        run(miss)
        assert log.eager_misses == {"Scaled": 1}
    assert (log.hits, log.eager_misses) == ({"Scaled": 200}, {"Scaled": 1})


def test_a_reset_inside_the_scope_is_seen() -> None:
    _, compiled = warm()
    with hotswap.watch_compiles() as log:
        torch._dynamo.reset()
        compiled(X)
        compiled(X)
    assert log.resets == 1
    assert log.verdict(allow_first_compiles=True).outcome == "failed"


def test_a_guard_hook_that_replaces_ours_is_told_and_stays() -> None:
    _, compiled = warm()

    def theirs(hit: bool) -> bool:
        return hit

    try:
        with hotswap.watch_compiles() as log:
            compiled(X)
            private.set_guard_hook(theirs)
        assert "another guard hook was installed" in log.verdict().reasons[0]
        assert private.set_guard_hook(None) is theirs
    finally:
        private.set_guard_hook(None)


def test_a_hook_that_calls_ours_is_told_and_a_later_watch_counts_once() -> None:
    _, compiled = warm()
    try:
        with hotswap.watch_compiles() as first:
            ours = private.set_guard_hook(None)
            private.set_guard_hook(lambda hit: ours is None or ours(hit))
        with hotswap.watch_compiles() as second:
            compiled(X)
        assert (len(first.problems), second.hits, second.problems) == (1, {"Scaled": 1}, [])
    finally:
        private.set_guard_hook(None)
