"""Engines whose knobs do not follow a swap: scale, disable, save."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hotswap.adapters.spec import AdapterSpec
from pytest_hotswap.adapters.derived import widen_adapter
from tests.mutants.registry import breaks, scale_all
from tests.mutants.subject import Engine


@breaks("knobs-follow")
class ScaleOfTheFirstAdapter(Engine):
    """set_scale multiplies the alpha over rank of the adapter that was loaded first."""

    def set_scale(self, model: Any, scale: float) -> None:
        scale_all(self, model, lambda *_: scale * 1.0)


@breaks("knobs-follow")
class ScaleSkipsEmbeddings(Engine):
    """set_scale leaves out a kind of layer."""

    def set_scale(self, model: Any, scale: float) -> None:
        layer = self.layers(model)["embed"]
        kept = float(layer.scaling[self.adapter_name])
        super().set_scale(model, scale)
        layer.scaling[self.adapter_name] = kept


@breaks("knobs-follow")
class DisablingDoesNothing(Engine):
    """The adapter has its effect while it is disabled."""

    def disabled(self, model: Any) -> Any:
        return contextlib.nullcontext()


@breaks("knobs-follow")
class NotEnabledAgain(Engine):
    """Leaving the scope does not bring the adapter back."""

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:  # type: ignore[override]
        scale_all(self, model, lambda *_: 0.0)
        yield


@breaks("knobs-follow")
class SavesTheFirstConfig(Engine):
    """The saved config is that of the adapter that was loaded first."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        path = folder / "adapter_config.json"
        fields = json.loads(path.read_text())
        fields |= {"lora_alpha": 77, "alpha_pattern": {}}
        path.write_text(json.dumps(fields))


@breaks("knobs-follow")
class SavesPadded(Engine):
    """The saved tensors have the target rank, the config the adapter's own."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        spec = AdapterSpec.read(folder)
        wide = folder.with_name(f"{folder.name}-wide")
        config = (folder / "adapter_config.json").read_text()
        widen_adapter(folder, wide, {n: m.rank + 2 for n, m in spec.modules.items()})
        (folder / "adapter_model.safetensors").write_bytes(
            (wide / "adapter_model.safetensors").read_bytes()
        )
        (folder / "adapter_config.json").write_text(config)


@breaks("knobs-follow", own=True)
class FirstIsSavedForAll(Engine):
    """Before the first swap the saved config is for every module that the model has room for."""

    def load(self, base: Any, adapter: Path) -> Any:
        model = super().load(base, adapter)
        model.swapped = False
        return model

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.models(model)[0].swapped = True

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        (inner,) = self.models(model)
        if not inner.swapped:
            path, modules = folder / "adapter_config.json", sorted(self.layers(inner))
            fields = json.loads(path.read_text()) | {"target_modules": modules}
            path.write_text(json.dumps(fields))
