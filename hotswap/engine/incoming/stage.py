"""stage: lay an adapter out as the bytes that will be in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor

from hotswap.adapters.header import TensorInfo
from hotswap.engine.incoming.file_reader import FileReader, dtype_of
from hotswap.engine.incoming.source import IncomingAdapter
from hotswap.engine.incoming.validate import refuse
from hotswap.engine.layout.arena import Arena
from hotswap.engine.layout.modes import in_inference_mode
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.staging import StagedAdapter
from hotswap.engine.layout.states import LayerState
from hotswap.findings import Finding

if TYPE_CHECKING:
    from peft import LoraConfig

_KEPT = 16  # copy plans of a placement
# config fields that describe the slot rather than the adapter in it; the forward of a PeftModel reads some
_SLOT_FIELDS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "revision"}
    | {"runtime_config", "task_type"}
)


class CopyPlan:
    """How adapters of one description are laid out in a placement: worked out once, used at every swap.

    ``copied`` are (index of a slot, name of the tensor) pairs, ``later`` the slots whose DoRA magnitude is
    computed.
    """

    def __init__(self, placement: Placement, source: IncomingAdapter) -> None:
        given = source.infos
        self.modules = modules = source.spec.modules
        self.defaults: list[int] = []
        self.zeroed: list[int] = []
        self.copied: list[tuple[int, str]] = []
        self.rows: list[tuple[int, list[int]]] = []
        self.later: list[int] = []
        self.norms: dict[int, tuple[Any, Tensor]] = {}
        self.given = given
        self.from_file = not isinstance(source.values, dict)
        for index, slot in enumerate(placement.slots):
            there = slot.name in given
            if slot.role == "tokens":
                self.defaults.append(index)
                if there:
                    rows = source.spec.tokens[slot.module].indices
                    self.rows.append((index, [slot.rows.index(row) for row in rows]))
            elif slot.role == "magnitude" and not there:
                self.later.append(index)
            elif there:
                self.copied.append((index, slot.name))
                if given[slot.name].shape != tuple(slot.tensor.shape):
                    self.zeroed.append(index)
            else:
                (self.zeroed if slot.default is None else self.defaults).append(index)
        scalings = [modules[n].scaling if n in modules else 0.0 for n in placement.layers]
        self.scalings = torch.tensor(scalings, dtype=torch.float64, device="cpu").unbind()
        self.constants = [
            default
            for index in self.defaults
            if (default := placement.slots[index].default) is not None
        ]
        self.states = _states(placement, source)
        config = source.config if placement.config is not None else None
        self.fields = fields_of(config) if config is not None else None
        self._views: dict[int, CopyViews] = {}

    def views_of(self, placement: Placement, image: Arena) -> CopyViews:
        """Where in an image everything goes; kept for those that adapters are staged in again."""
        known = self._views.get(id(image))
        if known is None:
            slots, views, given = placement.slots, image.views, self.given
            zeroed = [
                slots[index].rest(
                    views[index],
                    given[slots[index].name].shape if slots[index].name in given else None,
                )
                for index in self.zeroed
            ]
            parts = [views[index] for index in self.defaults]
            known = CopyViews(image, zeroed, parts, [], [], [], {})
            for index, name in self.copied:
                axis = slots[index].axis
                length = given[name].shape[axis] if axis is not None else 0
                part = slots[index].part(views[index], length)
                if self.from_file and _alike(part, given[name]):
                    known.direct[name] = part
                    continue
                if (cut := slots[index].cut) is not None:
                    known.cut.append((len(parts), cut))
                if part.shape != given[name].shape:
                    known.split.append((len(parts), part.shape))
                parts.append(part)
                known.names.append(name)
            if image in placement.buffers:
                self._views[id(image)] = known
        return known


@dataclasses.dataclass(slots=True)
class CopyViews:
    """The views of an image that are zeroed, and those copied to: of the constants, then of ``names``.

    ``cut`` are the parts of some values that belong on this rank, ``split`` the shapes in which some are
    copied, each with its place in ``parts``. Into those of ``direct`` a file is read, and ``reader`` does
    that.
    """

    image: Arena
    zeroed: list[Tensor]
    parts: list[Tensor]
    names: list[str]
    cut: list[tuple[int, tuple[slice, ...]]]
    split: list[tuple[int, torch.Size]]
    direct: dict[str, Tensor]
    reader: FileReader | None = None


def _alike(part: Tensor, info: TensorInfo) -> bool:
    """Whether a part of an image has the bytes that a file has for it."""
    same = part.dtype == dtype_of(info) and tuple(part.shape) == info.shape
    return same and part.is_contiguous() and part.device.type == "cpu"


def _plan_of(placement: Placement, source: IncomingAdapter) -> CopyPlan:
    plans = placement.copy_plans
    in_file = not isinstance(source.values, dict)
    found = next(
        (p for p in plans if p.modules is source.spec.modules and p.from_file == in_file), None
    )
    if found is None:
        found = CopyPlan(placement, source)
        placement.copy_plans = [found, *plans[: _KEPT - 1]]
    return found


@torch.no_grad()
def stage(placement: Placement, source: IncomingAdapter, image: Arena) -> StagedAdapter:
    """Write an adapter that was validated (or NOTHING) into an image of the placement's layout.

    Raises AdapterError when a value is not finite.
    """
    with in_inference_mode(False):
        plan = _plan_of(placement, source)
        stale = _stale_after(placement, plan)
        given = _fill(placement, source, plan, image)
        # the bytes in place are other ones on each rank: there the whole adapter has a digest
        digest = _digest_of(given, plan) if placement.sharded else None
    if not image.finite():
        refuse(_infinite(placement, source, image))
    return StagedAdapter(source.label, image, plan.states, plan.fields, stale, digest)


def _stale_after(placement: Placement, plan: CopyPlan) -> Callable[[], bool]:
    """Give what tells whether base weights were written since, of which norms are computed."""
    if not plan.later:
        return bool
    from hotswap.engine.layout.dora import base_mark

    layers = [placement.layers[placement.slots[index].module] for index in plan.later]
    then = [*map(base_mark, layers)]
    return lambda: then != [*map(base_mark, layers)]


def _digest_of(given: Mapping[str, Tensor], plan: CopyPlan) -> str:
    """The digest of a whole adapter, of which a rank puts a part in place."""
    digest = xxhash.xxh3_128(repr([[s.item() for s in plan.scalings], plan.states]).encode())
    for name, info in sorted(plan.given.items()):
        digest.update(f"{name} {info.dtype} {info.shape}".encode())
        value = given[name].detach().contiguous().cpu()
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fill(
    placement: Placement, source: IncomingAdapter, plan: CopyPlan, image: Arena
) -> dict[str, Tensor]:
    slots, views = placement.slots, image.views
    places = plan.views_of(placement, image)
    clean, image.copy_plan = image.copy_plan is plan, None
    given, places.reader = source.load(places.direct, places.reader)
    if not clean:
        if places.zeroed:
            torch._foreach_zero_(places.zeroed)
        torch._foreach_copy_(views[len(slots) :], plan.scalings)
    values = [*plan.constants, *map(given.__getitem__, places.names)]
    for index, where in places.cut:
        values[index] = values[index][where]
    for index, shape in places.split:
        values[index] = values[index].reshape(shape)
    if values:
        torch._foreach_copy_(places.parts, values)
    image.copy_plan = plan
    for index, rows in plan.rows:
        view = views[index]
        view[rows] = given[slots[index].name].to(view.device, view.dtype)
    if plan.later:
        _fill_magnitudes(placement, plan, image)
    return given


def _fill_magnitudes(placement: Placement, plan: CopyPlan, image: Arena) -> None:
    from hotswap.engine.layout.dora import base_mark

    slots, views = placement.slots, image.views
    for index in plan.later:
        mark = base_mark(placement.layers[slots[index].module])
        known = plan.norms.get(index)
        if known is None or known[0] != mark:
            known = mark, _magnitude(placement, index, image)
            if mark is not None and slots[index].module not in plan.modules:
                plan.norms[index] = known  # of the base weight alone
        views[index].copy_(known[1])


def _magnitude(placement: Placement, index: int, image: Arena) -> Tensor:
    """What makes a DoRA layer compute plain LoRA, or the base layer where no adapter targets it."""
    from hotswap.engine.layout.dora import norm_of, why_no_norm
    from hotswap.engine.layout.unsupported import refusal, why_merged

    slots, name = placement.slots, placement.slots[index].module
    if why := why_no_norm(placement.layers[name]) or why_merged(placement.layers[name]):
        raise refusal({name: why})
    start = index
    while start and slots[start - 1].module == name:  # the slots of a layer lie side by side
        start -= 1
    found = {slots[at].key: image.views[at] for at in range(start, index)}
    scaling = image.views[len(slots) + list(placement.layers).index(name)]
    return norm_of(placement.layers[name], placement.name, found, scaling)


def _states(placement: Placement, source: IncomingAdapter) -> list[Any]:
    """What the layers and then the wrapped modules of a placement have of an adapter.

    A layer that it does not target has alpha 0, so that set_scale keeps it at 0.
    """
    fields = source.known.fields
    rslora = fields is not None and bool(fields.get("use_rslora"))
    states: list[Any] = []
    for name in placement.layers:
        module = source.spec.modules.get(name)
        if module is not None:
            states.append(LayerState(module.rank, module.alpha, rslora, module.bias, module.dora))
        else:
            states.append(LayerState(0, rslora=rslora) if fields is not None else None)
    for slot in placement.adapter.auxiliary:
        if slot.role == "saved":
            states.append(slot.name in source.infos)
        else:
            rows = source.spec.tokens.get(slot.module)
            states.append(rows.indices if rows is not None else ())
    return states


def fields_of(config: LoraConfig) -> dict[str, Any]:
    """What the config of the adapter in place says of an adapter that is swapped in."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in _SLOT_FIELDS
    }


def _infinite(placement: Placement, source: IncomingAdapter, image: Arena) -> tuple[Finding, ...]:
    names = [slot.name for slot in placement.slots]
    names += [f"{name}.scaling" for name in placement.layers]
    given = source.tensors
    return tuple(
        not_finite(f"{source.label}::{name}", given.get(name), view.dtype)
        for name, view in zip(names, image.views, strict=True)
        if view.is_floating_point() and not torch.isfinite(view).all()
    )


def not_finite(where: str, given: Tensor | None, dtype: torch.dtype) -> Finding:
    """Tell a value that is NaN or infinite from one that only the model's dtype is too narrow for."""
    if given is not None and torch.isfinite(given).all():
        text = f"holds {given.abs().max().item():.4g}, which is infinity as {dtype}"
        remedy = "serve in a dtype that reaches further (bfloat16, float32), or train the adapter in this one"
        return Finding(where, "HSW110", text, remedy)
    remedy = "train or export the adapter again"
    return Finding(where, "HSW110", f"holds NaN or infinity as {dtype}", remedy)
