"""Ranks that exchange their adapters together: a vote before anything changes, and one after."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from hotswap.compiler.shards import default_store
from hotswap.engine.layout.registry import Entry, entry_of
from hotswap.engine.parts import Part, parts_of
from hotswap.errors import HotswapError, RankError

TIMEOUT = 30.0
_YES, _NO = "yes:", "no:"
_joined: WeakKeyDictionary[Entry, Ranks] = WeakKeyDictionary()
# how often some ranks were joined, so that no two models have the same name in a store
_known: dict[tuple[int, ...], int] = {}


def swap_together(
    model: Any,
    *,
    timeout: float = TIMEOUT,
    store: Any = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> None:
    """Let every rank that has this model exchange its adapters together with the others, or none.

    Each rank calls it once, after ``torch.distributed`` was initialised, and then the same verbs in the
    same order: a swap is then in place on all ranks, or RankError says which rank could not, did not
    answer within ``timeout`` seconds, or was given another adapter, and every rank is as before. A model
    whose adapter is cut over a mesh does this by itself. ``store`` (with ``rank`` and ``world_size``) is a
    store of torch.distributed for workers that are in no process group. Raises ValueError.
    """
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout}; expected seconds above 0")
    given = [value is not None for value in (store, rank, world_size)]
    if any(given) != all(given):
        raise ValueError("expected store=, rank= and world_size= together, or none of them")
    parts = parts_of(model)
    if store is not None and rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; expected one of 0 to {world_size - 1}")
        ranks = Ranks(store, tuple(range(world_size)), rank, timeout)
    else:
        ranks = _of_process_group(_mesh_of(parts), timeout)
    for part in parts:
        _joined[entry_of(part.model)] = ranks


def join_meshes(parts: Sequence[Part]) -> None:
    """Let the ranks vote over which the adapters of prepared parts are cut, if there are any."""
    if any(entry_of(part.model) not in _joined for part in parts) and _mesh_of(parts):
        ranks = _of_process_group(_mesh_of(parts), TIMEOUT)
        for part in parts:
            _joined[entry_of(part.model)] = ranks


def _mesh_of(parts: Sequence[Part]) -> tuple[int, ...] | None:
    """The ranks over which the parts' adapters are cut; raises HotswapError for several meshes."""
    placements = [place for part in parts for place in entry_of(part.model).placements.values()]
    meshes = {mesh for place in placements for mesh in place.meshes}
    if len(meshes) > 1:
        raise HotswapError(
            f"the adapter is cut over several meshes, of the ranks {sorted(meshes)}; expected one"
        )
    return next(iter(meshes), None)


def _of_process_group(members: tuple[int, ...] | None, timeout: float) -> Ranks:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "torch.distributed is not initialised; call init_process_group() first, or pass "
            "store=, rank= and world_size="
        )
    members = members or tuple(range(dist.get_world_size()))
    return Ranks(default_store(), members, members.index(dist.get_rank()), timeout)


class Agree(Protocol):
    """Wait until every rank is as far; raises RankError unless all of them give the same words.

    ``told`` is what an error calls it.
    """

    def __call__(self, words: Iterable[str] = (), told: str = "") -> None: ...


class Ranks:
    """The ranks that vote on a model's adapters, through a store of torch.distributed.

    ``members`` are their numbers, of which ``index`` is this one's place. There is no collective: one
    rank that comes late would make a process group unusable.
    """

    def __init__(
        self, store: Any, members: tuple[int, ...], index: int, timeout: float = TIMEOUT
    ) -> None:
        import torch.distributed as dist

        count = _known[members] = _known.get(members, -1) + 1
        name = f"hotswap/{members}/{count}"
        self.store: Any = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
        self.members = members
        self.index = index
        self.timeout = timeout
        self._lock = threading.Lock()
        self._turn = 0
        self._spent: list[str] = []  # keys of earlier turns

    def begin(self) -> int:
        """Begin a turn; every rank counts its own."""
        with self._lock:
            self._turn += 1
            return self._turn

    def say(self, step: str, word: str) -> str:
        """Give this rank's word on a step; the first one stands, and is told."""
        key = f"{step}/{self.index}"
        self._spent.append(key)
        return str(self.store.compare_set(key, "", word).decode())

    def settle(self, step: str, verdict: str) -> str:
        """Write what a step has come to, unless somebody has; read it."""
        if self.index == 0:
            self._spent.append(step)
        return str(self.store.compare_set(step, "", verdict).decode())

    def verdict(self, turn: int, step: str) -> str:
        """What a step has come to: read the words of all ranks, as far as they come in time."""
        import torch.distributed as dist

        keys = [f"{step}/{index}" for index in range(len(self.members))]
        try:
            self.store.wait(keys, timedelta(seconds=self.timeout))
        except dist.DistStoreError:
            absent = [index for index, key in enumerate(keys) if not self.store.check([key])]
            if absent:
                self.store.set("over", str(turn))
                return f"{_NO}{absent[0]}:did not answer within {self.timeout:g} s"
        words = [word.decode() for word in self.store.multi_get(keys)]
        for index, word in enumerate(words):
            if word.startswith(_NO):
                return f"{_NO}{index}:{word.removeprefix(_NO)}"
        first, _, told = words[0].removeprefix(_YES).partition("\n")
        for index, word in enumerate(words):
            other, _, wants = word.removeprefix(_YES).partition("\n")
            if other != first:
                return f"{_NO}{index}:was given {wants}, and rank {self.members[0]} another, {told}"
        return _YES

    def catch_up(self) -> None:
        """Leave out the turns that others gave up while they waited for this rank."""
        if self.store.check(["over"]):
            with self._lock:
                self._turn = max(self._turn, int(self.store.get("over")))

    def tidy(self, turn: int) -> None:
        """Drop what this rank said in earlier turns: every rank is in this one."""
        spent = [key for key in self._spent if not key.startswith(f"{turn}/")]
        self._spent = [key for key in self._spent if key.startswith(f"{turn}/")]
        for key in spent:
            self.store.delete_key(key)


