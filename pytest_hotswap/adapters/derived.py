"""Adapters derived from a good one: wider, padded, rescaled, or with one defect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hotswap import AdapterSpec
from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import WEIGHTS
from hotswap.adapters.header import read_header
from hotswap.adapters.modules import FLOATING
from hotswap.adapters.names import TOKENS
from pytest_hotswap.adapters.described import exactly, target_of

DEFECTS = (
    "wrong shape",
    "missing tensor",
    "extra tensor",
    "not a number",
    "truncated file",
    "wrong rank in the config",
    "larger rank",
)


TOO_LARGE = "number that is infinite in the model"
"""A defect of a file that is wider than the model: no float64 takes it for one."""


def kinds_of(adapter: Path) -> dict[str, tuple[str, list[tuple[str, int]]]]:
    """A tensor of each kind that an adapter has, by what it is: its name, and the defects it may have.

    A defect has an axis with it, which counts for a wrong shape only.
    """
    found: dict[str, tuple[str, list[tuple[str, int]]]] = {}
    for key, info in sorted(read_header(adapter / WEIGHTS).items()):
        _, lora, part = key.partition(".lora_")
        if info.dtype not in FLOATING:  # a counter that nothing reads, as a rule
            continue
        tokens = key.endswith(TOKENS)
        kind = f"lora_{part}" if lora else "token rows" if tokens else f"saved {key.split('.')[-1]}"
        axes = range(max(1, min(2, len(info.shape))))
        shapes = [("wrong shape", axis) for axis in axes]
        defects = [*shapes, ("missing tensor", 0), ("not a number", 0)]
        found.setdefault(kind, (key, defects))
    return found


def break_adapter(
    source: Path,
    folder: Path,
    defect: str,
    *,
    room: Mapping[str, int] | None = None,
    key: str = "",
    axis: int = 0,
) -> Path:
    """Copy an adapter and give one tensor (the last, or ``key``), the file or its config one defect.

    A wrong shape is one of twice the length along ``axis``. A larger rank is the least one above the
    ``room`` of each module that its groups divide, by default above the adapter's own.
    """
    import torch

    def change(tensors: dict[str, Any]) -> None:
        broken = key or max(tensors)
        value = tensors[broken]
        if defect == "wrong shape":
            tensors[broken] = torch.cat([value] * 2, axis) if value.ndim else value.repeat(2)
        elif defect == "missing tensor":
            del tensors[broken]
        elif defect == "extra tensor":
            tensors["base_model.model.nowhere.weight"] = torch.zeros(2, 2)
        elif defect == "not a number":
            value.view(-1)[-1] = float("nan")
        elif defect == TOO_LARGE:
            tensors[broken] = value.double()
            tensors[broken].view(-1)[-1] = 1e300

    if defect not in (*DEFECTS, TOO_LARGE):
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
    targets: dict[str, int] = {}  # PEFT gives all that it wraps for one target the same rank
    for name in spec.modules:
        targets[target_of(name)] = max(targets.get(target_of(name), 0), wanted[name])
    ranks = {name: targets[target_of(name)] for name in spec.modules}

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


def with_a_module(source: Path, folder: Path, name: str, sizes: tuple[int, int]) -> Path:
    """Copy an adapter with one more module, a linear one of sizes (in, out), of its rank."""
    import torch

    spec = AdapterSpec.read(source)

    def change(tensors: dict[str, Any]) -> None:
        rank = int(spec.config["r"])
        like = next(value for value in tensors.values() if value.is_floating_point())
        for part, shape in (("A", (rank, sizes[0])), ("B", (sizes[1], rank))):
            full = torch.full(shape, 0.1, dtype=like.dtype)
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = full

    targets = sorted({*map(target_of, spec.modules), name})
    _configure(folder, _copy(source, folder, change), target_modules=targets)
    return folder


def negate_adapter(source: Path, folder: Path, *, only: str = "") -> Path:
    """Copy an adapter with every lora_B (or the one of an embedding, or of ``only``) negated.

    Its config stays.
    """

    def change(tensors: dict[str, Any]) -> None:
        for key in tensors:
            is_b = "lora_B.weight" in key or "lora_embedding_B" in key
            if is_b and (not only or f".{only}.lora_" in key):
                tensors[key] = -tensors[key]

    _copy(source, folder, change)
    return folder


def alike_adapters(source: Path, folder: Path) -> dict[str, Path]:
    """Write adapters that differ from one in a single thing, by what it is."""
    spec = AdapterSpec.read(source)
    found = {
        "another alpha": rescale_adapter(source, folder / "alpha", 3.0),
        "other weights": negate_adapter(source, folder / "weights"),
        "rsLoRA" if not spec.config.get("use_rslora") else "no rsLoRA": folder / "rslora",
    }
    config = _copy(source, folder / "rslora")
    _configure(folder / "rslora", config, use_rslora=not spec.config.get("use_rslora"))
    plain = [n for n, m in spec.modules.items() if target_of(n) == n and not m.parameters]
    if plain:
        name = plain[len(plain) // 2]
        found["other weights in one module"] = folder / "module"
        negate_adapter(source, folder / "module", only=name)
        found["another alpha in one module"] = folder / "pattern"
        patterns = {exactly(name): spec.modules[name].alpha * 3, **(config["alpha_pattern"] or {})}
        _configure(folder / "pattern", _copy(source, folder / "pattern"), alpha_pattern=patterns)
    return found


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
