"""stage: validate an adapter against a placement, and lay it out as the bytes that will be in place."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.adapters.fit import fits
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.modules import ModuleSpec
from hotswap.adapters.names import canonical
from hotswap.engine.incoming.source import Reader, Source, dtype_of
from hotswap.engine.layout.arena import Arena
from hotswap.engine.layout.auxiliary import own_content
from hotswap.engine.layout.placement import Content, Entries, Placement, Records
from hotswap.engine.layout.scalings import Entry, Own
from hotswap.engine.layout.slots import norm_of
from hotswap.errors import AdapterError, RankTooLargeError
from hotswap.findings import Finding, has_code

# config fields that describe the slot rather than the adapter in it; the forward of a PeftModel reads some
_KEPT = 16  # recipes of a placement
_NO_MODULES: dict[str, ModuleSpec] = {}  # those of the base model
_SLOT_FIELDS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "revision"}
    | {"runtime_config", "task_type"}
)


class Recipe:
    """How adapters of one description are laid out in a placement: worked out once, used at every swap.

    ``copied`` are (index of a slot, name of the tensor) pairs, ``later`` the slots whose DoRA magnitude is
    computed.
    """

    def __init__(self, placement: Placement, source: Source | None) -> None:
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
        self.entries = _entries(placement, source)
        self.records = _records(placement, source)
        self.fields = _fields(source)
        self._bound: dict[int, Bound] = {}

    def bound(self, placement: Placement, image: Arena) -> Bound:
        """Where in an image everything goes; kept for those that adapters are staged in again."""
        known = self._bound.get(id(image))
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
            known = Bound(image, zeroed, parts, [], [], {})
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
                self._bound[id(image)] = known
        return known


@dataclasses.dataclass(slots=True)
class Bound:
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
    reader: Reader | None = None


def _alike(part: Tensor, info: TensorInfo) -> bool:
    """Whether a part of an image has the bytes that a file has for it."""
    same = part.dtype == dtype_of(info) and tuple(part.shape) == info.shape
    return same and part.is_contiguous() and part.device.type == "cpu"


def validate(model: nn.Module, placement: Placement, source: Source) -> None:
    """Raise AdapterError (RankTooLargeError) unless the adapter fits; its values are not looked at."""
    if not any(recipe.modules is source.spec.modules for recipe in placement.recipes):
        _refuse(fits(placement.envelope, source.spec))
    if source.spec.copies:
        _refuse(tuple(_other_copies(model, source)))


def _recipe(placement: Placement, source: Source | None) -> Recipe:
    modules = source.spec.modules if source is not None else _NO_MODULES
    found = next((recipe for recipe in placement.recipes if recipe.modules is modules), None)
    if found is None:
        found = Recipe(placement, source)
        placement.recipes = [found, *placement.recipes[: _KEPT - 1]]
    return found


@torch.no_grad()
def stage(placement: Placement, source: Source | None, image: Arena) -> Content:
    """Write an adapter that was validated (None: the base model) into an image of the placement's layout.

    Raises AdapterError when a value is not finite.
    """
    with torch.inference_mode(False):
        recipe = _recipe(placement, source)
        _fill(placement, source, recipe, image)
    if not image.finite():
        _refuse(_infinite(placement, source, image))
    label = source.label if source is not None else None
    return Content(label, image, recipe.entries, recipe.records, recipe.fields)


def _fill(placement: Placement, source: Source | None, recipe: Recipe, image: Arena) -> None:
    slots, views = placement.slots, image.views
    bound = recipe.bound(placement, image)
    clean, image.recipe = image.recipe is recipe, None
    given: dict[str, Tensor] = {}
    if source is not None:
        given, bound.reader = source.load(bound.direct, bound.reader)
    if not clean:
        if bound.zeroed:
            torch._foreach_zero_(bound.zeroed)
        torch._foreach_copy_(views[len(slots) :], recipe.scalings)
    values = [*recipe.constants, *map(given.__getitem__, bound.names)]
    for index, shape in bound.split:
        values[index] = values[index].reshape(shape)
    if values:
        torch._foreach_copy_(bound.parts, values)
    image.recipe = recipe
    for index, rows in recipe.rows:
        view = views[index]
        view[rows] = given[slots[index].name].to(view.device, view.dtype)
    for index in recipe.later:
        known = recipe.norms.get(index)
        if known is None:
            known = _magnitude(placement, index, image)
            if slots[index].module not in recipe.modules:
                recipe.norms[index] = known  # of the base weight alone
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


def _entries(placement: Placement, source: Source | None) -> Entries:
    """What the layers say of an adapter; one that has none has alpha 0, so that set_scale keeps it at 0."""
    rslora = source is not None and bool(source.config.use_rslora)
    entries: Entries = {}
    for name, layer in placement.layers.items():
        module = source.spec.modules.get(name) if source is not None else None
        if module is not None:
            own = Own(module.rank, module.bias, module.dora)
            entries[layer.scaling] = Entry(module.rank, module.alpha, rslora, own)
        else:
            entries[layer.scaling] = Entry(1, 0, rslora, Own(0) if source is not None else None)
    return entries


def _records(placement: Placement, source: Source | None) -> Records:
    """What the wrapped modules note of an adapter, each with the dict that holds it."""
    records: Records = []
    for slot in placement.slots:
        if slot.role == "saved":
            records.append((own_content(slot), source is not None and slot.name in source.infos))
        elif slot.role == "tokens":
            rows = source.spec.tokens.get(slot.module) if source is not None else None
            records.append((own_content(slot), rows.indices if rows is not None else ()))
    return records


def _fields(source: Source | None) -> dict[str, Any] | None:
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


def _infinite(placement: Placement, source: Source | None, image: Arena) -> tuple[Finding, ...]:
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


def _other_copies(model: nn.Module, source: Source) -> list[Finding]:
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
