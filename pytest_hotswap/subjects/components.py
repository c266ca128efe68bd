"""Components: a pipeline of diffusers, or one of its models, as one module."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hotswap.adapters.files import DIFFUSERS_WEIGHTS as WEIGHTS
from hotswap.adapters.formats.diffusers import COMPONENTS
from hotswap.errors import HotswapError
from pytest_hotswap.subjects.diffusers_files import (
    component_of,
    file_of,
    names_components,
    translate,
)

_SEED = 0


class Components(nn.Module):
    """The models of a pipeline that LoRA files may have weights for, or one model; a call is the whole's."""

    def __init__(self, whole: Any, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._whole = (whole,)  # in a tuple, so that a model is not a child twice
        for name, part in parts.items():
            self.add_module(name, part.eval())

    @classmethod
    def of(cls, whole: Any) -> Components:
        """Those of a pipeline, or a model under the name that pipelines give it."""
        if isinstance(whole, nn.Module):
            return cls(whole, {component_of(name for name, _ in whole.named_children()): whole})
        found = {name: whole.components.get(name) for name in COMPONENTS}
        return cls(whole, {k: part for k, part in found.items() if isinstance(part, nn.Module)})

    @property
    def whole(self) -> Any:
        """The pipeline or the model."""
        return self._whole[0]

    @property
    def model(self) -> Any:
        """The model, or None for a pipeline."""
        return self.whole if isinstance(self.whole, nn.Module) else None

    def forward(self, **inputs: Any) -> Any:
        """Call the whole; a pipeline begins with noise of a fixed seed."""
        if self.model is not None:
            return self.model(**inputs)
        noise = torch.Generator().manual_seed(_SEED)
        return self.whole(**inputs, generator=noise, return_dict=False)[0]

    def adapted(self) -> Iterator[Any]:
        """The components that an adapter was loaded into."""
        return (part for part in self.children() if getattr(part, "peft_config", None))

    def load(self, adapter: Path, **options: Any) -> None:
        """Load an adapter into the whole by diffusers' own method."""
        file = file_of(adapter)
        if self.model is None:
            self.whole.load_lora_weights(str(file), **options)
            return
        (name,) = self._modules
        prefix = name if names_components(file) else None
        # without use_safetensors the file's metadata, alpha among it, is not read
        self.model.load_lora_adapter(str(file), prefix=prefix, use_safetensors=True, **options)

    def save(self, folder: Path, *, adapter_name: str) -> None:
        """Save the adapter by diffusers' own method, and translate the file into a PEFT folder."""
        from peft.utils import get_peft_model_state_dict

        with tempfile.TemporaryDirectory() as saved:
            if self.model is not None:
                self.model.save_lora_adapter(saved, adapter_name=adapter_name)
            else:
                layers: dict[str, Any] = {}
                for name, part in self.named_children():
                    config = getattr(part, "peft_config", {}).get(adapter_name)
                    if config is not None:
                        try:
                            state = get_peft_model_state_dict(part, adapter_name=adapter_name)
                        except HotswapError:  # what is in place has nothing of this component
                            continue
                        layers[f"{name}_lora_layers"] = state
                        layers[f"{name}_lora_adapter_metadata"] = config.to_dict()
                self.whole.save_lora_weights(saved, **layers)
            translate(Path(saved) / WEIGHTS, folder)
