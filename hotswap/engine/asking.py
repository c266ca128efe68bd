"""The store through which ranks agree, asked in time: torch waits for ever where its process has stopped."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from hotswap.errors import RankError

GRACE = 5.0  # seconds that the store itself may take
T = TypeVar("T")


class Asker:
    """A thread that asks a store, one call after the other."""

    def __init__(self) -> None:
        calls: SimpleQueue[Any] = SimpleQueue()
        self._calls = calls
        threading.Thread(target=_answer, args=(calls,), daemon=True).start()
        weakref.finalize(self, calls.put, None)

    def ask(self, call: Callable[[], T], seconds: float) -> T:
        """What a call gives that takes ``seconds`` at most; raises RankError where no store is reached."""
        import torch.distributed as dist

        answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._calls.put((call, answer))
        error: BaseException | None
        try:
            found, error = answer.get(timeout=seconds + GRACE)
        except Empty as late:
            found, error = None, late
        try:
            if error is None:
                return found  # type: ignore[no-any-return]
            if not isinstance(error, (dist.DistError, Empty)):
                raise error
            text = (str(error).splitlines() or ["it does not answer"])[0][:100]
            raise RankError(
                f"the store through which the ranks agree is lost ({text}); start the ranks again",
                None,
            ) from error
        finally:
            del error  # its traceback holds this frame, and a cycle the models in it


def _answer(calls: SimpleQueue[Any]) -> None:
    while (task := calls.get()) is not None:
        call, answer = task
        try:
            answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))
        del task, call, answer  # hold nothing while there is nothing to do
