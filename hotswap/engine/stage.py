"""stage: validate an adapter against a placement, and lay it out as the bytes that will be in place."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from hotswap.adapters.fit import fits
from hotswap.adapters.spec import canonical
from hotswap.engine.arena import Arena
from hotswap.engine.layers import norm_of
from hotswap.engine.placement import Content, Placement
from hotswap.engine.scalings import Own
from hotswap.engine.source import Source
from hotswap.engine.trained import own_content
from hotswap.errors import AdapterError, RankTooLargeError
from hotswap.findings import Finding, has_code

# config fields that describe the slot rather than the adapter in it; the forward of a PeftModel reads some
_SLOT_FIELDS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "revision"}
    | {"runtime_config", "task_type"}
)


def validate(model: nn.Module, placement: Placement, source: Source) -> None:
    """Raise AdapterError (RankTooLargeError) unless the adapter fits; its values are not looked at."""
    _refuse(fits(placement.envelope, source.spec))
    if source.spec.copies:
        _refuse(tuple(_other_copies(model, source)))


@torch.no_grad()
def stage(placement: Placement, source: Source | None, image: Arena) -> Content:
    """Write an adapter that was validated (None: the base model) into an image of the placement's layout.

    Raises AdapterError when a value is not finite.
    """
    with torch.inference_mode(False):
        _fill(placement, source, image)
    if not image.finite():
        _refuse(_infinite(placement, source, image))
    digest = xxhash.xxh3_128()
    for buffer in image.buffers.values():
        digest.update(buffer.cpu().numpy().data)
    label = source.label if source is not None else None
    return Content(
        label, image, digest.hexdigest(), _records(placement, source), _fields(placement, source)
    )


def _fill(placement: Placement, source: Source | None, image: Arena) -> None:
    tensors = source.tensors if source is not None else {}
    modules = source.spec.modules if source is not None else {}
    zeroed: list[Tensor] = []
    parts: list[Tensor] = []
    values: list[Tensor] = []
    later: list[int] = []
    for index, slot in enumerate(placement.slots):
        view, given = image.views[index], tensors.get(slot.name)
        if slot.role == "magnitude" and given is None:
            later.append(index)
        elif slot.role == "tokens" and slot.default is not None:
            view.copy_(slot.default)
            if given is not None and source is not None:
                rows = source.spec.tokens[slot.module].indices
                view[[slot.rows.index(row) for row in rows]] = given.to(view.device, view.dtype)
        elif given is not None:
            part = view
            if slot.axis is not None and given.shape != view.shape:
                zeroed.append(view)
                part = slot.part(view, given.shape[slot.axis])
            parts.append(part)
            values.append(slot.split(given, part))
        elif slot.default is not None:
            parts.append(view)
            values.append(slot.default)
        else:
            zeroed.append(view)
    if zeroed:
        torch._foreach_zero_(zeroed)
    if parts:
        torch._foreach_copy_(parts, values)
    scalings = image.views[len(placement.slots) :]
    for name, view in zip(placement.layers, scalings, strict=True):
        view.fill_(modules[name].scaling if name in modules else 0.0)
    for index in later:
        image.views[index].copy_(_magnitude(placement, placement.slots[index].module, image))


def _magnitude(placement: Placement, name: str, image: Arena) -> Tensor:
    """What makes a DoRA layer compute plain LoRA, or the base layer where no adapter targets it."""
    found = {
        s.key: v for s, v in zip(placement.slots, image.views, strict=False) if s.module == name
    }
    scaling = image.views[len(placement.slots) + list(placement.layers).index(name)]
    layer = placement.layers[name]
    return norm_of(layer, placement.name, found, scaling)


def _records(placement: Placement, source: Source | None) -> list[tuple[dict[str, Any], Any]]:
    """Ranks and alphas of the layers and rows of the wrapped modules, each with the dict that holds it.

    A layer without an adapter has alpha 0, so that PEFT's set_scale keeps its scaling at 0.
    """
    records: list[tuple[dict[str, Any], Any]] = []
    rslora = source is not None and bool(source.config.use_rslora)
    for name, layer in placement.layers.items():
        module = source.spec.modules.get(name) if source is not None else None
        own = None
        if source is not None:
            own = Own(module.rank, module.bias, module.dora) if module is not None else Own(0)
        records += [
            (layer.r, module.rank if module is not None else 1),
            (layer.lora_alpha, module.alpha if module is not None else 0),
            (layer.use_rslora, rslora),
            (layer.scaling.own, own),
        ]
    for slot in placement.slots:
        if slot.role == "saved":
            records.append((own_content(slot), source is not None and slot.name in source.tensors))
        elif slot.role == "tokens":
            rows = source.spec.tokens.get(slot.module) if source is not None else None
            records.append((own_content(slot), rows.indices if rows is not None else ()))
    return records


def _fields(placement: Placement, source: Source | None) -> dict[str, Any] | None:
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
    found = []
    for name in source.spec.copies:
        theirs = source.tensors[name]
        mine = live.get(_bare(name))
        same = mine is not None and mine.shape == theirs.shape
        if same and mine is not None:
            wide = torch.promote_types(mine.dtype, theirs.dtype)
            same = torch.equal(mine.detach().cpu().to(wide), theirs.cpu().to(wide))
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
