"""state: what a model has in place and what its banks keep, as plain data for a health endpoint."""

from __future__ import annotations

from typing import Any

from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import entry_of, placement_of
from hotswap.engine.parts import parts_of
from hotswap.engine.transaction import name_of


def state(model: Any) -> dict[str, Any]:
    """Tell what is in place under each name and what it costs, without waiting for whoever uses the model.

    ``in_place`` has a row for each adapter name of each component: ``active`` as ``active`` has it, the
    ``digest`` of its content (None where something else has written the weights) and ``swaps``, how
    often an adapter was put there. ``banks`` has a row for each adapter of the model's banks: its ``tier`` is
    "device", "host" or "disk". ``bytes`` adds up what is in place and in each tier, ``using`` and ``waiting``
    count uses now, ``waits`` and ``waited_seconds`` those that had to wait so far. All of it can be
    written as JSON. Raises NoAdapterError or NotPreparedError.
    """
    parts = parts_of(model)
    entries = {id(entry): entry for part in parts for entry in (entry_of(part.model),)}
    rows = []
    for part in parts:
        places = {
            name: place
            for name, place in list(entry_of(part.model).placements.items())
            if not place.detached
        }
        if not places:
            name = name_of(part, None)
            places[name] = placement_of(part.model, name)
        rows += [{"component": part.key, **_row(name, place)} for name, place in places.items()]
    known = {id(bank): bank for entry in entries.values() for bank in list(entry.banks)}
    banks = [row for bank in known.values() for row in bank.rows()]
    uses = [entry.uses for entry in entries.values()]
    return {
        "in_place": rows,
        "banks": banks,
        "bytes": {
            "in_place": sum(row["bytes"] for row in rows),
            "device": sum(row["device_bytes"] for row in banks),
            "host": sum(row["host_bytes"] for row in banks),
        },
        "swaps": sum(row["swaps"] for row in rows),
        "using": sum(each.using for each in uses),
        "waiting": sum(each.waiting for each in uses),
        "waits": sum(each.waits for each in uses),
        "waited_seconds": sum(each.waited for each in uses),
    }


def _row(name: str, place: Placement) -> dict[str, Any]:
    return {
        "name": name,
        "active": place.label,
        "digest": _digest(place),
        "bytes": place.layout.bytes,
        "swaps": place.shared.swaps,
    }


def _digest(place: Placement) -> str | None:
    """The digest of what is in place; None where it is not known, or exchanged meanwhile."""
    staged = place.staged
    if staged is None or not place.holds(staged):
        return None
    return staged.digest_while(lambda: place.staged is staged)
