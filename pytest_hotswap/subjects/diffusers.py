"""DiffusersSubject: the LoRA methods of diffusers, of a whole pipeline or of one model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hotswap
from pytest_hotswap.subjects.base import Subject, usage_error


class DiffusersSubject(Subject):
    """``enable_lora_hotswap`` and ``load_lora_weights(hotswap=True)``, text encoders included.

    Define ``pipeline()``, which returns a pipeline or one model of diffusers; by default it is read
    from ``base``. ``inputs()`` are the arguments of its call, and ``adapters`` are files of diffusers.
    """

    companions = "none"  # they are folders of PEFT, and these files are of diffusers

    unsupported: Mapping[str, str] = {
        "swap-has-effect[none]": "diffusers cannot swap to the base model",
        "preparation-idempotent": "enable_lora_hotswap() is called before the first adapter is loaded",
        "prepare-before-compile": "enable_lora_hotswap() is called before the first adapter is loaded",
        "preparation-preserves": "enable_lora_hotswap() is called before the first adapter is loaded",
    }

    def pipeline(self) -> Any:
        """A fresh pipeline or model; two calls give equal ones."""
        if self.base is None:
            raise usage_error(
                f"{type(self).__name__} has no pipeline; define pipeline() or give --hotswap-base"
            )
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(self.base)

    def base_model(self) -> Any:
        """The pipeline as one module: its children are the models that LoRA files may have weights for."""
        from pytest_hotswap.subjects.components import Components

        return Components.of(self.pipeline())

    def inputs(self) -> Mapping[str, Any]:
        """The arguments of a call, by default those of a pipeline: one step from noise of a fixed seed."""
        return {"prompt": "a", "num_inference_steps": 1, "output_type": "latent"}

    def adapter_paths(self) -> list[Path]:
        """The adapters as PEFT folders over the components, which is what the laws derive others from."""
        from pytest_hotswap.subjects.diffusers_files import peft_folder

        return [peft_folder(path) for path in super().adapter_paths()]

    def load(self, base: Any, adapter: Path) -> Any:
        plan = self.plan or hotswap.plan(self.adapter_paths())
        base.whole.enable_lora_hotswap(target_rank=plan.target_rank)
        base.load(adapter, adapter_name=self.adapter_name)
        return base

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        """Nothing is left to do: the first load has prepared the model."""

    def compile(self, model: Any) -> Any:
        """Compile the denoisers in place; text encoders run once a call and stay as they are."""
        for name, part in _components(model).named_children():
            if not name.startswith("text_encoder"):
                part.compile(backend=self.backend)
        return model

    def swap(self, model: Any, adapter: Path | None) -> None:
        model.load(adapter, adapter_name=self.adapter_name, hotswap=True)

    def add(self, model: Any, adapter: Path, name: str) -> None:
        model.load(adapter, adapter_name=name)
        for part in model.adapted():
            part.set_adapter(self.adapter_name)

    def remove(self, model: Any, name: str) -> None:
        model.whole.delete_adapters(name)

    def set_scale(self, model: Any, scale: float) -> None:
        model.whole.set_adapters([self.adapter_name], [scale])

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        model.whole.disable_lora()
        try:
            yield
        finally:
            model.whole.enable_lora()

    def save(self, model: Any, folder: Path) -> None:
        model.save(folder, adapter_name=self.adapter_name)


def _components(model: Any) -> Any:
    """The components, also inside of the PeftModel that the laws compare with."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
