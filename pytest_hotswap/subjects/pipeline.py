"""PipelineSubject: hotswap's own engine on a pipeline of diffusers."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hotswap
from hotswap.adapters.config import CONFIG
from hotswap.engine.layout.slots import lora_layers
from hotswap.errors import AlreadyCompiledError
from pytest_hotswap.subjects.base import usage_error
from pytest_hotswap.subjects.components import Components
from pytest_hotswap.subjects.diffusers import DiffusersSubject
from pytest_hotswap.subjects.diffusers_files import file_of

_SMALL = {
    "num_inference_steps": 1,
    "height": 64,
    "width": 64,
    "num_frames": 5,
    "output_type": "latent",
}
"""Arguments of a call that do not change which code runs, but for how long."""


class PipelineSubject(DiffusersSubject):
    """``hotswap.prepare(pipe)`` and ``hotswap.swap(pipe)``, text encoders included.

    Define ``pipeline()``; by default it is read from ``base``.
    """

    unsupported = {}  # noqa: RUF012

    def pipeline(self) -> Any:
        made = super().pipeline()
        made.set_progress_bar_config(disable=True)
        if not hasattr(made, "load_lora_weights"):
            raise usage_error(
                f"diffusers loads no LoRA into a {type(made).__name__}, which has no load_lora_weights; "
                "give a --subject that puts adapters into its model"
            )
        return made

    def inputs(self) -> Mapping[str, Any]:
        """The arguments of a call: one step to a small image, from noise of a fixed seed."""
        takes = inspect.signature(type(self.pipeline()).__call__).parameters
        made = {name: value for name, value in ({"prompt": "a"} | _SMALL).items() if name in takes}
        said = ", ".join(f"{name} {value}" for name, value in made.items())
        self.inputs_told = f"made for any pipeline ({said}); inputs() of a --subject gives your own"
        return made

    def load(self, base: Any, adapter: Path) -> Any:
        """diffusers' load, or over the fleet's union of modules when adapters target different ones."""
        plan = self.plan or hotswap.plan(self.adapter_paths())
        if hotswap.AdapterSpec.read(adapter).modules.keys() >= plan.modules.keys():
            base.load(adapter, adapter_name=self.adapter_name)
        else:
            hotswap.load(base.whole, plan, _given(adapter), adapter_name=self.adapter_name)
        return base

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        """Prepare the pipeline; the module around it that is under test must not be compiled either."""
        compiled = {"_compiled_call_impl", "forward"} & {k for k, v in vars(model).items() if v}
        if compiled or not isinstance(model, Components):
            raise AlreadyCompiledError("the pipeline's call is compiled; prepare it before")
        hotswap.prepare(model.whole, plan=plan)

    def swap(self, model: Any, adapter: Path | None) -> None:
        given = None if adapter is None else _given(adapter)
        hotswap.swap(model.whole, given, adapter_name=self.adapter_name)

    def add(self, model: Any, adapter: Path, name: str) -> None:
        model.load(adapter, adapter_name=name)
        for layer in lora_layers(model, self.adapter_name).values():
            layer.set_adapter(self.adapter_name)

    def set_scale(self, model: Any, scale: float) -> None:
        hotswap.set_scale(model.whole, scale, adapter_name=self.adapter_name)


def _given(adapter: Path) -> Path:
    """The file of diffusers, in a folder without a config of PEFT: beside one it would be read as PEFT's."""
    if not (adapter / CONFIG).is_file():
        return adapter
    file = file_of(adapter)
    if not (file.parent / CONFIG).is_file():
        return file
    alone = file.parent / "diffusers" / file.name
    alone.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, alone)
    return alone
