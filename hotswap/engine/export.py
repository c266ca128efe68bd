"""export: write a prepared model as a package whose adapters can be swapped."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from hotswap.adapters.config import unsupported_features
from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.compiled import walk
from hotswap.compiler.packages import Form, PackageFile, save_package
from hotswap.compiler.regions import unwrap
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.unsupported import Why, refusal
from hotswap.engine.manifest import Manifest
from hotswap.engine.parts import TargetRankError, parts_of
from hotswap.engine.transaction import exclusive, ready
from hotswap.errors import HotswapError, PackageError
from hotswap.findings import Finding

_OPTIONS = {
    "always_keep_tensor_constants": True,
    "aot_inductor.use_runtime_constant_folding": False,
    "freezing": False,
}
"""Without them AOTInductor compiles scalings in, or computes from weights what no swap reaches."""


def export(
    model: Any,
    args: tuple[Any, ...],
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    plan: SwapPlan | None = None,
    dynamic_shapes: Any = None,
    adapter_name: str | None = None,
    form: Form = "aotinductor",
) -> Path:
    """Export a prepared model, or a module of your own around it, to ``path`` (``.pt2``), and return that.

    ``args``, ``kwargs`` and ``dynamic_shapes`` are torch.export's. The package holds the plan, the slots and
    where they lie, so ``Package(path)`` swaps what fits into the model as it was prepared; ``plan`` is what
    must fit at least. ``form="program"`` writes what ``torch.export.save`` writes, and needs no C++
    compiler.
    Nothing is written unless every adapter slot can be swapped in the package.

    Raises NotPreparedError, MergedAdapterError, TargetRankError for a plan that needs more room,
    UnsupportedLayerError for what a package cannot swap, PackageError where torch left a slot out, and what
    torch raises about the model.
    """
    path = Path(path)
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}; expected one of {get_args(Form)}")
    if path.suffix != ".pt2":
        raise ValueError(f"path is {path}; expected a name that ends in .pt2")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"got a {type(model).__name__}, expected a torch module: export a component"
        )
    if form == "aotinductor":
        _require_compiler()
    model, parts = unwrap(model), parts_of(model)
    with exclusive(parts, nested=True), torch.no_grad():
        manifest = _manifest(model, ready(parts[0], adapter_name), plan)
        program = torch.export.export(
            model, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes
        )
        _require_reached(program, manifest, path)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            written = Path(folder) / path.name
            save_package(program, written, form, manifest.dumps(), dict(_OPTIONS))
            Manifest.read(PackageFile.read(written))
            os.replace(written, path)
    return path


def _manifest(model: nn.Module, placement: Placement, plan: SwapPlan | None) -> Manifest:
    """What the package will say; raises for a model that cannot be exported as it stands."""
    if placement.arena is None:
        raise HotswapError("the model was copied or moved after prepare(); prepare it again")
    training = next((n for n, m in walk(model) if m.training and not isinstance(m, Scalings)), None)
    if training is not None:
        raise HotswapError(
            f"{training or 'the model'} is in training mode, which would be exported; call eval() first"
        )
    _require_swappable(placement)
    manifest = Manifest.of(model, placement)
    if plan is None:
        return manifest
    _require_room(manifest.plan, plan)
    room = replace(plan, modules=manifest.plan.modules)
    return replace(manifest, plan=room)


def _require_swappable(placement: Placement) -> None:
    """Raise UnsupportedLayerError for what cannot be exported, or not be swapped without the base weights."""
    from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper

    of_slots = {
        "magnitude": "a DoRA magnitude is not swapped in an exported model: it depends on the base weight",
        "saved": "a whole module of modules_to_save is not swapped in an exported model",
        "tokens": "token rows are not swapped in an exported model",
    }
    refused = {s.module: Why(of_slots[s.role]) for s in placement.slots if s.role in of_slots}
    for feature in unsupported_features(vars(placement.config) if placement.config else {}):
        refused[f"adapter {placement.name!r}"] = Why(feature)
    for name, layer in placement.layers.items():
        if isinstance(layer, MultiheadAttention | ParamWrapper):
            refused[name] = Why(f"torch.export cannot trace PEFT's {type(layer).__name__}")
    if refused:
        raise refusal(refused)


def _require_reached(program: torch.export.ExportedProgram, manifest: Manifest, path: Path) -> None:
    """Raise PackageError for slots that the exported graph does not read, as of a disabled adapter."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    inputs = program.graph.find_nodes(op="placeholder")
    reached = {names.get(node.name) for node in inputs if node.users}
    text = "is not read by the forward that was exported"
    remedy = "enable the adapter, and call all of its modules in the forward"
    lost = [one.constant for one in manifest.tensors if one.constant not in reached]
    if lost:
        raise PackageError([Finding(f"{path}::{name}", "HSW313", text, remedy) for name in lost])


def _require_room(room: SwapPlan, plan: SwapPlan) -> None:
    """Raise TargetRankError unless everything of a plan fits into what a model was prepared for."""
    for name, module in plan.modules.items():
        have = room.modules.get(name)
        fits = have is not None and replace(module, rank=have.rank, bias=have.bias) == have
        if have is None or not fits or module.rank > have.rank or module.bias > have.bias:
            raise TargetRankError(
                f"the plan has {name} with {module}, the model was prepared for {have}; "
                "call prepare(model, plan=plan) before the export"
            )
    if plan.saved or plan.tokens:
        raise TargetRankError(
            "the plan has whole modules or token rows, which cannot be swapped in an exported model; "
            "plan the adapters without them"
        )


def _require_compiler() -> None:
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if not any(name and shutil.which(name) for name in names):
        raise HotswapError(
            "AOTInductor needs a C++ compiler, and none was found; install g++ or clang++, "
            'or export with form="program"'
        )
