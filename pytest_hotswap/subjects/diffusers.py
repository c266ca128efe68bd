"""DiffusersSubject, a draft: the LoRA methods of diffusers, of a whole pipeline or of one model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_hotswap.subjects.base import Subject

if TYPE_CHECKING:
    from hotswap.adapters.plan import SwapPlan


class DiffusersSubject(Subject):
    """``enable_lora_hotswap`` and ``load_lora_weights(hotswap=True)``.

    ``base_model()`` returns a pipeline, or a model with ``load_lora_adapter``. For a pipeline define
    ``run`` too: what is called, with which inputs, is the deployment's business.
    """

    unsupported = {  # noqa: RUF012
        "swap-has-effect[none]": "diffusers cannot swap to the base model",
        "preparation-idempotent": "enable_lora_hotswap() is called before the first adapter is loaded",
        "prepare-before-compile": "enable_lora_hotswap() is called before the first adapter is loaded",
        "preparation-preserves": "enable_lora_hotswap() is called before the first adapter is loaded",
    }
    target_rank = 64

    def load(self, base: Any, adapter: Path) -> Any:
        base.enable_lora_hotswap(target_rank=self.target_rank)
        self._load(base, adapter, adapter_name=self.adapter_name)
        return base

    def prepare(self, model: Any, plan: SwapPlan) -> None:
        """Nothing is left to do: the first load has prepared the model."""

    def compile(self, model: Any) -> Any:
        """Compile the denoiser of a pipeline, in place, or the model."""
        for part in self.denoisers(model):
            part.compile(backend=self.backend)
        return model

    def swap(self, model: Any, adapter: Path | None) -> None:
        self._load(model, adapter, adapter_name=self.adapter_name, hotswap=True)

    def add(self, model: Any, adapter: Path, name: str) -> None:
        self._load(model, adapter, adapter_name=name)
        for part in self.models(model):
            part.set_adapter(self.adapter_name)

    def remove(self, model: Any, name: str) -> None:
        for part in self.models(model):
            part.delete_adapters(name)

    def run(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        import torch

        if not isinstance(model, torch.nn.Module):
            raise NotImplementedError(f"{type(self).__name__}.run: call the pipeline's parts here")
        return super().run(model, inputs)

    def models(self, model: Any) -> list[Any]:
        """The model itself, or a pipeline's components with LoRA layers."""
        import torch

        from hotswap.engine.layers import lora_layers, unwrap

        if isinstance(model, torch.nn.Module):
            return [unwrap(model)]
        parts = [unwrap(p) for p in model.components.values() if isinstance(p, torch.nn.Module)]
        return [part for part in parts if lora_layers(part)]

    def denoisers(self, model: Any) -> list[Any]:
        """What is compiled: a pipeline's unet or transformer."""
        import torch

        if isinstance(model, torch.nn.Module):
            return [model]
        parts = [getattr(model, name, None) for name in ("unet", "transformer")]
        return [part for part in parts if part is not None]

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        parts = self.models(model)
        for part in parts:
            part.disable_adapters()
        try:
            yield
        finally:
            for part in parts:
                part.enable_adapters()

    def _load(self, model: Any, adapter: Path | None, **options: Any) -> None:
        if hasattr(model, "load_lora_weights"):
            model.load_lora_weights(str(adapter), **options)
        else:
            model.load_lora_adapter(str(adapter), prefix=None, **options)
