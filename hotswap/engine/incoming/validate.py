"""validate: does an adapter fit where it is to be put; its values are not looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hotswap.adapters.config import ground_of, unsupported_features
from hotswap.adapters.fit import fits, names_others
from hotswap.adapters.names import canonical
from hotswap.adapters.plan import SwapPlan
from hotswap.adapters.spec import AdapterSpec, merge_alike
from hotswap.compiler.shards import chunk_of, local_of
from hotswap.engine.incoming.source import IncomingAdapter
from hotswap.engine.layout.placement import Placement
from hotswap.errors import AdapterError, RankTooLargeError
from hotswap.findings import Finding, has_code

if TYPE_CHECKING:
    from peft import LoraConfig

_LAYERS = (
    nn.Linear,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.MultiheadAttention,
)


def validate(model: nn.Module, placement: Placement, source: IncomingAdapter) -> None:
    """Raise AdapterError (RankTooLargeError) unless the adapter fits; its values are not looked at."""
    if not any(plan.modules is source.spec.modules for plan in placement.copy_plans):
        in_place = {
            name: (state.rank, float(state.scaling))
            for name, state in zip(placement.layers, placement.shared.values, strict=False)
            if state is not None and state.rank
        }
        refuse(findings_of(placement.envelope, source.spec, placement.config, in_place))
        base = getattr(model, "get_base_model", lambda: model)()
        refuse(tuple(names_others(source.spec, without_lora(base))))
    if source.spec.copies:
        refuse(tuple(_other_copies(model, source)))


def findings_of(
    envelope: SwapPlan,
    spec: AdapterSpec,
    config: LoraConfig | None,
    in_place: Mapping[str, tuple[int, float]],
) -> tuple[Finding, ...]:
    """Why an adapter does not fit where one of this config is, with these ranks and scalings by module.

    Both may take the same part out of the base weights, or begin at the same tokens.
    """
    found = fits(envelope, spec)
    mine, theirs = (
        ground_of(fields) for fields in ({} if config is None else vars(config), spec.config)
    )
    if not mine and not theirs:
        return found
    own = {name: (module.rank, module.scaling) for name, module in spec.modules.items()}
    if mine == theirs and ("init_lora_weights" not in mine or _alike(own, in_place)):
        alike = unsupported_features(mine)
        return tuple(finding for finding in found if finding.message not in alike)
    more = [
        Finding(
            spec.path, "HSW102", f"the adapter in place has {feature}", "load a model of its own"
        )
        for feature in unsupported_features(mine)
        if mine != theirs and feature not in {finding.message for finding in found}
    ]
    return (*found, *more)


def without_lora(module: nn.Module, path: str = "") -> Iterator[str]:
    """Name the modules of a base model that PEFT cannot put LoRA on: blocks, norms and the like.

    What looks like a layer of quantised weights is none of these.
    """
    for name, child in module.named_children():
        if hasattr(child, "base_layer") or hasattr(child, "original_module"):
            continue  # PEFT's own
        if not _is_layer(child):
            yield canonical(f"{path}{name}")
        yield from without_lora(child, f"{path}{name}.")


def _is_layer(module: nn.Module) -> bool:
    if isinstance(module, _LAYERS) or re.search("Linear|Conv1D", type(module).__name__):
        return True
    if any(True for _ in module.children()):
        return False
    packed = [*module.buffers(recurse=False)]
    packed += [p for p in module.parameters(recurse=False) if not p.is_floating_point()]
    return any(tensor.ndim > 1 for tensor in packed)


def _alike(own: Mapping[str, tuple[int, float]], other: Mapping[str, tuple[int, float]]) -> bool:
    return own.keys() == other.keys() and all(
        rank == other[name][0] and math.isclose(scaling, other[name][1], rel_tol=1e-6)
        for name, (rank, scaling) in own.items()
    )


def refuse(findings: tuple[Finding, ...]) -> None:
    """Raise AdapterError (RankTooLargeError) if there are findings, those of a family of modules as one."""
    if findings:
        kind = RankTooLargeError if has_code(findings, "HSW105") else AdapterError
        raise kind(merge_alike(findings))


def _other_copies(model: nn.Module, source: IncomingAdapter) -> list[Finding]:
    """Base weights in the adapter that are not the model's: a fresh load would write them into it.

    A head that is tied to a module that the adapter carries must be as that one.
    """
    live = {
        _bare(canonical(name)): tensor
        for name, tensor in model.named_parameters(remove_duplicate=False)
    }
    copies, tied = source.spec.copies, source.spec.tied
    others = [
        name
        for name, info in copies.items()
        if name not in tied and info.shape != getattr(live.get(_bare(name)), "shape", None)
    ]
    if not others:  # else nothing is read: a file of holes may claim any size
        tensors = source.tensors
        expected = {n: tensors[tied[n]] if n in tied else live[_bare(n)] for n in copies}
        others = [name for name in copies if not _equal(expected[name], tensors[name])]
    text = "the adapter carries a base weight that differs from the model's"
    remedy = (
        "save it with save_pretrained(folder, save_embedding_layers=False), or "
        "load it into a base model of its own"
    )
    return [Finding(f"{source.label}::{name}", "HSW107", text, remedy) for name in others]


def _equal(mine: Tensor, theirs: Tensor) -> bool:
    local = local_of(mine)
    if local is not mine:  # each rank looks at its part
        spans = zip(*chunk_of(mine), strict=True)
        theirs = theirs[tuple(slice(at, at + size) for at, size in spans)]
    return torch.equal(local.detach().cpu(), theirs.cpu().to(local.dtype))


def _bare(name: str) -> str:
    """The name that a base weight has in the base model, without the layers that PEFT puts around it."""
    wrappers = ("base_layer", "original_module", "token_adapter")
    return ".".join(part for part in name.split(".") if part not in wrappers)
