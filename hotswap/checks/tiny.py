"""A small copy of a model of transformers, made from its config alone: the same code on small shapes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hotswap.checks.inputs import default_inputs
from hotswap.checks.processed import TOKENIZERS
from hotswap.errors import HotswapError

HEADS, HEAD, LAYERS, EXPERTS = 4, 16, 2, 4
"""What a model is cut to: at most so many heads of such a width, layers, and experts in a layer."""

MOST_LAYERS = 8
"""Layers that are kept where every kind of layer, and every adapter, needs more than the first two."""

_SEED = 0
_LAYERS = (
    *("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer"),
    *("encoder_layers", "decoder_layers"),
    *("num_single_layers", "num_refiner_layers", "n_layers", "n_refiner_layers"),
    *("num_mmdit_layers", "num_single_dit_layers", "approximator_layers"),
)
_HEADS = (
    *("num_attention_heads", "num_heads", "n_head"),
    *("encoder_attention_heads", "decoder_attention_heads"),
)
_WIDTHS = ("hidden_size", "d_model", "n_embd", "output_hidden_size", "projection_dim")
_INNER = (
    *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner"),
    *("d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
)
_AT_MOST = {
    "head_dim": HEAD,
    "d_kv": HEAD,
    "v_head_dim": HEAD,
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": HEAD // 2,
    "q_lora_rank": 2 * HEAD,
    "kv_lora_rank": 2 * HEAD,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "max_source_positions": 64,
}
_DERIVED = ("stage_names", "out_features", "out_indices", "quantization_config")
"""Fields that a config derives from its others, and one that needs weights."""


def shrink(fields: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Cut the fields of a config, and of the configs in it; what they divide by stays so.

    Vocabulary, positions of text, kinds of layers and every switch stay: these decide which code runs.
    """
    found = {key: value for key, value in fields.items() if key not in _DERIVED}
    for key, value in found.items():
        if isinstance(value, dict) and key.endswith("_config"):
            found[key] = shrink(value, layers)
    cut_layers(found, layers)
    heads = max((n for key in _HEADS if isinstance(n := fields.get(key), int)), default=0)
    width = next((n for key in _WIDTHS[:3] if isinstance(n := fields.get(key), int)), 0)
    if heads and width:
        _narrow(found, heads, width)
    for key, most in _AT_MOST.items():
        if isinstance(size := found.get(key), int):
            found[key] = min(size, most)
    patch, side = found.get("patch_size"), found.get("image_size")
    if isinstance(patch, int) and isinstance(side, int):
        found["image_size"] = min(side, 4 * patch)
    if isinstance(layer := found.get("vision_feature_layer"), int):
        found["vision_feature_layer"] = max(min(layer, layers - 1), -layers)
    return found


def cut_layers(found: dict[str, Any], layers: int) -> None:
    """Cut the numbers of layers of one config in place, and what it says of each layer."""
    for key in _LAYERS:
        if isinstance(count := found.get(key), int):
            found[key] = min(count, layers)
            of_each = (k for k, v in found.items() if isinstance(v, list) and len(v) == count)
            found |= {k: found[k][:layers] for k in of_each if k.endswith(("types", "pattern"))}


def _narrow(found: dict[str, Any], heads: int, width: int) -> None:
    """Cut the widths of one config in place; heads share keys and values as they did."""
    few, head = min(heads, HEADS), min(HEAD, width // heads)
    narrow = few * head
    shared = found.get("num_key_value_heads")
    if isinstance(shared, int):
        found["num_key_value_heads"] = few if shared == heads else min(shared, few, 2)
    found |= {key: few for key in _HEADS if isinstance(found.get(key), int)}
    found |= {key: min(found[key], narrow) for key in _WIDTHS if isinstance(found.get(key), int)}
    for key in _INNER:
        sizes = found.get(key)
        if isinstance(sizes, int):
            found[key] = min(sizes, 2 * narrow)
        elif isinstance(sizes, list):
            found[key] = [min(size, 2 * narrow) for size in sizes]
    if isinstance(sizes := found.get("conv_dim"), list | tuple):  # of a waveform
        found["conv_dim"] = [min(size, narrow) for size in sizes]
    own = found.get("head_dim") or width // heads
    for key in ("rope_scaling", "rope_parameters"):
        rope = found.get(key)
        if isinstance(rope, dict) and (parts := rope.get("mrope_section")):
            cut = [max(part * head // own, 1) for part in parts[1:]]
            found[key] = {**rope, "mrope_section": [head // 2 - sum(cut), *cut]}


def layers_needed(fields: Mapping[str, Any], first_layers: Mapping[str, int]) -> int:
    """The first layers of a model that have every kind of layer, and something of every adapter.

    ``first_layers`` is the first layer that each adapter has weights in. Raises HotswapError for one that
    begins late.
    """
    inner = [value for value in fields.values() if isinstance(value, dict)]
    kinds = [each.get("layer_types") or [] for each in (fields, *inner)]
    of_kinds = [of.index(kind) + 1 for of in kinds for kind in set(of)]
    late = {name: layer for name, layer in first_layers.items() if layer >= MOST_LAYERS}
    for name, layer in late.items():
        raise HotswapError(
            f"--tiny keeps the first {MOST_LAYERS} layers at most, and {name} has weights from layer "
            f"{layer} on only; verify the model itself"
        )
    needed = max([LAYERS, *of_kinds, *(layer + 1 for layer in first_layers.values())])
    return min(needed, MOST_LAYERS)


def first_layer(modules: Iterable[str]) -> int:
    """The first layer that modules lie in; those that lie in none are in the first."""
    numbers = (re.search(r"\.(\d+)\.", f".{name}.") for name in modules)
    return min((int(found[1]) if found else 0 for found in numbers), default=0)


def write_tiny(base: str, folder: Path, first_layers: Mapping[str, int]) -> tuple[nn.Module, str]:
    """Write the small copy with random weights, and the tokenizer of the whole; say what was cut.

    Raises HotswapError for a model whose config is not cut by this rule.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False)
    fields = config.to_dict()
    layers = layers_needed(fields, first_layers)
    name = (config.architectures or ["a model"])[0]
    cls = getattr(transformers, name, None)
    try:
        small = type(config).from_dict(shrink(fields, layers))
        model: Any = cls(small) if cls else transformers.AutoModel.from_config(small)
        draw(model)
        default_inputs(model.eval())
    except Exception as error:  # of any model's code
        said = " ".join(str(error).split())[:300]
        raise HotswapError(
            f"--tiny: {name} is not cut by its rule of sizes ({said}); verify the model itself"
        ) from error
    model.to(getattr(config, "dtype", None) or torch.float32).save_pretrained(folder)
    if Path(base).is_dir():
        for file in (Path(base, kept) for kept in (*TOKENIZERS, "special_tokens_map.json")):
            if file.is_file():
                shutil.copy(file, folder)
    return model, f"{name}, {_told(config, small)}"


@torch.no_grad()
def draw(model: nn.Module) -> None:
    """Draw weights under which adapters show: as wide as their inputs ask for."""
    generator = torch.Generator().manual_seed(_SEED)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)


def _told(whole: Any, small: Any) -> str:
    whole, small = whole.get_text_config(), small.get_text_config()
    said = []
    for keys, what in ((_LAYERS, "layers"), (_WIDTHS, "width")):
        key = next((key for key in keys if isinstance(getattr(whole, key, None), int)), None)
        if key is not None:
            said.append(f"{what} {getattr(small, key)} of {getattr(whole, key)}")
    return ", ".join([*said, "random weights"])
