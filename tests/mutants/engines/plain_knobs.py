"""Engines of PEFT and torch alone whose knobs speak of another adapter, or change the model."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from tests.mutants.plain import Given, Plain, write
from tests.mutants.registry import breaks


@breaks("knobs-follow")
class ScalesMultiply(Plain):
    """A factor is multiplied to what is there."""

    @torch.no_grad()
    def set_scale(self, model: Any, scale: float) -> None:
        for _, layer in self.found(model):
            layer.scaling[self.adapter_name].mul_(scale)


@breaks("knobs-follow")
class NoneIsAScale(Plain):
    """The base model is a scaling of zero, which the next set_scale() makes another."""

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        found = super().staged(model, given)
        return found if given.tensors else [pair for pair in found if pair[0].ndim == 0]

    def record(self, model: Any, given: Given) -> None:
        if given.tensors:
            super().record(model, given)


@breaks("knobs-follow")
class ScaleOutlivesASwap(Plain):
    """A user's factor applies to the next adapter too."""

    factor = 1.0

    def set_scale(self, model: Any, scale: float) -> None:
        self.factor = scale
        super().set_scale(model, scale)

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        found = super().staged(model, given)
        return [(p, value if p.ndim else value * self.factor) for p, value in found]

    def restored(self, model: Any) -> None:
        self.factor = 1.0


@breaks("knobs-follow", own=True)
class LastScalingIsANumber(Plain):
    """set_scale() leaves a number in the last layer."""

    def set_scale(self, model: Any, scale: float) -> None:
        super().set_scale(model, scale)
        layer = [layer for _, layer in self.found(model)][-1]
        layer.scaling[self.adapter_name] = float(layer.scaling[self.adapter_name])


@breaks("knobs-follow", own=True)
class ScaleIsGuardedOn(Plain):
    """The factor is an attribute that the forward reads."""

    def base_model(self) -> Any:
        model = super().base_model()
        model.factor = 1.0
        model.register_forward_hook(lambda module, _, output: output + 0 * module.factor)
        return model

    def set_scale(self, model: Any, scale: float) -> None:
        super().set_scale(model, scale)
        self.models(model)[0].base_model.model.factor = scale


@breaks("knobs-follow")
class EnabledUnlessItFails(Plain):
    """A ``finally`` is missing: after an error the adapter stays disabled."""

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:  # type: ignore[override]
        layers = [layer for _, layer in self.found(model)]
        for layer in layers:
            layer._disable_adapters = True
        yield
        for layer in layers:
            layer._disable_adapters = False


@breaks("knobs-follow")
class DisabledByScalings(Plain):
    """Disabling keeps the scalings and writes them back, whatever was swapped in meanwhile."""

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:  # type: ignore[override]
        old = [(layer, float(layer.scaling[self.adapter_name])) for _, layer in self.found(model)]
        for layer, _ in old:
            layer.scaling[self.adapter_name].fill_(0.0)
        try:
            yield
        finally:
            for layer, value in old:
                layer.scaling[self.adapter_name].fill_(value)


@breaks("knobs-follow")
class NoSwapWhileDisabled(Plain):
    """A swap while the adapter is disabled is passed over."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        if not next(self.found(model))[1]._disable_adapters:
            super().swap(model, adapter)


@breaks("knobs-follow")
class OneLayerDisabled(Plain):
    """The first layer is disabled."""

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:  # type: ignore[override]
        _, layer = next(self.found(model))
        layer._disable_adapters = True
        try:
            yield
        finally:
            layer._disable_adapters = False


@breaks("knobs-follow")
class SavesWhatIsPadded(Plain):
    """Tensors are saved at the target rank under a config of the adapter's own."""

    def trimmed(self, layer: LoraLayer, part: str, tensor: Tensor, rank: int) -> Tensor:
        return tensor.contiguous()


@breaks("knobs-follow")
class SavesTheFirstRows(Plain):
    """lora_A of a grouped convolution is cut as one block."""

    def trimmed(self, layer: LoraLayer, part: str, tensor: Tensor, rank: int) -> Tensor:
        if "A" in part:
            return tensor[:rank].contiguous()
        return super().trimmed(layer, part, tensor, rank)


@breaks("knobs-follow")
class SavesAtTheTarget(Plain):
    """The saved alpha is one for the target rank."""

    def saved_config(self, given: Given) -> dict[str, Any]:
        config = given.config
        return {**config, "lora_alpha": config["lora_alpha"] * 8 / config["r"]}


