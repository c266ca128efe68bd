"""A LoRA file of diffusers: its components, each with a config from the metadata or from the tensors."""

from __future__ import annotations

from hotswap.adapters.config import parse_config
from hotswap.adapters.files import unreadable
from hotswap.adapters.formats.component import Component, implied_config
from hotswap.adapters.header import FileLayout, TensorInfo
from hotswap.adapters.texts import Texts

METADATA = "lora_adapter_metadata"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
COMPONENTS = ("transformer", "transformer_2", "unet", *_TEXT_ENCODERS)


def components(texts: Texts, layout: FileLayout) -> dict[str, Component] | None:
    """Config and tensors of each component, where no config stands beside tensors with PEFT's names.

    Without metadata alpha is the rank, as in diffusers. Raises UnreadableAdapterError (HSW003/004).
    """
    if texts.config is not None or not all(".lora_" in name for name in layout.tensors):
        return None
    if not layout.tensors:
        text, remedy = "the adapter has no LoRA weights", "save the adapter after it was trained"
        raise unreadable(texts.weights, "HSW004", text, remedy)
    told = layout.metadata.get(METADATA)
    fields = {} if told is None else parse_config(texts.weights, told)
    parts: dict[str, dict[str, TensorInfo]] = {}
    for name, info in layout.tensors.items():
        first, _, rest = name.partition(".")
        component = first if first in COMPONENTS else ""
        parts.setdefault(component, {})[rest if component else name] = info
    found = {}
    for component, tensors in parts.items():
        prefix = f"{component}." if component else ""
        own = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
        shapes = {name: info.shape for name, info in tensors.items()}
        config = {"peft_type": "LORA", **own} if own else implied_config(shapes)
        found[component] = Component(config, tensors)
    return found
