"""stage: validate an adapter against a placement, and lay it out as the bytes that will be in place."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.adapters.fit import fits
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.spec import ModuleSpec, canonical
from hotswap.engine.incoming.source import FileReader, IncomingAdapter, dtype_of
from hotswap.engine.layout.arena import Arena
from hotswap.engine.layout.dora import norm_of
from hotswap.engine.layout.placement import Placement, StagedAdapter
from hotswap.engine.layout.scalings import LayerState
from hotswap.errors import AdapterError, RankTooLargeError
from hotswap.findings import Finding, has_code

# config fields that describe the slot rather than the adapter in it; the forward of a PeftModel reads some
_KEPT = 16  # copy plans of a placement
_NO_MODULES: dict[str, ModuleSpec] = {}  # those of the base model
_SLOT_FIELDS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "revision"}
    | {"runtime_config", "task_type"}
)


class CopyPlan:
    """How adapters of one description are laid out in a placement: worked out once, used at every swap.

    ``copied`` are (index of a slot, name of the tensor) pairs, ``later`` the slots whose DoRA magnitude is
    computed.
    """

    def __init__(self, placement: Placement, source: IncomingAdapter | None) -> None:
        given = source.infos if source is not None else {}
        self.modules = modules = source.spec.modules if source is not None else _NO_MODULES
        self.defaults: list[int] = []
        self.zeroed: list[int] = []
        self.copied: list[tuple[int, str]] = []
        self.rows: list[tuple[int, list[int]]] = []
        self.later: list[int] = []
        self.norms: dict[int, Tensor] = {}
        self.given = given
        self.from_file = source is not None and not isinstance(source.values, list)
        for index, slot in enumerate(placement.slots):
            there = slot.name in given
            if slot.role == "tokens":
                self.defaults.append(index)
                if there and source is not None:
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
        self.scalings = torch.tensor(scalings, dtype=torch.float64).unbind()
        self.constants = [
            default
            for index in self.defaults
            if (default := placement.slots[index].default) is not None
        ]
        self.notes = _notes(placement, source)
        self.fields = _fields(source)
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
            known = CopyViews(image, zeroed, parts, [], [], {})
            for index, name in self.copied:
                axis = slots[index].axis
                length = given[name].shape[axis] if axis is not None else 0
                part = slots[index].part(views[index], length)
                if self.from_file and _alike(part, given[name]):
                    known.direct[name] = part
                    continue
                if part.shape != given[name].shape:
                    known.split.append((len(parts), part.shape))
                parts.append(part)
                known.names.append(name)
            if placement.stages_in(image):
                self._views[id(image)] = known
        return known


@dataclasses.dataclass(slots=True)
class CopyViews:
    """The views of an image that are zeroed, and those copied to: of the constants, then of ``names``.

    ``split`` are the shapes in which some values are copied, each with its place in ``parts``. Into
    those of ``direct`` a file is read, and ``reader`` does that.
    """

    image: Arena
    zeroed: list[Tensor]
    parts: list[Tensor]
    names: list[str]
    split: list[tuple[int, torch.Size]]
    direct: dict[str, Tensor]
    reader: FileReader | None = None


def _alike(part: Tensor, info: TensorInfo) -> bool:
    """Whether a part of an image has the bytes that a file has for it."""
    same = part.dtype == dtype_of(info) and tuple(part.shape) == info.shape
    return same and part.is_contiguous() and part.device.type == "cpu"


def validate(model: nn.Module, placement: Placement, source: IncomingAdapter) -> None:
    """Raise AdapterError (RankTooLargeError) unless the adapter fits; its values are not looked at."""
    if not any(plan.modules is source.spec.modules for plan in placement.copy_plans):
        _refuse(fits(placement.envelope, source.spec))
    if source.spec.copies:
        _refuse(tuple(_other_copies(model, source)))


def _plan_of(placement: Placement, source: IncomingAdapter | None) -> CopyPlan:
    modules = source.spec.modules if source is not None else _NO_MODULES
    found = next((plan for plan in placement.copy_plans if plan.modules is modules), None)
    if found is None:
        found = CopyPlan(placement, source)
        placement.copy_plans = [found, *placement.copy_plans[: _KEPT - 1]]
    return found


@torch.no_grad()
def stage(placement: Placement, source: IncomingAdapter | None, image: Arena) -> StagedAdapter:
    """Write an adapter that was validated (None: the base model) into an image of the placement's layout.

    Raises AdapterError when a value is not finite.
    """
    with torch.inference_mode(False):
        plan = _plan_of(placement, source)
        _fill(placement, source, plan, image)
    if not image.finite():
        _refuse(_infinite(placement, source, image))
    label = source.label if source is not None else None
    return StagedAdapter(label, image, plan.notes, plan.fields)


def _fill(
    placement: Placement, source: IncomingAdapter | None, plan: CopyPlan, image: Arena
) -> None:
    slots, views = placement.slots, image.views
    places = plan.views_of(placement, image)
    clean, image.copy_plan = image.copy_plan is plan, None
    given: dict[str, Tensor] = {}
    if source is not None:
        given, places.reader = source.load(places.direct, places.reader)
    if not clean:
        if places.zeroed:
            torch._foreach_zero_(places.zeroed)
        torch._foreach_copy_(views[len(slots) :], plan.scalings)
    values = [*plan.constants, *map(given.__getitem__, places.names)]
    for index, shape in places.split:
        values[index] = values[index].reshape(shape)
    if values:
        torch._foreach_copy_(places.parts, values)
    image.copy_plan = plan
    for index, rows in plan.rows:
        view = views[index]
        view[rows] = given[slots[index].name].to(view.device, view.dtype)
    for index in plan.later:
        known = plan.norms.get(index)
        if known is None:
            known = _magnitude(placement, index, image)
            if slots[index].module not in plan.modules:
                plan.norms[index] = known  # of the base weight alone
        views[index].copy_(known)


def _magnitude(placement: Placement, index: int, image: Arena) -> Tensor:
    """What makes a DoRA layer compute plain LoRA, or the base layer where no adapter targets it."""
    slots, name = placement.slots, placement.slots[index].module
    start = index
    while start and slots[start - 1].module == name:  # the slots of a layer lie side by side
        start -= 1
    found = {slots[at].key: image.views[at] for at in range(start, index)}
    scaling = image.views[len(slots) + list(placement.layers).index(name)]
    return norm_of(placement.layers[name], placement.name, found, scaling)


def _notes(placement: Placement, source: IncomingAdapter | None) -> list[Any]:
    """What layers and wrapped modules note of an adapter, as the placement's holders want it.

    A layer that it does not target has alpha 0, so that set_scale keeps it at 0.
    """
    rslora = source is not None and bool(source.config.use_rslora)
    notes: list[Any] = []
    for name in placement.layers:
        module = source.spec.modules.get(name) if source is not None else None
        if module is not None:
            state = LayerState(module.rank, module.bias, module.dora)
            notes += [module.rank, module.alpha, rslora, state]
        else:
            notes += [1, 0, rslora, LayerState(0) if source is not None else None]
    for slot in placement.adapter.auxiliary:
        if slot.role == "saved":
            notes.append(source is not None and slot.name in source.infos)
        else:
            rows = source.spec.tokens.get(slot.module) if source is not None else None
            notes.append(rows.indices if rows is not None else ())
    return notes


def _fields(source: IncomingAdapter | None) -> dict[str, Any] | None:
    if source is None:
        return None
    return {
        field.name: getattr(source.config, field.name)
        for field in dataclasses.fields(source.config)
        if field.name not in _SLOT_FIELDS
    }


def _refuse(findings: tuple[Finding, ...]) -> None:
    if findings:
        raise (RankTooLargeError if has_code(findings, "HSW105") else AdapterError)(findings)


def _infinite(
    placement: Placement, source: IncomingAdapter | None, image: Arena
) -> tuple[Finding, ...]:
    label = source.label if source is not None else "the base model"
    names = [slot.name for slot in placement.slots]
    names += [f"{name}.scaling" for name in placement.layers]
    return tuple(
        Finding(
            f"{label}::{name}",
            "HSW110",
            f"holds NaN or infinity as {view.dtype}",
            "train or export the adapter again",
        )
        for name, view in zip(names, image.views, strict=True)
        if view.is_floating_point() and not torch.isfinite(view).all()
    )


def _other_copies(model: nn.Module, source: IncomingAdapter) -> list[Finding]:
    """Base weights in the adapter that are not the model's: a fresh load would write them into it."""
    live = {
        _bare(canonical(name)): tensor
        for name, tensor in model.named_parameters(remove_duplicate=False)
    }
    found, tensors = [], source.tensors
    for name in source.spec.copies:
        theirs = tensors[name]
        mine = live.get(_bare(name))
        same = mine is not None and mine.shape == theirs.shape
        if same and mine is not None:
            same = torch.equal(mine.detach().cpu(), theirs.cpu().to(mine.dtype))
        if not same:
            found.append(
                Finding(
                    f"{source.label}::{name}",
                    "HSW107",
                    "the adapter carries a base weight that differs from the model's",
                    "save it with save_pretrained(folder, save_embedding_layers=False), or "
                    "load it into a base model of its own",
                )
            )
    return found


def _bare(name: str) -> str:
    """The name that a base weight has in the base model, without the layers that PEFT puts around it."""
    wrappers = ("base_layer", "original_module", "token_adapter")
    return ".".join(part for part in name.split(".") if part not in wrappers)