@breaks("knobs-follow")
class SavesWithoutAlphas(Plain):
    """The saved config has no pattern of alphas."""

    def saved_config(self, given: Given) -> dict[str, Any]:
        return {**given.config, "alpha_pattern": {}}


@breaks("knobs-follow")
class SavesWithoutRsLora(Plain):
    """The saved config does not say rsLoRA."""

    def saved_config(self, given: Given) -> dict[str, Any]:
        return {**given.config, "use_rslora": False}


@breaks("knobs-follow")
class SavesAnother(Plain):
    """Whatever is in place, the first adapter of the fleet is saved."""

    def save(self, model: Any, folder: Path) -> None:
        shutil.copytree(self.adapter_paths()[0], folder)


@breaks("knobs-follow")
class SavingTrims(Plain):
    """Saving cuts the tensors in the model; the next swap pads them again."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        given = self.in_place(model)
        for path, layer in self.found(model):
            if (module := self.name_of(path)) in given.tensors:
                for part, tensor in self.parts(layer, self.adapter_name).items():
                    tensor.data = self.trimmed(
                        layer, part, tensor.data, given.ranks[module]
                    ).clone()


@breaks("knobs-follow")
class SavingRounds(Plain):
    """What is saved in float16 to be small is rounded in the model."""

    @torch.no_grad()
    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        for _, layer in self.found(model):
            for tensor in self.parts(layer, self.adapter_name).values():
                tensor.copy_(tensor.half().float())


@breaks("knobs-follow")
class ScaleWaitsForAnAdapter(Plain):
    """A factor that is set without an adapter is kept, and multiplied to the next one that is set."""

    waiting = 1.0

    def set_scale(self, model: Any, scale: float) -> None:
        if not self.in_place(model).tensors:
            self.waiting = scale
            return
        super().set_scale(model, scale * self.waiting)
        self.waiting = 1.0


@breaks("knobs-follow")
class ScaleBelowZeroIsZero(Plain):
    """A factor below zero is taken for none."""

    def set_scale(self, model: Any, scale: float) -> None:
        super().set_scale(model, max(scale, 0.0))


@breaks("knobs-follow")
class ScaleIsWhole(Plain):
    """A factor above one is rounded."""

    def set_scale(self, model: Any, scale: float) -> None:
        super().set_scale(model, round(scale) if scale > 1 else scale)


@breaks("knobs-follow")
class FirstSwapWhileDisabledCounts(Plain):
    """Swaps while the adapter is disabled wait for it to be enabled; of two the first one stays."""

    waiting: tuple[Path | None] | None = None
    off = False

    def swap(self, model: Any, adapter: Path | None) -> None:
        if self.off:
            self.waiting = self.waiting or (adapter,)
        else:
            super().swap(model, adapter)

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:  # type: ignore[override]
        self.off, self.waiting = True, None
        try:
            with super().disabled(model):
                yield
        finally:
            self.off = False
            if self.waiting is not None:
                super().swap(model, *self.waiting)


@breaks("knobs-follow")
class ScaleByRatio(Plain):
    """A factor is multiplied over the one before, which may be zero."""

    factor = 1.0

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.factor = 1.0

    @torch.no_grad()
    def set_scale(self, model: Any, scale: float) -> None:
        for _, layer in self.found(model):
            layer.scaling[self.adapter_name].mul_(scale).div_(self.factor)
        self.factor = scale


@breaks("knobs-follow", own=True)
class ScalingsReplacedByAFactor(Plain):
    """A factor puts other tensors in the place of the scalings."""

    def set_scale(self, model: Any, scale: float) -> None:
        super().set_scale(model, scale)
        for _, layer in self.found(model):
            layer.scaling[self.adapter_name] = layer.scaling[self.adapter_name].clone()


@breaks("knobs-follow")
class SavesNothingWhileDisabled(Plain):
    """What is saved while the adapter is disabled is what it adds then: zeros."""

    def trimmed(self, layer: LoraLayer, part: str, tensor: Tensor, rank: int) -> Tensor:
        own = super().trimmed(layer, part, tensor, rank)
        return own * 0 if layer._disable_adapters else own


@breaks("knobs-follow")
class SavingEndsTheFactor(Plain):
    """Saving sets the factor to one, so that scalings are those of the file."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        self.set_scale(model, 1.0)


