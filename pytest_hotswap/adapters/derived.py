"""Adapters derived from a good one: wider, padded, rescaled, or with one defect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DEFECTS = (
    "wrong shape",
    "missing tensor",
    "extra tensor",
    "not a number",
    "truncated file",
    "wrong rank in the config",
    "larger rank",
)
_WEIGHTS = "adapter_model.safetensors"


def break_adapter(
    source: Path, folder: Path, defect: str, *, room: Mapping[str, int] | None = None
) -> Path:
    """Copy an adapter and give its last tensor (or the file, or its config) one defect.

    A larger rank is one above the ``room`` of each module, by default above the adapter's own.
    """
    import torch

    def change(tensors: dict[str, Any]) -> None:
        last = sorted(tensors)[-1]
        if defect == "wrong shape":
            wide = tensors[last]
            tensors[last] = torch.cat([wide, wide])
        elif defect == "missing tensor":
            del tensors[last]
        elif defect == "extra tensor":
            tensors["base_model.model.nowhere.weight"] = torch.zeros(2, 2)
        elif defect == "not a number":
            tensors[last].view(-1)[-1] = float("nan")

    if defect not in DEFECTS:
        raise ValueError(f"unknown defect {defect!r}; one of {', '.join(DEFECTS)}")
    if defect == "larger rank":
        return widen_adapter(source, folder, _above(source, room or {}))
    _rewrite(source, folder, change)
    if defect == "wrong rank in the config":
        config = json.loads((folder / "adapter_config.json").read_text())
        patterns = {key: rank + 1 for key, rank in (config.get("rank_pattern") or {}).items()}
        _reconfigure(folder, r=config["r"] + 1, rank_pattern=patterns)
    if defect == "truncated file":
        data = (folder / _WEIGHTS).read_bytes()
        (folder / _WEIGHTS).write_bytes(data[: len(data) - 16])
    return folder


def widen_adapter(source: Path, folder: Path, wanted: Mapping[str, int]) -> Path:
    """Copy an adapter with each module at the wanted rank, padded with zeros, its scaling kept."""
    import torch

    from hotswap.adapters.spec import AdapterSpec

    spec = AdapterSpec.read(source)
    ranks = {name: wanted[name] for name in spec.modules}

    def change(tensors: dict[str, Any]) -> None:
        for key, value in tensors.items():
            if ".lora_" not in key or "magnitude" in key or key.endswith("bias"):
                continue
            name = key.removeprefix("base_model.model.").partition(".lora_")[0]
            module = spec.modules[name]
            shape = list(value.shape)
            if "lora_A" in key or "lora_embedding_A" in key:
                shape[0] = ranks[name]
            else:
                shape[1] = ranks[name] // module.groups
            wide = torch.zeros(shape, dtype=value.dtype)
            wide[tuple(slice(0, size) for size in value.shape)] = value
            tensors[key] = wide

    _rewrite(source, folder, change)
    rslora = bool(spec.config.get("use_rslora"))
    alphas = {
        name: module.scaling * (ranks[name] ** 0.5 if rslora else ranks[name])
        for name, module in spec.modules.items()
    }
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    _reconfigure(  # a pattern only where it says something: some frameworks refuse new ones
        folder,
        r=rank,
        lora_alpha=alpha,
        rank_pattern={f"^{_escaped(n)}$": r for n, r in ranks.items() if r != rank},
        alpha_pattern={f"^{_escaped(n)}$": a for n, a in alphas.items() if a != alpha},
    )
    return folder


def rescale_adapter(source: Path, folder: Path, factor: float) -> Path:
    """Copy an adapter with its alpha multiplied."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    patterns = {key: value * factor for key, value in (config.get("alpha_pattern") or {}).items()}
    _reconfigure(folder, lora_alpha=config["lora_alpha"] * factor, alpha_pattern=patterns)
    return folder


def _above(source: Path, room: Mapping[str, int]) -> dict[str, int]:
    """The least ranks above the room, each a multiple of the module's groups."""
    from hotswap.adapters.spec import AdapterSpec

    modules = AdapterSpec.read(source).modules
    return {
        name: (max(room.get(name, 0), module.rank) // module.groups + 1) * module.groups
        for name, module in modules.items()
    }


def _escaped(name: str) -> str:
    return name.replace(".", "\\.")


def _rewrite(source: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    tensors = load_file(folder / _WEIGHTS)
    change(tensors)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def _reconfigure(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
