"""RankPool: processes on this machine that are the ranks of a process group, and do what they are told."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

_METHODS = multiprocessing.get_all_start_methods()
_context: Any = multiprocessing.get_context("forkserver" if "forkserver" in _METHODS else "spawn")

STARTING = 300.0
"""Seconds in which a rank has to have imported torch and found the others."""

PRELOADED = ["pytest_hotswap.ranks.worker"]
"""What the process imports once from which the ranks are forked, so that each of them starts at once."""

DEAD = "dead"
"""What a rank gives that is there no more."""


@dataclass(frozen=True)
class Raised:
    """What a rank raised, as far as it can be sent."""

    kind: str
    kinds: tuple[str, ...]
    text: str
    rank: int | None = None


class RankLostError(RuntimeError):
    """A rank has died, or gives no sign of life."""


class RankPool:
    """Some ranks in a process group, whose store is in rank 0.

    A rank that neither answers nor gives a sign of life (``alive`` on its side) is given up after
    ``patience`` seconds; no collective operation takes longer than half of that.
    """

    def __init__(self, count: int = 2, *, patience: float = 120.0) -> None:
        if "forkserver" in _METHODS:
            _context.set_forkserver_preload(PRELOADED)
        self.count = count
        self.patience = patience
        self._pipes, self._processes = [], []
        self._alive: Any = _context.Array("Q", count, lock=False)
        for rank in range(count):
            ours, theirs = _context.Pipe()
            given = (rank, count, theirs, self._alive, patience / 2)
            process = _context.Process(target=_serve, args=given, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            port = self._result(0, patience=STARTING)
            for pipe in self._pipes[1:]:
                pipe.send(port)
            self.backend: str = self._of_all(
                [self._result(rank, patience=STARTING) for rank in range(count)]
            )[0]
        except BaseException:
            self.close()
            raise

    def attempt(
        self, function: Callable[..., Any], *args: Any, own: Sequence[tuple[Any, ...]] = ()
    ) -> list[Any]:
        """Call it on every rank at once, with ``own`` arguments of each; what each gave, Raised, or DEAD.

        Raises RankLostError for a rank that hangs.
        """
        return self.attempt_on(range(self.count), function, *args, own=own)

    def attempt_on(
        self,
        ranks: Sequence[int],
        function: Callable[..., Any],
        *args: Any,
        own: Sequence[tuple[Any, ...]] = (),
    ) -> list[Any]:
        """Call it on some ranks only."""
        self._send(ranks, function, args, own)
        return [self._result(rank) for rank in ranks]

    def _send(
        self,
        ranks: Sequence[int],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        own: Sequence[tuple[Any, ...]] = (),
    ) -> None:
        for rank in ranks:
            with contextlib.suppress(OSError):
                self._pipes[rank].send((function, (*args, *(own[rank] if own else ()))))

    def __call__(self, function: Callable[..., Any], *args: Any, **own: Any) -> list[Any]:
        """Call it on every rank; raises RankLostError as soon as one has died, or where one fails."""
        self._send(range(self.count), function, args, **own)
        return self._of_all([self._result(rank, alone=False) for rank in range(self.count)])

    def _of_all(self, found: list[Any]) -> list[Any]:
        for rank, one in enumerate(found):
            if isinstance(one, str) and one == DEAD:
                code = self._processes[rank].exitcode
                raise RankLostError(f"rank {rank} has died (exit code {code})")
        for rank, one in enumerate(found):
            if isinstance(one, Raised):
                raise RankLostError(f"rank {rank} raised {one.kind}: {one.text}")
        return found

    def _result(self, rank: int, *, alone: bool = True, patience: float | None = None) -> Any:
        """What a rank gives; without any other one it is waited for, or not."""
        patience = self.patience if patience is None else patience
        seen, since = list(self._alive), time.monotonic()
        while not self._pipes[rank].poll(0.5):
            if not alone and not all(process.is_alive() for process in self._processes):
                return None  # there is one that gives DEAD
            if list(self._alive) != seen:
                seen, since = list(self._alive), time.monotonic()
            elif time.monotonic() - since > patience:
                raise RankLostError(
                    f"rank {rank} has not answered, and no rank did anything, for {patience:g} s"
                )
        try:
            return self._pipes[rank].recv()
        except (EOFError, OSError):
            self._processes[rank].join(5)
            return DEAD

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, count: int, pipe: Any, alive: Any, limit: float) -> None:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    os.environ.update(LOCAL_WORLD_SIZE=str(count), TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    import torch
    from torch import distributed

    dist: Any = distributed

    torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    backend = "gloo"
    if torch.cuda.device_count() >= count and dist.is_nccl_available():
        backend = "nccl"
        torch.cuda.set_device(rank)
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        pipe.send(store.port)
    else:
        store = dist.TCPStore("127.0.0.1", pipe.recv(), is_master=False, wait_for_workers=False)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=limit)
    )
    HERE.rank, HERE.count, HERE.limit, HERE.backend = rank, count, limit, backend
    HERE.alive = alive
    pipe.send(backend)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return  # the controller is gone
        try:
            pipe.send(function(*args))
        except BaseException as error:
            kinds = tuple(kind.__name__ for kind in type(error).__mro__)
            told = getattr(error, "rank", None)
            pipe.send(Raised(type(error).__name__, kinds, str(error), told))


class _Here:
    """The rank that this process is."""

    rank = 0
    count = 1
    limit = 60.0  # seconds that a rank waits for another one
    backend = "gloo"
    alive: Any = None

    def live(self) -> None:
        """Give a sign of life."""
        if self.alive is not None:
            self.alive[self.rank] += 1


HERE = _Here()
