"""What the adapter in place has of each layer: one list, exchanged in one step. PYTEST_DONT_REWRITE"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple


class LayerState(NamedTuple):
    """What the adapter in place has for a layer, before padding; rank 0: it does not target the layer."""

    rank: int
    alpha: float = 0
    rslora: bool = False
    bias: bool = False
    dora: bool = False

    @property
    def scaling(self) -> float:
        """The adapter's own alpha / rank, of rsLoRA alpha / sqrt(rank)."""
        rank = self.rank or 1
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)


class Shared:
    """The list that the layers of a placement look into, each at its own place.

    ``label`` names the adapter in place, None the base model; a copy of the model has it too. ``swaps``
    counts how often one was put there. ``owner`` is the placement, which lives as long as a layer looks here.
    A copy has none.
    """

    def __init__(self, values: list[Any], label: str | None) -> None:
        self.values = values
        self.label = label
        self.swaps = 0
        self.owner: object = None

    def __getstate__(self) -> dict[str, Any]:
        return {"values": self.values, "label": self.label, "swaps": 0, "owner": None}


class States(MutableMapping[str, Any]):
    """Map adapter names to what the adapter in place has of one layer or wrapped module.

    A layer's are LayerState, None where there is no adapter in place; a wrapped module's are the token
    rows, or whether it has any. ``places`` says in which list each is, and where.
    """

    def __init__(self) -> None:
        self.places: dict[str, tuple[Shared, int]] = {}

    def __getitem__(self, name: str) -> Any:
        shared, index = self.places[name]
        return shared.values[index]

    def __setitem__(self, name: str, state: Any) -> None:
        shared, index = self.places.setdefault(name, (Shared([state], name), 0))
        if shared.values[index] != state:  # staged adapters hold the same list
            shared.values = [*shared.values[:index], state, *shared.values[index + 1 :]]

    def __delitem__(self, name: str) -> None:
        del self.places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    @staticmethod
    def share(every: Sequence[States], name: str) -> Shared:
        """Let all of them look into one list, as they do already if they are those of an earlier time."""
        places = [states.places[name] for states in every]
        shared = places[0][0] if places else Shared([], name)
        alike = len(shared.values) == len(every) and all(
            held is shared and every[index] is states
            for (held, index), states in zip(places, every, strict=True)
        )
        if not alike:
            labels = {held.label for held, _ in places}
            label = labels.pop() if len(labels) == 1 else name
            shared = Shared([states[name] for states in every], label)
            for index, states in enumerate(every):
                states.places[name] = shared, index
        return shared
