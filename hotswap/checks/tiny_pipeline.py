"""A small copy of a pipeline of diffusers, made from the configs of its components alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hotswap.adapters.pipeline_folder import INDEX
from hotswap.checks.tiny import cut_layers, draw, layers_needed
from hotswap.errors import HotswapError, MissingExtraError

_HEADS, _KEYS = ("num_attention_heads", "n_heads"), ("num_kv_heads", "n_kv_heads")
_OF_BLOCKS = ("attention_head_dim", "num_attention_heads", "num_heads")
"""Heads of the blocks of a UNet, whatever they are called there."""

_INNER = ("ffn_dim", "intermediate_size", "d_ff")
_LEAST, _FEW, _NARROW = 4, 2, 128
"""The narrowest block, the heads of a transformer, and the width inside of a feed-forward, at most."""

_GROUPS = 32
"""Groups of norms that a config leaves to its class."""


def shrink_component(fields: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Cut the fields of a config; widths that one component of a pipeline hands to another stay.

    These are what text encoders give, and what a denoiser takes beside the picture. Of a UNet or a VAE the
    narrowest block becomes as wide as its norms have groups, and the others stay in proportion.
    """
    found = dict(fields)
    for key, value in fields.items():
        if isinstance(value, dict) and key.endswith("_config"):
            found[key] = shrink_component(value, layers)
    cut_layers(found, layers)
    widths, size = fields.get("block_out_channels"), fields.get("attention_head_dim")
    heads = next((n for key in _HEADS if isinstance(n := fields.get(key), int)), 0)
    if isinstance(widths, list | tuple):
        by = max(min(widths) // max(fields.get("norm_num_groups", _GROUPS) or 0, _LEAST), 1)
        found["block_out_channels"] = [width // by for width in widths]
        for key in found.keys() & set(_OF_BLOCKS):
            found[key] = _each(found[key], lambda count: max(count // by, 1))
        for key in found.keys() & {"layers_per_block", "transformer_layers_per_block"}:
            found[key] = _each(found[key], lambda count: min(count, 1))
    elif heads and isinstance(size, int):
        few = min(heads, _FEW)
        found |= {key: few * size for key, value in fields.items() if value == heads * size}
        found |= {key: few for key in _HEADS if key in found}
        found |= {key: min(found[key], few) for key in _KEYS if isinstance(found.get(key), int)}
    elif isinstance(fields.get("d_kv"), int):  # of T5, whose heads need not add up to its width
        found["num_heads"] = min(fields["num_heads"], _FEW)
    found |= {key: min(n, _NARROW) for key in _INNER if isinstance(n := found.get(key), int)}
    return found


def _each(value: Any, cut: Callable[[int], int]) -> Any:
    """Cut a number, or the numbers in lists; anything else stays."""
    if isinstance(value, list | tuple):
        return [_each(item, cut) for item in value]
    return cut(value) if isinstance(value, int) else value


def write_tiny_pipeline(base: str, folder: Path, first_layers: Mapping[str, int]) -> str:
    """Write the small copy with random weights, and what is no model as it is; say what was cut.

    Components of other libraries, as checkers of pictures are, are left out. Raises HotswapError for a
    pipeline whose configs are not cut by this rule.
    """
    index = json.loads(Path(base, INDEX).read_text(encoding="utf-8"))
    layers, size = layers_needed({}, first_layers), 0
    folder.mkdir(parents=True)
    for name, entry in index.items():
        here = Path(base, name)
        if name.startswith("_") or not (isinstance(entry, list) and here.is_dir()):
            continue
        library, kind = map(str, entry)
        if not (here / "config.json").is_file():
            shutil.copytree(here, folder / name)
        elif library not in ("diffusers", "transformers"):
            index[name] = [None, None]
        else:
            try:
                model = _build(here, library, kind, layers)
            except Exception as error:  # of any model's code
                said = " ".join(str(error).split())[:300]
                raise HotswapError(
                    f"--tiny: {name}, a {kind}, is not cut by its rule of sizes ({said}); verify the "
                    "pipeline itself"
                ) from error
            size += sum(parameter.numel() for parameter in model.parameters())
            draw(model)
            model.save_pretrained(folder / name)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return f"{index['_class_name']}, {size / 1e6:.1f} million parameters, random weights"


def _build(folder: Path, library: str, kind: str, layers: int) -> Any:
    if library == "transformers":
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        cut = type(config).from_dict(shrink_component(config.to_dict(), layers))
        return getattr(transformers, kind)(cut).float()
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("--base of a pipeline", "diffusers", "diffusers") from error
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return getattr(diffusers, kind).from_config(shrink_component(fields, layers))
