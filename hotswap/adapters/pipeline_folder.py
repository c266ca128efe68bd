"""The folder of a pipeline of diffusers: its class, and which class each of its components has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotswap.adapters.formats.component import COMPONENTS
from hotswap.adapters.texts import Family
from hotswap.errors import HotswapError

INDEX = "model_index.json"


@dataclass(frozen=True, slots=True)
class PipelineFolder:
    """What ``model_index.json`` says; ``components`` are those that can carry LoRA: (library, class)."""

    path: Path
    family: Family
    components: dict[str, tuple[str, str]]


def read_pipeline_folder(base: str | Path) -> PipelineFolder | None:
    """Read the folder of a pipeline, or its index; None for another one. Raises HotswapError."""
    index = Path(base)
    if index.name != INDEX:
        index /= INDEX
    if not index.is_file():
        return None
    fields = _object(index)
    name = fields.get("_class_name")
    if not isinstance(name, str):
        raise HotswapError(f"--base {base}: {INDEX} has no _class_name, expected a pipeline's")
    components = {
        component: (str(entry[0]), str(entry[1]))
        for component in COMPONENTS
        if isinstance(entry := fields.get(component), list) and len(entry) == 2 and all(entry)
    }
    unet = index.parent / "unet" / "config.json"
    layers = _object(unet).get("layers_per_block", 2) if unet.is_file() else 2
    family = Family(name, layers if isinstance(layers, int) else 2)
    return PipelineFolder(index.parent, family, components)


def family_of_folder(base: str | Path) -> Family:
    """Which converter reads files for the pipeline in a folder; raises HotswapError for another folder."""
    found = read_pipeline_folder(base)
    if found is None:
        raise HotswapError(f"--base {base}: no {INDEX} there, expected the folder of a pipeline")
    return found.family


def _object(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HotswapError(f"{file} cannot be read: {error}; pass the folder of a model") from error
    if not isinstance(fields, dict):
        raise HotswapError(f"{file} is no JSON object; pass the folder of a model")
    return fields
