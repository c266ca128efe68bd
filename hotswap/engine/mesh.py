"""Ranks that exchange their adapters together: a vote before anything changes, and one after."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import xxhash
from torch import nn

from hotswap.compiler.shards import default_store, over_ranks
from hotswap.engine.asking import Asker, T
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import Entry, entry_of
from hotswap.engine.layout.sharding import cut_over
from hotswap.engine.parts import Part, parts_of
from hotswap.errors import HotswapError, RankError
from hotswap.findings import printable

TIMEOUT = 30.0
_LONGEST = 1_000_000
_YES, _NO = "yes:", "no:"
_joined: WeakKeyDictionary[Entry, Ranks] = WeakKeyDictionary()
_marks: WeakKeyDictionary[Placement, str] = WeakKeyDictionary()


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
    store of torch.distributed for workers that are in no process group. Raises ValueError, and RankError
    when the store cannot be reached.
    """
    if not 0 < timeout <= _LONGEST:
        raise ValueError(f"timeout is {timeout}; expected seconds above 0, {_LONGEST} at most")
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


class Joining:
    """Ranks that are about to put an adapter into modules that are cut; without ranks it does nothing."""

    def __init__(self, ranks: Ranks | None) -> None:
        self._ranks = ranks
        self._turn = None if ranks is None else _Turn(ranks)

    def agree(self, words: str, told: str) -> None:
        """Wait until every rank is as far; raises RankError. What fails later is told to the next change."""
        if self._ranks is not None and self._turn is not None:
            self._turn([xxhash.xxh3_64(words.encode()).hexdigest()], told)
            self._turn = _Turn(self._ranks)

    def join(self, parts: Sequence[Part]) -> None:
        """Let the ranks vote on what is done to prepared parts."""
        if self._ranks is None:
            join_meshes(parts)
            return
        for part in parts:
            _joined[entry_of(part.model)] = self._ranks

    def refuse(self, error: BaseException) -> None:
        """Tell the others that this rank cannot go on."""
        if self._turn is not None:
            self._turn.refuse(error)