class _Turn:
    """One change on all ranks: each says that it can, and later that it has; what all said stands."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._turn = 0
        self._left = ["end", "begin"]
        self._open = True  # whether another one may wait for this rank

    def agree(self, words: Iterable[str] = (), told: str = "") -> None:
        """See ``Agree``."""
        word = f"{_YES}{' '.join(words)}\n{told}"
        ranks, step = self._ranks, self._step(self._left.pop())
        with _or_lost():
            if ranks.say(step, word) != word:
                self._open = False
                rank = ranks.members[ranks.index]
                raise RankError(
                    f"rank {rank} has spoken in this store before, as a process that is gone or a "
                    "second one; call swap_together() on every rank with a store that is new",
                    rank,
                )
            verdict = ranks.settle(step, ranks.verdict(self._turn, step))
            self._open = verdict == _YES and bool(self._left)
            if self._open:
                ranks.tidy(self._turn)
            if verdict == _YES:
                return
            index, _, why = verdict.removeprefix(_NO).partition(":")
            if int(index) == ranks.index:
                ranks.catch_up()
        rank = ranks.members[int(index)]
        raise RankError(f"rank {rank} {why}; every rank keeps the adapter that it had", rank)

    def refuse(self, error: BaseException) -> None:
        """Tell the others that this rank cannot go on, wherever they wait for it."""
        if not self._open:
            return
        word = f"{_NO}cannot ({type(error).__name__}: {str(error)[:300]})"
        with suppress(RankError), _or_lost():
            for step in ("begin", "end"):  # where it has given its word, that stands
                self._ranks.say(self._step(step), word)

    def _step(self, name: str) -> str:
        self._turn = self._turn or self._ranks.begin()
        return f"{self._turn}/{name}"


@contextmanager
def _or_lost() -> Iterator[None]:
    """Raise RankError when the store cannot be reached."""
    import torch.distributed as dist

    try:
        yield
    except dist.DistError as error:
        text = (str(error).splitlines() or [""])[0][:100]
        raise RankError(
            f"the store through which the ranks agree is lost ({text}); start the ranks again", None
        ) from error


@contextmanager
def together(parts: Sequence[Part]) -> Iterator[Agree]:
    """Let all ranks of a deployment change what is changed in a scope, or none of them.

    What the scope yields is called before the change and after it. A failure of the scope is told to the
    others, who then wait no longer. Without ranks it does nothing.
    """
    ranks = _joined.get(entry_of(parts[0].model)) if _joined else None
    if ranks is None:
        yield _alone
        return
    turn = _Turn(ranks)
    try:
        yield turn.agree
    except BaseException as error:
        turn.refuse(error)
        raise


def _alone(words: Iterable[str] = (), told: str = "") -> None:
    """Agree with nobody."""


def votes(agree: Agree) -> bool:
    """Whether other ranks are asked."""
    return agree is not _alone


def require_together(sharded: bool, agree: Agree) -> None:
    """Raise HotswapError for an adapter that was cut since prepare(), whose ranks would each swap alone."""
    if sharded and not votes(agree):
        raise HotswapError(
            "the adapter was cut over several devices after prepare(), so the ranks do not know of each "
            "other; call hotswap.swap_together(model) on every rank first"
        )
