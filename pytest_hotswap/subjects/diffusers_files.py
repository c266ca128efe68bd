"""Adapter files of diffusers as PEFT folders over the components of a pipeline, and back.

The laws derive adapters (wider, rescaled, broken) from PEFT folders, and PEFT loads these into what they
compare with. Diffusers is given the file itself, or the translation of a derived adapter.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import DIFFUSERS_WEIGHTS as WEIGHTS
from hotswap.adapters.files import WEIGHTS as PEFT_WEIGHTS
from hotswap.adapters.formats.component import implied_config
from hotswap.adapters.formats.diffusers import COMPONENTS, METADATA
from hotswap.adapters.header import read_header
from hotswap.adapters.texts import weights_of
from hotswap.errors import UnreadableAdapterError

_PREFIX = "base_model.model."
_OF_UNETS = {"down_blocks", "mid_block", "up_blocks"}
_ORIGINALS: dict[Path, Path] = {}
"""The file that a PEFT folder is the translation of."""


@cache
def peft_folder(adapter: Path) -> Path:
    """The translation of a file of diffusers (or of its folder), made once a process."""
    file = weights_of(adapter)
    if file is None:
        return adapter  # PEFT's already
    scratch = tempfile.mkdtemp(prefix="hotswap-diffusers-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    folder = Path(scratch) / (adapter.name if adapter.is_dir() else adapter.stem)
    translate(file, folder)
    _ORIGINALS[folder] = file
    return folder


def translate(file: Path, folder: Path) -> None:
    """Write a file of diffusers, or of a trainer, as a PEFT folder; modules begin with their component."""
    from safetensors.torch import save_file

    from hotswap.engine.incoming.source import read_components

    tensors: dict[str, Any] = {}
    alphas: dict[str, float] = {}
    for name, part in read_components(file).items():
        values = part.tensors
        component = name or component_of(key.partition(".")[0] for key in values)
        tensors |= {f"{component}.{key}": value.clone() for key, value in values.items()}
        modules = part.spec.modules.items()
        alphas |= {f"{component}.{key}": module.scaling * module.rank for key, module in modules}
    config = implied_config({name: tuple(t.shape) for name, t in tensors.items()}, alphas)
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config | {"inference_mode": True}), encoding="utf-8")
    named = {_PREFIX + name: value for name, value in tensors.items()}
    save_file(named, folder / PEFT_WEIGHTS, metadata={"format": "pt"})


def file_of(folder: Path) -> Path:
    """The file of diffusers that a PEFT folder was translated from, or else its translation."""
    from safetensors.torch import load_file, save_file

    if folder in _ORIGINALS:
        return _ORIGINALS[folder]
    file = folder / WEIGHTS
    try:
        tensors = load_file(folder / PEFT_WEIGHTS)
    except SafetensorError:  # a damaged one stays damaged
        shutil.copyfile(folder / PEFT_WEIGHTS, file)
        return file
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    named = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    fields = {
        f"{component}.{key}": value
        for component in COMPONENTS
        if any(name.startswith(f"{component}.") for name in named)
        for key, value in _below(config, component).items()
    }
    save_file(named, file, metadata={"format": "pt", METADATA: json.dumps(fields)})
    return file


def names_components(file: Path) -> bool:
    """Whether the tensors' names begin with a component's, as in what a pipeline saves."""
    try:
        return any(name.partition(".")[0] in COMPONENTS for name in read_header(file))
    except UnreadableAdapterError:  # whoever loads it will say so
        return True


def component_of(children: Iterable[str]) -> str:
    """What pipelines call a model with these children."""
    return "transformer" if _OF_UNETS.isdisjoint(children) else "unet"


def _below(config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The part of a config that speaks of one component, in its own names."""
    start, name = f"^{component}\\.", f"{component}."
    others = tuple(f"^{other}\\." for other in COMPONENTS if other != component)
    patterns = {
        key: {
            f"^{k[len(start) :]}" if k.startswith(start) else k: value
            for k, value in config[key].items()
            if not k.startswith(others)
        }
        for key in ("rank_pattern", "alpha_pattern")
    }
    targets = [n.removeprefix(name) for n in config["target_modules"] if n.startswith(name)]
    return {**config, **patterns, "target_modules": targets}