@breaks("knobs-follow", own=True)
class FirstIsSavedAsPlanned(Plain):
    """Before the first swap a save has the config that the model was loaded under, not the adapter's."""

    def load(self, base: Any, adapter: Path) -> Any:
        model = super().load(base, adapter)
        model.in_place.config = {**model.in_place.config, "lora_alpha": 9}
        return model


@breaks("knobs-follow", own=True)
class FirstIsScaledFromOne(Plain):
    """Before the first swap a factor is the scaling, as if the one of the adapter were one."""

    def load(self, base: Any, adapter: Path) -> Any:
        model = super().load(base, adapter)
        model.in_place.scalings = dict.fromkeys(model.in_place.scalings, 1.0)
        return model


@breaks("knobs-follow")
class NextIsOffAfterAnError(Plain):
    """After an error while the adapter was disabled it is enabled again, and the next one is not."""

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:  # type: ignore[override]
        (inner,) = self.models(model)
        inner.next_is_off = True
        with super().disabled(model):
            yield
        inner.next_is_off = False  # not in a finally

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        off = any(layer._disable_adapters for _, layer in self.found(model))
        if getattr(self.models(model)[0], "next_is_off", False) and not off:
            for _, layer in self.found(model):
                layer._disable_adapters = True


@breaks("knobs-follow")
class SavesUnderTheFactor(Plain):
    """A user's factor is multiplied into what is saved."""

    def save(self, model: Any, folder: Path) -> None:
        given = self.in_place(model)
        path, layer = next(iter(self.found(model)))
        factor = float(layer.scaling[self.adapter_name]) / given.scalings.get(
            self.name_of(path), 1.0
        )
        alphas = {k: v * factor for k, v in (given.config.get("alpha_pattern") or {}).items()}
        saved = {"lora_alpha": given.config["lora_alpha"] * factor, "alpha_pattern": alphas}
        super().save(model, folder)
        config = folder / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **saved}))


@breaks("knobs-follow")
class FactorComesBack(Plain):
    """A factor is kept with its adapter, and is there again when that one comes back."""

    def set_scale(self, model: Any, scale: float) -> None:
        super().set_scale(model, scale)
        (inner,) = self.models(model)
        kept = getattr(inner, "factors", {})
        inner.factors = {**kept, json.dumps(self.in_place(model).config, sort_keys=True): scale}

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        factors = getattr(self.models(model)[0], "factors", {})
        self.set_scale(model, factors.get(json.dumps(given.config, sort_keys=True), 1.0))


@breaks("knobs-follow")
class FactorOfOneBuffer(Plain):
    """Of two buffers that take turns the factor of one is copied into the other, and not the other way."""

    def set_scale(self, model: Any, scale: float) -> None:
        super().set_scale(model, scale)
        (inner,) = self.models(model)
        inner.factor = scale

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        (inner,) = self.models(model)
        inner.swaps = getattr(inner, "swaps", 0) + 1
        self.set_scale(model, getattr(inner, "factor", 1.0) if inner.swaps % 2 else 1.0)


@breaks("knobs-follow")
class SavesTheLastRead(Plain):
    """What is saved is the adapter that was read last, and what was read once is not read again."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        (inner,) = self.models(model)
        known, key = getattr(inner, "known", ()), json.dumps(given.config, sort_keys=True)
        if given.tensors and key not in known:
            inner.known, inner.last = (*known, key), given

    def save(self, model: Any, folder: Path) -> None:
        (inner,) = self.models(model)
        last = getattr(inner, "last", None)
        if last is None or last.config == inner.in_place.config:
            super().save(model, folder)
        else:
            write(folder, last.tensors, last.config)


@breaks("knobs-follow")
class SavesEveryModule(Plain):
    """Every layer is saved, also those that the adapter has not and its config does not name."""

    def save(self, model: Any, folder: Path) -> None:
        (inner,) = self.models(model)
        given = inner.in_place
        names = [self.name_of(path) for path, _ in self.found(model)]
        inner.in_place = Given(
            given.config,
            {**{name: {} for name in names}, **given.tensors},
            {**dict.fromkeys(names, 2), **given.ranks},
            given.scalings,
        )
        super().save(model, folder)
        inner.in_place = given
