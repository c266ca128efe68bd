"""swap: read, validate everything, stage, then put in place with one copy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import xxhash

from hotswap.engine.incoming.parts import Adapters, labels_of, read_parts
from hotswap.engine.incoming.source import Adapter, Config
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import placement_of, seen_placement
from hotswap.engine.layout.staging import StagedAdapter
from hotswap.engine.mesh import Agree, together
from hotswap.engine.parts import Part, parts_of
from hotswap.engine.scale import user_scale
from hotswap.engine.transaction import Changes, commit, exclusive, name_of, ready, stage_parts


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What a swap did.

    ``components`` names what each part has now ("" is a model by itself, None the base model): those of
    ``kept`` have what they had, from those of ``emptied`` an adapter was taken out. ``path``
    says whether one copy did it, or one per tensor because the model was copied or moved after prepare().
    ``scale_reset`` is the user's scale factor that the swap set back to 1, if there was one.
    """

    adapter: str | None
    bytes: int
    seconds: float
    path: Literal["arena", "fallback"]
    scale_reset: float | None
    components: dict[str, str | None]
    kept: tuple[str, ...]
    emptied: tuple[str, ...]
    _staged: tuple[StagedAdapter, ...] = field(repr=False, compare=False)

    @property
    def digest(self) -> str:
        """The digest of the bytes put in place, computed when it is first asked for.

        Equal adapters in equally prepared models have equal ones, so caches may key on it: on those of
        all components where some are kept, of which it says nothing.
        """
        return digest_of(self._staged)


def digest_of(staged: Sequence[StagedAdapter | None]) -> str:
    """The digest of an adapter over all parts that it changes; that of its only part."""
    digests = [each.digest for each in staged if each is not None]
    return (
        digests[0] if len(digests) == 1 else xxhash.xxh3_128("".join(digests).encode()).hexdigest()
    )


def swap(
    model: Any,
    adapter: Adapter | Adapters | None,
    *,
    adapter_name: str | None = None,
    config: Config | None = None,
    timeout: float | None = None,
    allow_pickle: bool = False,
) -> SwapReport:
    """Replace the weights of ``adapter_name`` in place, all or nothing.

    ``model`` is a module, or a pipeline of diffusers: then every component is swapped, or none. A
    component for which the file has nothing gets none, but of two denoisers a file changes the one that
    it is of. A dict changes what it names, each by a file of its own or None:
    ``{"transformer": high, "transformer_2": low}``. The report says what each component has then.
    ``adapter`` is a PEFT folder, a safetensors file beside its config, a file or folder of diffusers, a
    hub id, a state dict as ``get_peft_model_state_dict`` returns it (with ``config``), or None for the
    base model. With ``allow_pickle`` files of torch.save are read too, by torch.load(weights_only=True).
    ``adapter_name=None`` is the model's only adapter, or "default". Everything is validated
    and staged before the one copy that changes the model; whatever fails is undone. No storage, shape,
    dtype or parameter object changes. A scale set by ``set_scale`` is reset to 1. The
    model may be a ``torch.compile`` wrapper. A KV cache computed with another adapter is not valid
    after a swap.

    Raises AdapterError (RankTooLargeError for a rank above the prepared one), NoAdapterError,
    NotPreparedError, or BusyError when the adapters are in use for ``timeout`` seconds; the model is
    then bit-identical to before.
    """
    start = time.perf_counter()
    parts = parts_of(model)
    names = [name_of(part, adapter_name) for part in parts]
    with together(parts) as agree, ExitStack() as lent:
        # a hub or a disk may take its time, while others use the model
        incoming = read_parts(model, parts, adapter, config, allow_pickle=allow_pickle)
        labels = labels_of(parts, adapter)
        stage = partial(
            stage_parts, parts, incoming=incoming, labels=labels, image_of=lambda p: p.staging(lent)
        )
        # where nothing seems moved: ready() looks at all, and says of another model what is wrong
        known = [seen_placement(p.model, name) for p, name in zip(parts, names, strict=True)]
        places = [place for place in known if place is not None]
        staged = stage(places) if len(places) == len(parts) else []
        with exclusive(parts, timeout=timeout, name=names[0]), Changes() as changes, changes:
            now = [ready(part, adapter_name) for part in parts]
            if now != places or any(each is not None and each.stale() for each in staged):
                staged = stage(now)  # it was prepared anew, moved or trained meanwhile
            return exchange(parts, now, staged, start, changes, agree)


def exchange(
    parts: Sequence[Part],
    places: Sequence[Placement],
    staged: Sequence[StagedAdapter | None],
    start: float,
    changes: Changes,
    agree: Agree,
) -> SwapReport:
    """Commit what was staged for some of the parts, which are held. See ``swap``."""
    before = {part.key: place.label for part, place in zip(parts, places, strict=True)}
    changing = [at for at, each in zip(places, staged, strict=True) if each is not None]
    scales = [None if place.untouched else user_scale(place) for place in changing]
    scale = next((scale for scale in scales if scale is not None), None)
    size = sum(place.layout.bytes for place in changing)
    path: Literal["arena", "fallback"] = (
        "fallback" if any(place.arena is None for place in changing) else "arena"
    )
    given = {
        part.key: each.label for part, each in zip(parts, staged, strict=True) if each is not None
    }
    emptied = tuple(k for k, label in given.items() if label is None and before[k] is not None)
    commit(places, staged, changes, agree)
    seconds = time.perf_counter() - start
    return SwapReport(
        joined(given),
        size,
        seconds,
        path,
        scale,
        before | given,
        tuple(key for key in before if key not in given),
        emptied,
        tuple(each for each in staged if each is not None),
    )


def joined(labels: Mapping[str, str | None]) -> str | None:
    """One name for what several components have, each after its component where they differ."""
    found = {key: label for key, label in labels.items() if label is not None}
    if len(set(found.values())) < 2:
        return next(iter(found.values()), None)
    return ", ".join(f"{key}: {label}" for key, label in found.items())


def active(model: Any, *, adapter_name: str | None = None) -> str | None:
    """Name the adapter in place: the last one swapped in, None for the base model, else the slot's name.

    Of a pipeline it is that of its components; where they have different ones, each with its component.
    """
    return joined(
        {p.key: placement_of(p.model, name_of(p, adapter_name)).label for p in parts_of(model)}
    )
