"""What a law sees around a swap."""

from __future__ import annotations

import threading
import time

from pytest_hotswap.contract.surroundings import left_behind


def test_a_thread_that_goes_on_is_left_behind_and_one_that_ends_is_not() -> None:
    running, end = threading.enumerate(), threading.Event()
    goes_on = threading.Thread(target=end.wait)
    ends = threading.Thread(target=time.sleep, args=(0.2,))
    for thread in (goes_on, ends):
        thread.start()
    assert left_behind(running) == [goes_on]
    end.set()
    goes_on.join()
    assert left_behind(running) == []
