"""Adapters derived from a good one: wider, padded, rescaled, or with one defect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from hotswap import AdapterSpec
from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import WEIGHTS
from pytest_hotswap.adapters.described import exactly

OF_A_TENSOR = ("wrong shape", "missing tensor", "not a number")
"""The defects that one tensor of a file has."""

DEFECTS = (
    "wrong shape",
    "missing tensor",
    "extra tensor",
    "not a number",
    "truncated file",
    "wrong rank in the config",
    "larger rank",
)


def break_adapter(
    source: Path,
    folder: Path,
    defect: str,
    *,
    room: Mapping[str, int] | None = None,
    at: Literal["first", "last"] = "last",
) -> Path:
    """Copy an adapter and give its last or first tensor (or the file, or its config) one defect.

    A larger rank is the least one above the ``room`` of each module that its groups divide, by default
    above the adapter's own.
    """
    import torch

    def change(tensors: dict[str, Any]) -> None:
        key = sorted(tensors)[0 if at == "first" else -1]
        if defect == "wrong shape":
            tensors[key] = torch.cat([tensors[key]] * 2)
        elif defect == "missing tensor":
            del tensors[key]
        elif defect == "extra tensor":
            tensors["base_model.model.nowhere.weight"] = torch.zeros(2, 2)
        elif defect == "not a number":
            tensors[key].view(-1)[-1] = float("nan")

    if defect not in DEFECTS:
        raise ValueError(f"unknown defect {defect!r}; one of {', '.join(DEFECTS)}")
    if defect == "larger rank":
        modules, known = AdapterSpec.read(source).modules, room or {}
        above = {
            name: (max(known.get(name, 0), module.rank) // module.groups + 1) * module.groups
            for name, module in modules.items()
        }
        return widen_adapter(source, folder, above)
    config = _copy(source, folder, change)
    if defect == "wrong rank in the config":
        patterns = {key: rank + 1 for key, rank in (config.get("rank_pattern") or {}).items()}
        _configure(folder, config, r=config["r"] + 1, rank_pattern=patterns)
    if defect == "truncated file":
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: len(data) - 16])
    return folder


def widen_adapter(source: Path, folder: Path, wanted: Mapping[str, int]) -> Path:
    """Copy an adapter with each module at the wanted rank, padded with zeros, its scaling kept."""
    spec = AdapterSpec.read(source)
    ranks = {name: wanted[name] for name in spec.modules}

    def change(tensors: dict[str, Any]) -> None:
        for key, value in tensors.items():
            if ".lora_" not in key or "magnitude" in key or key.endswith("bias"):
                continue
            name = key.removeprefix("base_model.model.").partition(".lora_")[0]
            module, rank = spec.modules[name], ranks[name]
            if "lora_A" in key or "lora_embedding_A" in key:  # (experts * rank, …)
                tensors[key] = _widen(value.unflatten(0, (module.experts, -1)), rank).flatten(0, 1)
            else:  # (out, rank / groups * experts, …)
                blocks = value.unflatten(1, (-1, module.experts))
                tensors[key] = _widen(blocks, rank // module.groups).flatten(1, 2)

    rslora = bool(spec.config.get("use_rslora"))
    alphas = {
        name: module.scaling * (ranks[name] ** 0.5 if rslora else ranks[name])
        for name, module in spec.modules.items()
    }
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    _configure(  # a pattern only where it says something: some frameworks refuse new ones
        folder,
        _copy(source, folder, change),
        r=rank,
        lora_alpha=alpha,
        rank_pattern={exactly(n): r for n, r in ranks.items() if r != rank},
        alpha_pattern={exactly(n): a for n, a in alphas.items() if a != alpha},
    )
    return folder


def _widen(value: Any, size: int) -> Any:
    """Pad the second axis with zeros."""
    wide = value.new_zeros((len(value), size, *value.shape[2:]))
    wide[:, : value.shape[1]] = value
    return wide


def rescale_adapter(source: Path, folder: Path, factor: float) -> Path:
    """Copy an adapter with its alpha multiplied."""
    config = _copy(source, folder)
    patterns = {key: value * factor for key, value in (config.get("alpha_pattern") or {}).items()}
    _configure(folder, config, lora_alpha=config["lora_alpha"] * factor, alpha_pattern=patterns)
    return folder


def negate_adapter(source: Path, folder: Path) -> Path:
    """Copy an adapter with every lora_B (or the one of an embedding) negated; its config stays."""

    def change(tensors: dict[str, Any]) -> None:
        for key in tensors:
            if "lora_B.weight" in key or "lora_embedding_B" in key:
                tensors[key] = -tensors[key]

    _copy(source, folder, change)
    return folder


def _copy(
    source: Path, folder: Path, change: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Copy a folder, with its tensors changed, and read its config."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    if change is not None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config


def _configure(folder: Path, config: Mapping[str, Any], **fields: Any) -> None:
    (folder / CONFIG).write_text(json.dumps({**config, **fields}), encoding="utf-8")
