"""Files of other methods and programs, which are whole and no LoRA that can be swapped: each by its name."""

from __future__ import annotations

import re
from typing import NoReturn

from hotswap.adapters.files import unreadable
from hotswap.adapters.formats.component import Component
from hotswap.adapters.header import FileLayout
from hotswap.adapters.texts import Texts

_RETRAIN = "train a LoRA adapter, or merge this one into its base model"
_KINDS = (
    (r"[._]hada_w\d", "a LoHa adapter (LyCORIS)", _RETRAIN),
    (r"[._]lokr_w\d", "a LoKr adapter (LyCORIS)", _RETRAIN),
    (r"[._](oft_(blocks|diag|R)|boft_\w)", "an OFT adapter", _RETRAIN),
    (r"(?<![._]lora)[._](ia3_l|lora_edit)\b", "an IA3 adapter", _RETRAIN),
    (
        r"\.lora_[ab]$",
        "a LoRA of mlx-lm, whose A and B are transposed",
        "convert it to PEFT's format: transpose both and write adapter_config.json with alpha = scale * rank",
    ),
    (
        r"\.lora_[ab]\.weight$",
        "a LoRA of torchtune",
        "save it for PEFT: output_dir/epoch_N/adapter_model.safetensors beside adapter_config.json",
    ),
    (
        r"\.adapter\.linear_(in|out)\.|\.adapter\.(linear|lora)",
        "a LoRA of Megatron or NeMo",
        "export it for PEFT with the program that trained it",
    ),
)


def components(texts: Texts, layout: FileLayout) -> dict[str, Component] | None:
    """Raise UnreadableAdapterError (HSW101) for tensors of another kind, or of a whole model."""
    if texts.config is not None or not (_kind(layout) or _is_model(layout)):
        return None
    refuse(texts.weights, layout)


def refuse(where: str, layout: FileLayout) -> NoReturn:
    """Raise UnreadableAdapterError (HSW101) with the kind of a file."""
    what, remedy = _kind(layout) or (
        "the weights of a whole model, no adapter",
        "pass the adapter's file; a model is loaded, not swapped",
    )
    raise unreadable(where, "HSW101", f"is {what}", remedy)


def _kind(layout: FileLayout) -> tuple[str, str] | None:
    for pattern, what, remedy in _KINDS:
        if any(re.search(pattern, name) for name in layout.tensors):
            return what, remedy
    return None


def _is_model(layout: FileLayout) -> bool:
    names = layout.tensors
    return bool(names) and all(
        re.search(r"\.(weight|bias|scale|running_\w+)$", name) and "lora" not in name.lower()
        for name in names
        if not name.endswith((".down.weight", ".up.weight"))
    )