@contextmanager
def joining(modules: Iterable[nn.Module]) -> Iterator[Joining]:
    """Tell the other ranks what fails in a scope that puts an adapter into modules, if they are cut."""
    members = cut_over(modules) if over_ranks() else None
    found = Joining(None if members is None else _of_process_group(members, TIMEOUT))
    try:
        yield found
    except BaseException as error:
        found.refuse(error)
        raise


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

    ``told`` is what an error calls it. ``stands`` tells, of a change that fails here after this rank's last
    word, whether every rank has it all the same.
    """

    def __call__(self, words: Iterable[str] = (), told: str = "") -> None: ...

    def stands(self, error: BaseException) -> bool: ...


class Ranks:
    """The ranks that vote on a model's adapters, through a store of torch.distributed.

    ``members`` are their numbers, of which ``index`` is this one's place. There is no collective: one
    rank that comes late would make a process group unusable. The store counts how often each of them was
    joined, so that no two models have the same name in it, also if a process was started anew.
    """

    def __init__(
        self, store: Any, members: tuple[int, ...], index: int, timeout: float = TIMEOUT
    ) -> None:
        import torch.distributed as dist

        self._joins: Any = dist.PrefixStore(f"hotswap/{members}", store)  # type: ignore[attr-defined]
        self.asker = Asker()
        count = self.asker.ask(partial(self._joins.add, f"joined/{index}", 1), timeout)
        self.store: Any = dist.PrefixStore(f"{count}", self._joins)  # type: ignore[attr-defined]
        self.members = members
        self.index = index
        self.timeout = timeout
        self._lock = threading.Lock()
        self._turn = 0
        self._over = 0  # the last turn that others had given up when this rank's began
        self._spent: list[str] = []  # keys of earlier turns

    def begin(self, word: str = "") -> int:
        """Begin a turn; every rank counts its own.

        Others may have given up turns without this rank, which missed what they were for, or comes late
        with that very word: then it takes that turn and learns it, unless somebody tries again.
        """
        with self._lock:
            self._over = self._given_up()
            turn = self._turn + 1
            if word and turn <= self._over:
                turn = self._late(range(turn, self._over + 1), word) or self._over + 1
            self._turn = turn
            return turn

    def _given_up(self) -> int:
        return int(self.store.get("over")) if self.store.check(["over"]) else 0

    def _late(self, turns: Iterable[int], word: str) -> int:
        """The first of these turns, given up by others, in which one of them gave this word; 0 for none."""
        import torch.distributed as dist

        others = [index for index in range(len(self.members)) if index != self.index]
        for turn in turns:
            for index in others:
                if self._word(turn, index) != word:
                    continue
                with suppress(dist.DistStoreError):  # whoever tries again is about to come
                    again = f"{self._over + 1}/begin/{index}"
                    self.store.wait([again], timedelta(seconds=min(self.timeout / 4, 1)))
                return 0 if self._word(self._over + 1, index) == word else turn
        return 0

    def _word(self, turn: int, index: int) -> str:
        key = f"{turn}/begin/{index}"
        return str(self.store.get(key).decode()) if self.store.check([key]) else ""

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

        if turn <= self._over:
            return f"{_NO}{self.index}:did not answer in time"
        keys = [f"{step}/{index}" for index in range(len(self.members))]
        try:
            self.store.wait(keys, timedelta(seconds=self.timeout))
        except dist.DistStoreError:
            absent = [index for index, key in enumerate(keys) if not self.store.check([key])]
            if absent:
                self.store.set("over", str(max(turn, self._given_up())))
                late = f"did not answer within {self.timeout:g} s"
                times = self._times_joined()
                odd = [index for index in absent if times[index] != times[self.index]]
                if not odd:
                    return f"{_NO}{absent[0]}:{late}"
                told = ", ".join(f"{n} on rank {self.members[i]}" for i, n in enumerate(times))
                return (
                    f"{_NO}{odd[0]}:{late}, as the ranks are out of step: prepare() of a model that is "
                    f"cut and swap_together() joined {told} (call swap_together(model) where it is "
                    "fewer, until they are equal)"
                )
        words = [word.decode() for word in self.store.multi_get(keys)]
        for index, word in enumerate(words):
            if word.startswith(_NO):
                return f"{_NO}{index}:{word.removeprefix(_NO)}"
        first, _, told = words[0].removeprefix(_YES).partition("\n")
        for index, word in enumerate(words):
            other, _, wants = word.removeprefix(_YES).partition("\n")
            if other.partition(" ")[0] != first.partition(" ")[0]:
                return (
                    f"{_NO}{index}:has another model than rank {self.members[0]}, or prepared it "
                    "otherwise; call prepare() with the same ranks on all of them"
                )
            if other != first:
                return f"{_NO}{index}:was given {wants}, and rank {self.members[0]} another, {told}"
        return _YES

    def _times_joined(self) -> list[int]:
        """How often each rank was joined."""
        keys = [f"joined/{index}" for index in range(len(self.members))]
        return [int(self._joins.get(key)) if self._joins.check([key]) else 0 for key in keys]

    def tidy(self, turn: int) -> None:
        """Drop what this rank said in earlier turns: every rank is in this one."""
        spent = [key for key in self._spent if not key.startswith(f"{turn}/")]
        self._spent = [key for key in self._spent if key.startswith(f"{turn}/")]
        for key in spent:
            self.store.delete_key(key)


class _Turn:
    """One change on all ranks: each says that it can, and later that it has; what all said stands."""

    def __init__(self, ranks: Ranks, model: str = "") -> None:
        self._ranks = ranks
        self._model = model
        self._turn = 0
        self._left = ["end", "begin"]
        self._open = True  # whether another one may wait for this rank

    def __call__(self, words: Iterable[str] = (), told: str = "") -> None:
        """See ``Agree``."""
        word = f"{_YES}{' '.join([self._model, *words])}\n{printable(told)}"
        verdict = self._ask(partial(self._exchange, self._left.pop(), word))
        if verdict == _YES:
            return
        index, _, why = verdict.removeprefix(_NO).partition(":")
        rank = self._ranks.members[int(index)]
        raise RankError(f"rank {rank} {why}; every rank keeps the adapter that it had", rank)

    def _exchange(self, name: str, word: str) -> str:
        """Give a word, and learn what the step has come to."""
        ranks = self._ranks
        step = self._step(name, word)
        if ranks.say(step, word) != word:
            self._open = False
            rank = ranks.members[ranks.index]
            raise RankError(
                f"rank {rank} has spoken in this store before, as a process that is gone or a "
                "second one; call swap_together() on every rank",
                rank,
            )
        verdict = ranks.settle(step, ranks.verdict(self._turn, step))
        self._open = verdict == _YES and bool(self._left)
        if self._open:
            ranks.tidy(self._turn)
        return verdict

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return self._ranks.asker.ask(call, self._ranks.timeout)
        except RankError as error:
            self._open = self._open and error.rank is not None
            raise

    def refuse(self, error: BaseException) -> None:
        """Tell the others that this rank cannot go on, wherever they wait for it."""
        if not self._open:
            return
        with suppress(RankError):
            for name in ("begin", "end"):  # where it has given its word, that stands
                self._ask(lambda name=name: self._ranks.say(self._step(name), _cannot(error)))  # type: ignore[misc]

    def stands(self, error: BaseException) -> bool:
        """See ``Agree``. Its last word may be given, and the others have the change if all gave theirs."""
        while not self._left:
            with suppress(KeyboardInterrupt):
                return self._stands(error)
        return False

    def _stands(self, error: BaseException) -> bool:
        ranks, step = self._ranks, self._step("end")

        def asked() -> bool:
            if ranks.say(step, _cannot(error)).startswith(_NO):
                return False
            known = ranks.store.check([step])
            verdict = ranks.settle(step, "" if known else ranks.verdict(self._turn, step))
            self._open = False
            return verdict == _YES

        with suppress(RankError):
            return self._ask(asked)
        return False

    def _step(self, name: str, word: str = "") -> str:
        self._turn = self._turn or self._ranks.begin(word)
        return f"{self._turn}/{name}"


def _cannot(error: BaseException) -> str:
    return f"{_NO}cannot ({type(error).__name__}: {printable(' '.join(str(error).split())[:300])})"


@contextmanager
def together(parts: Sequence[Part]) -> Iterator[Agree]:
    """Let all ranks of a deployment change what is changed in a scope, or none of them.

    What the scope yields is called before the change and after it. A failure of the scope is told to the
    others, who then wait no longer. Without ranks it does nothing.
    """
    ranks = _joined.get(entry_of(parts[0].model)) if _joined else None
    if ranks is None:
        yield _ALONE
        return
    turn = _Turn(ranks, "".join(_mark(at) for part in parts for at in _sharded(part)))
    try:
        yield turn
    except BaseException as error:
        turn.refuse(error)
        raise


def _sharded(part: Part) -> list[Placement]:
    return [place for place in entry_of(part.model).placements.values() if place.sharded]


def _mark(placement: Placement) -> str:
    """What is equal on all ranks that a forward of a model which is cut needs: the shapes of the whole."""
    if placement not in _marks:
        shapes = [(slot.name, *slot.tensor.shape) for slot in placement.slots]
        _marks[placement] = xxhash.xxh3_64(repr(shapes).encode()).hexdigest()
    return _marks[placement]


class _Alone:
    """Agree with nobody."""

    def __call__(self, words: Iterable[str] = (), told: str = "") -> None: ...

    def stands(self, error: BaseException) -> bool:
        return False


_ALONE = _Alone()


def votes(agree: Agree) -> bool:
    """Whether other ranks are asked."""
    return agree is not _ALONE


def require_together(sharded: bool, agree: Agree) -> None:
    """Raise HotswapError for an adapter that was cut since prepare(), whose ranks would each swap alone."""
    if sharded and not votes(agree):
        raise HotswapError(
            "the adapter was cut over several devices after prepare(), so the ranks do not know of each "
            "other; call hotswap.swap_together(model) on every rank first"
        )
