"""Engines that go wrong at odd moments, or touch what is not the adapter."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import hotswap
from hotswap.adapters.spec import AdapterSpec
from hotswap.engine.layout.slots import slots
from tests.mutants.registry import breaks, scale_all
from tests.mutants.subject import Engine


class Afterwards(Engine):
    """It does something more after each swap."""

    def more(self, model: Any, adapter: Path | None) -> None:
        raise NotImplementedError

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.more(model, adapter)


@breaks("swap-isolated")
class DrawsRandomNumbers(Afterwards):
    """Weights are initialised before they are overwritten."""

    def more(self, model: Any, adapter: Path | None) -> None:
        torch.randn(3)


@breaks("swap-isolated")
class SeedsPython(Afterwards):
    """A seed is set for the sake of reproducibility."""

    def more(self, model: Any, adapter: Path | None) -> None:
        random.seed(0)


@breaks("swap-isolated")
class TrainMode(Afterwards):
    """A layer is left in train mode."""

    def more(self, model: Any, adapter: Path | None) -> None:
        layer = self.layers(model)["first"]
        layer.training = not layer.training


@breaks("swap-isolated", own=True)
class TouchesTheFile(Afterwards):
    """The adapter's config is written back, sorted."""

    def __init__(self, folder: Path) -> None:
        own = Path(tempfile.mkdtemp(dir=folder))  # others read these files too
        shutil.copytree(folder / self.fleet, own / self.fleet)
        super().__init__(own)

    def more(self, model: Any, adapter: Path | None) -> None:
        if adapter is not None:
            path = adapter / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))


@breaks("swap-isolated")
class ThreadsChanged(Afterwards):
    """Copies are to be fast, so the number of threads is raised each time."""

    def more(self, model: Any, adapter: Path | None) -> None:
        os.environ["HOTSWAP_SWAPS"] = str(int(os.environ.get("HOTSWAP_SWAPS", "0")) + 1)


@breaks("swap-isolated")
class HookLeft(Afterwards):
    """Each swap leaves a hook that does nothing."""

    def more(self, model: Any, adapter: Path | None) -> None:
        self.layers(model)["first"].register_state_dict_post_hook(lambda *_: None)


@breaks("swap-isolated")
class RecordsOfOthers(Afterwards):
    """The config of every adapter is that of the one in place."""

    def more(self, model: Any, adapter: Path | None) -> None:
        (inner,) = self.models(model)
        for name, config in inner.peft_config.items():
            if name != self.adapter_name:
                config.lora_alpha = inner.peft_config[self.adapter_name].lora_alpha + 1


@breaks("swap-isolated")
class OthersActive(Afterwards):
    """Every adapter of a layer becomes active."""

    def more(self, model: Any, adapter: Path | None) -> None:
        for layer in self.layers(model).values():
            if len(names := list(layer.lora_A) + list(layer.lora_embedding_A)) > 1:
                layer._active_adapter = names


@breaks("swap-forgets")
class KeepsEachAdapter(Afterwards):
    """What was swapped in is kept for ever, once for each swap."""

    kept_ones: list[Any] | None = None

    def more(self, model: Any, adapter: Path | None) -> None:
        self.kept_ones = [*(self.kept_ones or []), *self.kept(model)]


@breaks("swap-forgets")
class HistoryOfScalings(Afterwards):
    """The scalings of the past are written down on the way."""

    past: list[Any] | None = None

    def more(self, model: Any, adapter: Path | None) -> None:
        self.past = self.past or []
        self.past += [la.scaling["default"].clone() for la in self.layers(model).values()]


@breaks("swap-forgets")
class RowsOfALeftOutModule(Engine):
    """lora_A of a module that is not targeted keeps the last adapter's rows."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        super().swap(model, adapter)
        targets = AdapterSpec.read(adapter).modules if adapter is not None else {}
        for module, layer in self.layers(model).items():
            for slot in slots(layer, self.adapter_name):
                tensor = old.pop(0)
                if module not in targets and slot.axis == 0:
                    slot.tensor.data.copy_(tensor)


@breaks("swap-forgets")
class ScalingOfALeftOutModule(Engine):
    """The scaling of a module that is not targeted stays; its lora_B is zero."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        scales = {key: float(la.scaling["default"]) for key, la in self.layers(model).items()}
        super().swap(model, adapter)
        targets = AdapterSpec.read(adapter).modules if adapter is not None else {}
        for key, layer in self.layers(model).items():
            if key not in targets:
                layer.scaling["default"] = scales[key]


