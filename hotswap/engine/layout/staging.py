"""StagedAdapter: an adapter as the bytes that will be in place; Buffers, in which they are laid out."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from hotswap.engine.layout.arena import Arena, Layout

_BUFFERS = 2  # one of them may be what is in place


@dataclass(slots=True, weakref_slot=True, eq=False)
class StagedAdapter:
    """An adapter as the bytes that will be in place, and what layers and config will say of it.

    ``states`` are for the layers and then for the wrapped modules of the placement. ``fields`` are those
    of the config; None: there is no adapter. ``stale`` tells whether base weights were written since of which
    the bytes hold a norm.
    """

    label: str | None
    image: Arena
    states: list[Any]
    fields: dict[str, Any] | None
    stale: Callable[[], bool] = bool
    _digest: str | None = None

    @property
    def digest(self) -> str:
        """The digest of the bytes (128 bits of XXH3); equal bytes have equal ones."""
        if self._digest is None:
            self._digest = self._hash()
        return self._digest

    def digest_while(self, in_place: Callable[[], bool]) -> str | None:
        """The digest; None if the adapter is not in place after the bytes were read: they may be others."""
        if self._digest is None:
            found = self._hash()
            if not in_place():
                return None
            self._digest = found
        return self._digest

    def _hash(self) -> str:
        digest = xxhash.xxh3_128()
        for buffer in self.image.buffers.values():
            digest.update(buffer.cpu().numpy().data)
        return digest.hexdigest()


class _Loan:
    """Whoever holds it stages in the buffers."""

    def keep(self) -> None:
        """Do nothing, but be held by a scope until it ends."""


class _Turn:
    """One loan after another; there is no lock that an interrupt could leave taken."""

    def __init__(self, loan: _Loan | None = None) -> None:
        self.loan: Callable[[], _Loan | None] = _nobody if loan is None else weakref.ref(loan)
        self.after: dict[int, _Turn] = {}


def _nobody() -> None:
    return None


class Buffers:
    """Two buffers of a layout, in which adapters are staged in turn, by one at a time."""

    def __init__(self) -> None:
        self._images: list[Arena] = []
        self._turn = _Turn()
        self._reported: weakref.WeakSet[StagedAdapter] = weakref.WeakSet()

    def __contains__(self, image: object) -> bool:
        return any(image is one for one in self._images)

    def lend(
        self, scope: ExitStack, layout: Layout, needed: Callable[[], Iterable[Arena | None]]
    ) -> Arena:
        """A buffer to stage in until a scope ends; a new one if somebody else has them.

        ``needed`` tells those that must stay as they are; it is asked once nobody else stages.
        However the scope ends, they are free when nobody holds it any more.
        """
        loan = _Loan()
        scope.callback(loan.keep)
        mine, turn = _Turn(loan), self._turn
        while turn is not mine and turn.loan() is None:
            turn = turn.after.setdefault(0, mine)  # one of several threads is the next
        free = turn is mine
        if free:
            self._turn = mine
        kept = [id(image) for image in needed()]
        for image in self._images if free else ():
            if id(image) not in kept:
                for staged in list(self._reported):
                    if staged.image is image:
                        _ = staged.digest  # somebody keeps it, and its bytes are about to go
                        self._reported.discard(staged)
                return image
        image = layout.new(torch.device("cpu"))
        if free and len(self._images) < _BUFFERS:
            self._images.append(image)
        return image

    def reported(self, staged: StagedAdapter) -> None:
        """Note what was put in place, of which somebody may yet ask the digest."""
        if staged.image in self:
            self._reported.add(staged)
