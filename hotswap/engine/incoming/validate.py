"""validate: does an adapter fit where it is to be put; its values are not looked at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hotswap.adapters.fit import fits
from hotswap.adapters.names import canonical
from hotswap.adapters.spec import merge_alike
from hotswap.compiler.shards import chunk_of, local_of
from hotswap.engine.incoming.source import IncomingAdapter
from hotswap.engine.layout.placement import Placement
from hotswap.errors import AdapterError, RankTooLargeError
from hotswap.findings import Finding, has_code


def validate(model: nn.Module, placement: Placement, source: IncomingAdapter) -> None:
    """Raise AdapterError (RankTooLargeError) unless the adapter fits; its values are not looked at."""
    if not any(plan.modules is source.spec.modules for plan in placement.copy_plans):
        refuse(fits(placement.envelope, source.spec))
    if source.spec.copies:
        refuse(tuple(_other_copies(model, source)))


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