@breaks("swap-atomic")
class CopiesWithoutUndoing(Engine):
    """Tensors are cleared one by one first; an interrupt leaves them so."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        if adapter is not None and AdapterSpec.read(adapter).findings:
            return super().swap(model, adapter)
        old = self.kept(model)
        for slot in self.slots(model):
            slot.tensor.data.zero_()
        try:
            super().swap(model, adapter)
        except Exception:
            for slot, tensor in zip(self.slots(model), old, strict=True):
                slot.tensor.data.copy_(tensor)
            raise
        return None


@breaks("swap-atomic")
class BusyAfterAnInterrupt(Engine):
    """A flag says that a swap is under way, and an interrupt leaves it."""

    busy = False

    def swap(self, model: Any, adapter: Path | None) -> None:
        if self.busy:
            raise RuntimeError("a swap is under way")
        self.busy = True
        try:
            super().swap(model, adapter)
        except Exception:
            self.busy = False
            raise
        self.busy = False


@breaks("swap-atomic")
class ScalingsFirst(Engine):
    """The scalings become zero while the weights are copied; only errors bring them back."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = {key: float(la.scaling["default"]) for key, la in self.layers(model).items()}
        scale_all(self, model, lambda *_: 0.0)
        try:
            super().swap(model, adapter)
        except Exception:
            for key, layer in self.layers(model).items():
                layer.scaling["default"] = old[key]
            raise


@breaks("knobs-follow")
class EnabledIsTheOldOne(Engine):
    """What was in place when it was disabled comes back when it is enabled."""

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:  # type: ignore[override]
        old = self.kept(model)
        with super().disabled(model):
            yield
        for slot, tensor in zip(self.slots(model), old, strict=True):
            slot.tensor.data.copy_(tensor)


@breaks("knobs-follow")
class SwapEnables(Engine):
    """A swap enables the adapter."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in self.layers(model).values():
            layer._disable_adapters = False


@breaks("knobs-follow")
class SavesAtRankTwo(Engine):
    """A save cuts narrow adapters to an even rank."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        path = folder / "adapter_config.json"
        fields = json.loads(path.read_text())
        if fields["r"] == 1:
            path.write_text(json.dumps(fields | {"lora_alpha": fields["lora_alpha"] * 2}))


@breaks("knobs-follow")
class ScaleOfFullRanks(Engine):
    """set_scale is right for adapters that are padded, and squares at the full rank."""

    def set_scale(self, model: Any, scale: float) -> None:
        full = all(layer.r["default"] == 8 for layer in self.layers(model).values())
        super().set_scale(model, scale * scale if full else scale)


@breaks("swap-has-effect", own=True)
class CachesOutputs(Engine):
    """An answer that was given once for an adapter is given again."""

    answers: dict[Any, Any] | None = None
    current: Any = None

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.current = adapter

    def run(self, model: Any, inputs: Any) -> Any:
        self.answers = self.answers if self.answers is not None else {}
        key = (id(model), self.current)
        if key not in self.answers:
            self.answers[key] = super().run(model, inputs)
        return self.answers[key]


@breaks("preparation-preserves", own=True)
class RsLoraFirst(Engine):
    """Preparing divides by the rank although the first adapter says its root."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        rslora = model.peft_config["default"].use_rslora
        super().prepare(model, plan)
        if rslora:
            scale_all(self, model, lambda layer, name: layer.lora_alpha[name] / layer.r[name])


@breaks("preparation-preserves", own=True)
class SubsetFirst(Engine):
    """An adapter with some of the modules, loaded first, is prepared at another alpha."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        few = len(AdapterSpec.read(self.first).modules) < len(plan.modules)
        super().prepare(model, plan)
        if few:
            scale_all(self, model, lambda layer, name: float(layer.scaling[name]) * 2)

    def load(self, base: Any, adapter: Path) -> Any:
        self.first = adapter
        return super().load(base, adapter)


@breaks("preparation-preserves", own=True)
class PatternsFirst(Engine):
    """The config's alpha is that of each module when the first adapter is prepared."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        config = model.peft_config["default"]
        patterns = bool(config.alpha_pattern) and len(self.layers(model)) == len(plan.modules)
        super().prepare(model, plan)
        if patterns:
            scale_all(self, model, lambda layer, name: config.lora_alpha / layer.r[name])
