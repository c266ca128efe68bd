"""Processes that are the ranks of a mesh on this machine; each obeys what the test tells it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.rank_models"])  # a rank then starts at once

DEAD = "dead"


@dataclass(frozen=True)
class Raised:
    """What a rank raised, as far as it can be sent."""

    kind: str
    kinds: tuple[str, ...]
    text: str
    rank: int | None = None


class RankPool:
    """Some ranks, in a process group of gloo whose store is in rank 0."""

    def __init__(self, count: int = 2) -> None:
        self._pipes, self._processes = [], []
        for rank in range(count):
            ours, theirs = _context.Pipe()
            process = _context.Process(target=_serve, args=(rank, count, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        port = self._pipes[0].recv()
        for pipe in self._pipes[1:]:
            pipe.send(port)

    def attempt(
        self, function: Callable[..., Any], *args: Any, own: Sequence[tuple[Any, ...]] = ()
    ) -> list[Any]:
        """Call it on every rank at once, with ``own`` arguments of each; what each gave, raised, or DEAD."""
        return self.attempt_on(range(len(self._pipes)), function, *args, own=own)

    def attempt_on(
        self,
        ranks: Sequence[int],
        function: Callable[..., Any],
        *args: Any,
        own: Sequence[tuple[Any, ...]] = (),
    ) -> list[Any]:
        """Call it on some ranks only."""
        for rank in ranks:
            with contextlib.suppress(OSError):
                self._pipes[rank].send((function, (*args, *(own[rank] if own else ()))))
        return [self._result(rank) for rank in ranks]

    def __call__(self, function: Callable[..., Any], *args: Any, **own: Any) -> list[Any]:
        """Call it on every rank, where none may fail."""
        found = self.attempt(function, *args, **own)
        failed = [one for one in found if isinstance(one, Raised) or one == DEAD]
        assert not failed, failed
        return found

    def _result(self, rank: int) -> Any:
        pipe = self._pipes[rank]
        if not pipe.poll(120):
            raise TimeoutError(f"rank {rank} did not answer in 120 s")
        try:
            return pipe.recv()
        except (EOFError, OSError):
            return DEAD

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, count: int, pipe: Any) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", RANK=str(rank), WORLD_SIZE=str(count))
    os.environ.update(LOCAL_RANK=str(rank), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        pipe.send(store.port)
    else:
        store = dist.TCPStore("127.0.0.1", pipe.recv(), is_master=False, wait_for_workers=False)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send(function(*args))
        except BaseException as error:
            kinds = tuple(kind.__name__ for kind in type(error).__mro__)
            told = getattr(error, "rank", None)
            pipe.send(Raised(type(error).__name__, kinds, str(error), told))
