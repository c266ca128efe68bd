"""Lockstep: ranks make the same calls one by one, and none waits for one that has left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pytest_hotswap.ranks.pool import HERE

_STEPS = {"load", "prepare", "compile", "run", "swap", "add", "remove", "set_scale", "save"}
"""Calls of a subject in which ranks may wait for each other."""


class PartedError(BaseException):
    """The ranks do not do the same any more; no law takes it for what a subject raises.

    ``depth`` is that of the scope that some rank has left, ``words`` what each rank said then.
    """

    def __init__(
        self, text: str, depth: int = 0, words: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(text)
        self.depth = depth
        self.words = words or []


class AbsentError(BaseException):
    """A rank does not come: the ranks cannot go on."""


class Lockstep:
    """The turns of the ranks, through a store of torch.distributed: in each turn all say where they are."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._turn = 0
        self._depth = 0

    def meet(self, call: str, value: Any = None) -> list[Any]:
        """Wait until every rank makes this call, and give the values of all.

        Raises PartedError where a rank does something else.
        """
        words = self._say({"call": call, "value": value})
        if ended := [word["end"] for word in words if "end" in word]:
            raise PartedError(_parted(words), min(ended), words)
        if any(word["call"] != call for word in words):
            raise PartedError(_parted(words))
        return [word["value"] for word in words]

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """A scope that fails on every rank if it fails on one; raises PartedError on the others."""
        self._depth += 1
        depth = self._depth
        failed: BaseException | None = None
        try:
            yield
            words = self._say({"end": depth, "failed": None})
        except PartedError as error:
            words, failed = error.words, error
            if 0 < error.depth < depth:
                raise
            if not error.depth:
                words = self._say({"end": depth, "failed": str(error)})
        except AbsentError:
            raise
        except pytest.skip.Exception as error:
            words, failed = self._say({"end": depth, "failed": None}), error
        except BaseException as error:
            words, failed = self._say({"end": depth, "failed": str(error) or repr(error)}), error
        finally:
            self._depth -= 1
        ends = [word.get("end", depth + 1) for word in words]
        if min(ends) < depth:
            raise PartedError(_parted(words), min(ends), words)
        own_failure = failed is not None and not isinstance(failed, PartedError)
        if own_failure and failed is not None:
            raise failed
        others = [(rank, word["failed"]) for rank, word in enumerate(words) if word.get("failed")]
        if others:
            text = f"rank {others[0][0]}: {others[0][1]}"
            # within a law Hypothesis goes on from here, on every rank alike
            raise PartedError(text) if depth == 1 else AssertionError(text)
        if any(word != words[0] for word in words):
            raise PartedError(_parted(words))

    def _say(self, word: dict[str, Any]) -> list[dict[str, Any]]:
        """Give this rank's word in the next turn, and hear those of all."""
        import torch.distributed as dist

        HERE.live()
        self._turn += 1
        keys = [f"{self._turn}/{rank}" for rank in range(HERE.count)]
        self._store.set(keys[HERE.rank], json.dumps(word))
        try:
            self._store.wait(keys, timedelta(seconds=HERE.limit))
        except dist.DistStoreError as error:
            absent = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            raise AbsentError(
                f"rank {', '.join(map(str, absent))} did not come to {_where(word)} within "
                f"{HERE.limit:g} s"
            ) from error
        words = [json.loads(found) for found in self._store.multi_get(keys)]
        self._store.delete_key(f"{self._turn - 1}/{HERE.rank}")  # every rank has read it
        return words


def _where(word: dict[str, Any]) -> str:
    if "call" in word:
        return str(word["call"])
    return f"an end ({word['failed']})" if word["failed"] else "the end"


def _parted(words: list[dict[str, Any]]) -> str:
    at = ", ".join(f"rank {rank} is at {_where(word)}" for rank, word in enumerate(words))
    return f"the ranks do not do the same: {at}"


class InStep:
    """A subject whose calls the ranks make together."""

    def __init__(self, subject: Any, lockstep: Lockstep) -> None:
        self._subject = subject
        self._lockstep = lockstep

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._subject, name)
        if name not in _STEPS:
            return value

        def together(*args: Any, **more: Any) -> Any:
            self._lockstep.meet(_told(name, args))
            return value(*args, **more)

        return together


def _told(name: str, args: tuple[Any, ...]) -> str:
    words = [arg.name if isinstance(arg, Path) else repr(arg) for arg in args if _is_plain(arg)]
    return f"{name}({', '.join(words)})"


def _is_plain(arg: Any) -> bool:
    return arg is None or isinstance(arg, Path | str | int | float)
