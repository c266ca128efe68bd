"""The transaction over parts: all are locked, validated, staged and committed, or none is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from hotswap.engine.incoming.renamed import in_names_of
from hotswap.engine.incoming.source import NOTHING, IncomingAdapter
from hotswap.engine.incoming.stage import stage
from hotswap.engine.incoming.validate import validate
from hotswap.engine.layout.arena import Arena
from hotswap.engine.layout.hooks import why_elsewhere
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import entry_of, placement_of
from hotswap.engine.layout.slots import adapter_names
from hotswap.engine.layout.staging import StagedAdapter
from hotswap.engine.layout.unsupported import refusal, why_no_base, why_other_base
from hotswap.engine.layout.uses import Use, Uses
from hotswap.engine.mesh import Agree, require_together, votes
from hotswap.engine.parts import Part
from hotswap.errors import HotswapError


def _never(_: BaseException) -> bool:
    return False


class Changes:
    """What a scope changes; taken back, last first, if the scope fails.

    ``callback`` notes how to take back a change that is about to be made; doing it twice must be
    harmless. Enter it twice, ``with Changes() as changes, changes:``; then what a second interrupt leaves
    of taking back is done by the outer one.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._stands: Callable[[BaseException], bool] = _never
        self._grad = torch.is_grad_enabled()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._undo.clear()
        else:  # an interrupt at the end of a no_grad() leaves gradients off
            torch.set_grad_enabled(self._grad)
            if self._undo and self._stands(error):
                self.stand()
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def callback(self, undo: Callable[..., object], *args: Any) -> None:
        """Note how to take back a change."""
        self._undo.append(partial(undo, *args) if args else undo)

    def stand(self) -> None:
        """Keep what was changed until now, whatever fails later."""
        self._undo.clear()
        self._stands = _never

    def unless(self, stands: Callable[[BaseException], bool]) -> None:
        """Ask, before what was changed until now is taken back, whether it stands."""
        self._stands = stands

    def set(self, owner: Any, attribute: str, value: Any) -> None:
        """Set an attribute."""
        old = getattr(owner, attribute)
        self.callback(lambda: setattr(owner, attribute, old))
        setattr(owner, attribute, value)

    def keep(self, holder: MutableMapping[Any, Any], key: Any) -> None:
        """Note what a dict has under a key, which is about to change."""
        if key in holder:
            old = holder[key]
            self.callback(lambda: holder.update({key: old}))
        else:
            self.callback(lambda: holder.pop(key, None))


@contextmanager
def exclusive(
    parts: Sequence[Part],
    *,
    timeout: float | None = None,
    name: str | None = None,
    nested: bool = False,
) -> Iterator[None]:
    """Hold the adapters of every part; raises BusyError after ``timeout`` seconds, or within one's own use.

    Within a use of another adapter ``name`` it is allowed, and always with ``nested``, for what does not
    exchange the adapter.
    """
    with ExitStack() as held:
        for uses, _ in uses_of([part.model for part in parts]):
            if not (nested and uses.mine()):
                uses.take(held_until_end(held, uses, Use(name)), timeout)
        yield


def uses_of(models: Sequence[nn.Module]) -> list[tuple[Uses, int]]:
    """The uses of some models, each once with the place of its model, in the order in which to take them.

    It is the same whoever asks: two pipelines may have the same models in another order, and would
    wait for each other.
    """
    found = {id(uses := entry_of(model).uses): (uses, place) for place, model in enumerate(models)}
    return [found[key] for key in sorted(found)]


def held_until_end(held: ExitStack, uses: Uses, use: Use) -> Use:
    """End a use when the scope ends, also if an interrupt lands in the first attempt."""
    held.callback(uses.end, use)
    held.callback(uses.end, use)
    return use


def name_of(part: Part, adapter_name: str | None) -> str:
    """The name itself; of None, that of the only adapter, or "default"."""
    if adapter_name is not None:
        return adapter_name
    placements = entry_of(part.model).placements
    known = [n for n, at in placements.items() if not (at.unnamed(part.model) and at.detached)]
    known = known or adapter_names(part.model)
    return known[0] if len(known) == 1 else "default"


def ready(part: Part, adapter_name: str | None) -> Placement:
    """Find the placement of an adapter name; raise what a swap raises when it can take no adapter."""
    placement = placement_of(part.model, name_of(part, adapter_name))
    if why := why_other_base(part.model, placement.config):
        raise refusal({f"adapter {placement.name!r}": why})
    placement.require_unmerged()
    placement.require_resident()
    require_served(part)
    return placement


def require_served(part: Part) -> None:
    """Raise HotswapError if a wrapper around the model has weights of its own."""
    if why := why_elsewhere(part.given):
        raise HotswapError(f"{why.text}, so a swap would not be served; {why.remedy}")


def stage_parts(
    parts: Sequence[Part],
    places: Sequence[Placement],
    incoming: Mapping[str, IncomingAdapter],
    labels: Mapping[str, str | None],
    image_of: Callable[[Placement], Arena],
) -> list[StagedAdapter | None]:
    """Validate what each part is to get, then lay it out for each; None for what stays as it is.

    What gets no adapter has no label. Raises AdapterError.
    """
    pairs = [*zip(parts, places, strict=True)]
    incoming = {
        part.key: in_names_of(part.model, place, incoming[part.key])
        for part, place in pairs
        if part.key in incoming
    }
    for part, place in pairs:
        if incoming.get(part.key, NOTHING) is not NOTHING:
            validate(part.model, place, incoming[part.key])
        elif part.key in incoming and (why := why_no_base(place.config)):
            raise refusal({f"adapter {place.name!r}": why})
    staged: list[StagedAdapter | None] = []
    with Changes():  # of gradients alone: see there
        for part, place in pairs:
            source = incoming.get(part.key)
            made = None if source is None else stage(place, source, image_of(place))
            if made is not None:
                made.label = labels[part.key] if source is not NOTHING else None
            staged.append(made)
    return staged


def _told(changing: Sequence[tuple[Placement, StagedAdapter]]) -> str:
    """What is put in place, in words."""
    names = (f" as {at.name!r}" if at.name != "default" else "" for at, _ in changing)
    labels = (f"{each.label}{name}" for (_, each), name in zip(changing, names, strict=True))
    return ", ".join(dict.fromkeys(labels))


def commit(
    places: Sequence[Placement],
    staged: Sequence[StagedAdapter | None],
    changes: Changes,
    agree: Agree,
) -> None:
    """Put staged adapters in place, on every rank; the changes take all of it back. Raises RankError.

    What all ranks have in place is not taken back any more.
    """
    require_together(any(place.sharded for place in places), agree)
    changing = [(at, each) for at, each in zip(places, staged, strict=True) if each is not None]
    changes.unless(agree.stands)
    agree((f"{at.name!r}:{each.digest}" for at, each in changing), _told(changing))
    for place, each in changing:
        place.put(each, changes.callback)
    agree()
    if votes(agree):
        changes.stand()  # every rank has it: what fails on this one from here on takes nothing back
