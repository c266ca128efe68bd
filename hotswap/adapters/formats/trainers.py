"""Files for pipelines in the names of trainers and other programs, read by diffusers' own converters.

These are: diffusers' older names, kohya's sd-scripts and musubi, ai-toolkit, XLabs, the original code of
Flux, Wan, Hunyuan and others, ComfyUI's prefix. The converters run over tensors without data, which are
made from the header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hotswap.adapters.config import parse_config
from hotswap.adapters.files import unreadable
from hotswap.adapters.formats.component import METADATA, Component, config_for
from hotswap.adapters.formats.conversion import LEFT_OUT, Converted, converted, for_pipeline
from hotswap.adapters.formats.diffusers import without_config
from hotswap.adapters.header import FileLayout
from hotswap.adapters.names import LINEAR
from hotswap.adapters.texts import Family, Texts
from hotswap.errors import UnreadableAdapterError, missing_extra

_LORA = re.compile(
    r"[._](lora_(down|up|[AB])|(\w+_)?lora\d?\.(down|up)|lora_linear_layer\.(down|up))\.(\w+\.)?weight$"
)
_HALVES = (
    re.compile(r"(lora_down|lora_A(\.\w+)?|\bdown)\.weight$"),
    re.compile(r"(lora_up|lora_B(\.\w+)?|\bup)\.weight$"),
)
_FAMILIES = {
    "StableDiffusionXLPipeline": r"^(lora_unet_|unet\.).*((down|up|input|output)_blocks?|mid(dle)?_block)"
    r"|^lora_te\d?_|^text_encoder|^unet\.",
    "FluxPipeline": r"(double|single)_blocks\.\d+\.(?!(img|txt)_attn_qkv)"
    r"|^lora_\w+_(double|single)_blocks_\d+_|transformer_blocks[._]\d+[._](attn[._]|norm|ff|proj)",
    "Flux2Pipeline": r"(double|single)_blocks[._]\d+[._](?!img_attn_qkv\.)"
    r"|stream_modulation|to_qkv_mlp_proj",
    "HunyuanVideoPipeline": r"\.(img|txt)_attn_qkv\.|individual_token_refiner",
    "WanPipeline": r"(^|\.|^lora_unet_)blocks[._]\d+[._](self_attn|cross_attn|attn[12]|ffn)",
    "LTXPipeline": r"transformer_blocks\.\d+\.(attn[12]|ff)\.",
    "LTX2Pipeline": r"transformer_blocks\.\d+\.(audio|video)_",
    "QwenImagePipeline": r"(^|\.|^lora_unet_)transformer_blocks[._]\d+[._](attn[._]|img_m|txt_m)",
    "ZImagePipeline": r"(layers|(noise|context)_refiner)[._]\d+[._](attention|feed_forward|adaLN)",
    "Lumina2Pipeline": r"^diffusion_model\.(layers|(noise|context)_refiner)\.\d+\.attention",
    "HiDreamImagePipeline": r"(double|single)_stream_blocks",
    "Krea2Pipeline": r"^diffusion_model\.(blocks\.\d+\.(attn\.w[qkvo]|mlp\.(gate|up|down))|txtfusion)\b",
    "AnimaModularPipeline": r"^diffusion_model\.(blocks\.\d+\.(self|cross)_attn\.\w_proj|llm_adapter)\b",
    "Ideogram4Pipeline": r"^(diffusion_model|conditional_transformer)\.layers\.\d+\.attention\.(qkv|o)\b",
    "Flux3ModularPipeline": r"^diffusion_model\.\w*mode_blocks\.",
    "MiniMaxH3ModularPipeline": r"(^|\.|^lora_unet_)blocks[._]\d+[._](attn[._](qkv|out)_proj|mlp[._]fc)",
}
"""Pipelines whose converters know other names → names that one of its files may have."""
_NEVER = {
    "ZImagePipeline": r"^diffusion_model\..*attention\.(qkv|o)\.",
    "FluxPipeline": r"[._]attn[12][._]|\.(img|txt)_(attn_|mod\.\d|mlp\.net)|stream_modulation"
    r"|to_qkv_mlp_proj",
    "Flux2Pipeline": r"_mod(ulation)?[._]lin|\.(img|txt)_attn_",
    "LTXPipeline": r"\.attn\.|(audio|video)_|single_",
    "QwenImagePipeline": r"single_",
    "StableDiffusionXLPipeline": r"(double|single)_blocks|transformer_blocks_\d+_attn_",
}
"""The same → names that none of them has, where files of other pipelines have names in common with it."""
_WIDTHS = {"FluxPipeline": (4, 7), "Flux2Pipeline": (6, 9)}
"""The same → how much wider than its input mlp.0 is, and linear1, where only that tells them apart."""


def components(texts: Texts, layout: FileLayout) -> dict[str, Component] | None:
    """Config and tensors of each component, where pairs of LoRA weights stand without a config.

    Raises UnreadableAdapterError (HSW002/003/005).
    """
    if texts.config is not None or not any(map(_LORA.search, layout.tensors)):
        return None
    pairs = _pairs(texts.weights, layout)
    families = [texts.family] if texts.family is not None else _families(layout)
    if not families:
        if any(name.startswith(("base_model.", "model.", "module.")) for name in layout.tensors):
            raise without_config(texts)
        text = "has LoRA weights in names of no pipeline that is known"
        remedy = "say which pipeline it is for: --base PIPELINE_FOLDER"
        raise unreadable(texts.weights, "HSW005", text, remedy)
    scalars = [name for name, info in layout.tensors.items() if info.shape in ((), (1,))]
    values = texts.values(layout, scalars)
    found: dict[Family, Converted] = {}
    problem = ""
    for family in families:
        try:
            found[family] = _converted(family, texts, layout, values, pairs)
        except UnreadableAdapterError:
            raise
        except ModuleNotFoundError as error:
            if missing := missing_extra(f"{texts.weights}, in another program's names,", error):
                raise missing from error
            raise
        except Exception as error:  # of a library, on files of strangers
            problem = problem or _first(error)
    if not found:
        text = f"diffusers' converter for {families[0].pipeline} cannot read its names: {problem}"
        remedy = "load it with the pipeline that it was trained for, or say which: --base FOLDER"
        if problem.startswith(LEFT_OUT):
            remedy = "multiply each weight of B by alpha / rank, and save the file without alphas"
            if any("lora_down" in name for name in layout.tensors):
                remedy = f"rename its weights to {' and '.join(LINEAR)}, beside which alphas are read, or "
                remedy += "save them multiplied by alpha / rank"
        raise unreadable(texts.weights, "HSW005", text, remedy)
    (family, first), *others = found.items()
    if any(other.shapes != first.shapes for _, other in others):
        names = " or ".join(family.pipeline for family in found)
        text = f"has names that could be of {names}"
        raise unreadable(texts.weights, "HSW005", text, "say which: --base PIPELINE_FOLDER")
    told = layout.metadata.get(METADATA)
    fields = None if told is None else parse_config(texts.weights, told)
    return _components(texts.weights, family, first, fields)


def _converted(
    family: Family, texts: Texts, layout: FileLayout, values: Mapping[str, bytes], pairs: int
) -> Converted:
    """Run a converter over the header; over all values where it asks for one (is a fused weight sparse)."""
    try:
        return converted(family, layout.tensors, values, pairs)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
    return converted(family, layout.tensors, texts.values(layout, layout.tensors), pairs)


def of_tensors(
    family: Family, tensors: Mapping[str, Any]
) -> tuple[dict[str, Component], dict[str, dict[str, Any]]]:
    """The components of a state dict that a pipeline takes, and their values."""
    found, values = for_pipeline(family, tensors)
    return _components("state dict", family, found, None), values


def _components(
    where: str, family: Family, found: Converted, fields: Mapping[str, Any] | None
) -> dict[str, Component]:
    if fields is not None and any(found.alphas.values()):
        text = f"has alphas beside the metadata {METADATA}, and diffusers does not take both"
        raise unreadable(where, "HSW003", text, "save it with one of them")

    def convert(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return for_pipeline(family, tensors)[1]

    return {
        name: Component(config_for(where, name, own, fields, found.alphas.get(name)), own, convert)
        for name, own in found.tensors.items()
    }


def _families(layout: FileLayout) -> list[Family]:
    """The families that a file may be of, by its names, and where they are not enough by its shapes."""
    return [
        Family(pipeline)
        for pipeline, pattern in _FAMILIES.items()
        if any(re.search(pattern, name) for name in layout.tensors)
        and not any(re.search(_NEVER.get(pipeline, "^$"), name) for name in layout.tensors)
        and _as_wide(layout, *_WIDTHS.get(pipeline, ()))
    ]


def _as_wide(layout: FileLayout, *widths: int) -> bool:
    """Whether the first layers of MLPs, or of blocks, are so many times wider than their input."""
    for name, info in layout.tensors.items() if widths else ():
        match = re.search(r"(?:_mlp[._]0|(linear1))\.lora_(?:down|A)\.weight$", name)
        if match is None:
            continue
        up = layout.tensors.get(name.replace("lora_down", "lora_up").replace("lora_A", "lora_B"))
        if up is not None and up.shape[0] != widths[match[1] is not None] * info.shape[-1]:
            return False
    return True


def _first(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).splitlines() or [""])[0].rstrip(": ")[:200] or type(error).__name__


def _pairs(where: str, layout: FileLayout) -> int:
    """How many modules a file is for; raises UnreadableAdapterError (HSW103) where it has half of one."""
    down, up = (
        {name[: match.start()] for name in layout.tensors if (match := half.search(name))}
        for half in _HALVES
    )
    if alone := sorted(down ^ up):
        text = f"has one of the two LoRA weights of a module{_more(len(alone))}"
        remedy = "save the adapter again, or download it again"
        raise unreadable(f"{where}::{alone[0].rstrip('._')}", "HSW103", text, remedy)
    return len(down)


def _more(count: int) -> str:
    return f" (and of {count - 1} more)" if count > 1 else ""
