"""The faulty engines. Each is what somebody could write: one defect, named by its class."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hotswap
from hotswap.adapters.spec import AdapterSpec
from hotswap.engine.layout.slots import lora_layers, slots, unwrap
from pytest_hotswap.adapters.derived import widen_adapter
from tests.mutants.subject import Engine

ENGINES: list[type[Engine]] = []


def breaks(law: str, **more: Any) -> Any:
    """Register a faulty engine under the law that it breaks."""

    def register(engine: type[Engine]) -> type[Engine]:
        engine.law = law
        for name, value in more.items():
            setattr(engine, name, value)
        ENGINES.append(engine)
        return engine

    return register


def scale_all(engine: Engine, model: Any, number: Any) -> None:
    """Write every scaling by ``number(layer, adapter_name)``."""
    for layer in engine.layers(model).values():
        with torch.no_grad():
            layer.scaling[engine.adapter_name].fill_(number(layer, engine.adapter_name))


# ---- a trace of the last adapter remains ---------------------------------------------------------


@breaks("swap-forgets")
class StaleRows(Engine):
    """Rows beyond the new rank keep the last adapter's values."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        super().swap(model, adapter)
        ranks = [
            layer.r[self.adapter_name]
            for layer in self.layers(model).values()
            for _ in slots(layer, self.adapter_name)
        ]
        for slot, tensor, rank in zip(self.slots(model), old, ranks, strict=True):
            if slot.axis == 0 and slot.blocks == 1:
                slot.tensor.data[rank:] = tensor[rank:]


@breaks("swap-forgets")
class ScaleDrifts(Engine):
    """Each swap multiplies the scalings once more."""

    swaps = 0

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.swaps += 1
        factor = 1 + 1e-6 * self.swaps
        scale_all(self, model, lambda layer, name: float(layer.scaling[name]) * factor)


@breaks("swap-forgets")
class AddsTheDifference(Engine):
    """Weights are moved by new - old, which rounds, instead of being overwritten."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        super().swap(model, adapter)
        for slot, tensor in zip(self.slots(model), old, strict=True):
            slot.tensor.data.copy_(tensor + (slot.tensor.detach() - tensor) * (1 - 2**-22))


@breaks("swap-equals-load", fleet="features")
class BiasKept(Engine):
    """An adapter without a lora_B bias keeps the last one's."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        super().swap(model, adapter)
        for slot, tensor in zip(self.slots(model), old, strict=True):
            if slot.role == "bias" and not slot.tensor.any():
                slot.tensor.data.copy_(tensor)


@breaks("swap-equals-load", fleet="features")
class MagnitudeKept(Engine):
    """The first DoRA magnitude is never replaced."""

    first: list[torch.Tensor] | None = None

    def swap(self, model: Any, adapter: Path | None) -> None:
        self.first = self.first or self.kept(model)
        super().swap(model, adapter)
        for slot, tensor in zip(self.slots(model), self.first, strict=True):
            if slot.role == "magnitude":
                slot.tensor.data.copy_(tensor)


@breaks("swap-forgets")
class AlphaRecordAppends(Engine):
    """The record of alphas is only ever raised."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        name = self.adapter_name
        old = {key: layer.lora_alpha[name] for key, layer in self.layers(model).items()}
        super().swap(model, adapter)
        for key, layer in self.layers(model).items():
            layer.lora_alpha[name] = max(layer.lora_alpha[name], old[key])


# ---- not what a fresh load computes --------------------------------------------------------------


@breaks("swap-equals-load")
class AlphaOverTargetRank(Engine):
    """The scaling divides by the rank after padding."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        scale_all(self, model, lambda layer, name: layer.lora_alpha[name] / 8)


@breaks("swap-equals-load")
class AlphaKept(Engine):
    """Weights are swapped, the scaling stays that of the first adapter."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = {key: float(la.scaling["default"]) for key, la in self.layers(model).items()}
        super().swap(model, adapter)
        for key, layer in self.layers(model).items():
            layer.scaling["default"] = old[key]


@breaks("swap-equals-load")
class RsLoraIgnored(Engine):
    """alpha / r where the adapter says alpha / sqrt(r)."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        scale_all(self, model, lambda layer, name: layer.lora_alpha[name] / layer.r[name])


@breaks("swap-equals-load")
class RankPatternIgnored(Engine):
    """The config's r is the rank of every module."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if adapter is not None and not AdapterSpec.read(adapter).config.get("use_rslora"):
            rank = AdapterSpec.read(adapter).config["r"]
            scale_all(self, model, lambda layer, name: layer.lora_alpha[name] / rank)


@breaks("swap-equals-load")
class AlphaPatternIgnored(Engine):
    """The config's lora_alpha is the alpha of every module."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if adapter is not None and not AdapterSpec.read(adapter).config.get("use_rslora"):
            alpha = AdapterSpec.read(adapter).config["lora_alpha"]
            scale_all(self, model, lambda layer, name: alpha / layer.r[name])


@breaks("swap-equals-load")
class SubsetNotZeroed(Engine):
    """Modules that the adapter does not target keep serving the last one."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        scales = {key: float(la.scaling["default"]) for key, la in self.layers(model).items()}
        super().swap(model, adapter)
        targets = AdapterSpec.read(adapter).modules if adapter is not None else {}
        for key, layer in self.layers(model).items():
            count = len(slots(layer, self.adapter_name))
            mine, old = old[:count], old[count:]
            if key not in targets:
                layer.scaling["default"] = scales[key]
                for slot, tensor in zip(slots(layer, self.adapter_name), mine, strict=True):
                    slot.tensor.data.copy_(tensor)


class Partial(Engine):
    """Some tensors are not swapped."""

    def left_out(self, key: str, module: str) -> bool:
        raise NotImplementedError

    def swap(self, model: Any, adapter: Path | None) -> None:
        old = self.kept(model)
        super().swap(model, adapter)
        found = [
            (module, slot)
            for module, layer in self.layers(model).items()
            for slot in slots(layer, self.adapter_name)
        ]
        for (module, slot), tensor in zip(found, old, strict=True):
            if self.left_out(slot.key, module):
                slot.tensor.data.copy_(tensor)


@breaks("swap-equals-load")
class OnlyLoraASwapped(Partial):
    """lora_B is forgotten."""

    def left_out(self, key: str, module: str) -> bool:
        return "B" in key


@breaks("swap-equals-load")
class OnlyLoraBSwapped(Partial):
    """lora_A is forgotten."""

    def left_out(self, key: str, module: str) -> bool:
        return "_A" in key


@breaks("swap-equals-load")
class EmbeddingSkipped(Partial):
    """Keys named lora_embedding_A do not match the pattern lora_A."""

    def left_out(self, key: str, module: str) -> bool:
        return "embedding" in key


@breaks("swap-equals-load")
class ConvolutionSkipped(Partial):
    """Only linear layers are swapped."""

    def left_out(self, key: str, module: str) -> bool:
        return module == "conv"


@breaks("swap-equals-load")
class LastLayerSkipped(Partial):
    """An off-by-one leaves out a layer."""

    def left_out(self, key: str, module: str) -> bool:
        return module == "second"


@breaks("swap-equals-load")
class WrongAxis(Engine):
    """lora_A of an embedding is read in reverse order of its rows, lora_B is not."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for slot in self.slots(model):
            if slot.key == "lora_embedding_A":
                slot.tensor.data.copy_(slot.tensor.detach().flip(0))


@breaks("swap-equals-load")
class GroupedConvolutionContiguous(Engine):
    """lora_A of a grouped convolution is copied in one block instead of one per group."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in self.layers(model).values():
            for slot in slots(layer, self.adapter_name):
                rank = layer.r[self.adapter_name]
                if slot.blocks > 1 and slot.rank != rank:
                    values = slot.own(rank)
                    slot.tensor.data.zero_()
                    slot.tensor.data[: len(values)] = values


@breaks("swap-equals-load")
class DtypeLeaks(Engine):
    """The weights go through bfloat16 on their way."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for slot in self.slots(model):
            slot.tensor.data.copy_(slot.tensor.detach().bfloat16())


@breaks("swap-equals-load")
class HalfScaling(Engine):
    """The scaling is kept in bfloat16, where 1 / 3 is 0.334."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        scale_all(self, model, lambda la, name: la.scaling[name].bfloat16().float() * 1.001)


@breaks("swap-equals-load")
class SwapsNothing(Engine):
    """The first adapter serves for ever."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        pass


@breaks("swap-equals-load")
class OneBehind(Engine):
    """A queue puts in place what was asked for before."""

    waiting: Path | None = None

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, self.waiting or adapter)
        self.waiting = adapter


@breaks("swap-equals-load")
class CachedByRank(Engine):
    """Two adapters of one alpha are taken for the same: the cache's key is too short."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        adapters = self.adapter_paths()
        super().swap(model, adapters[0] if adapter in adapters[1:2] else adapter)


# ---- no effect -----------------------------------------------------------------------------------


@breaks("swap-has-effect")
class BaseModelServed(Engine):
    """Every scaling becomes zero."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        scale_all(self, model, lambda *_: 0.0)


@breaks("swap-has-effect")
class NoneKeepsTheAdapter(Engine):
    """Swapping to the base model does nothing."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, self.adapter_paths()[0] if adapter is None else adapter)


@breaks("swap-has-effect")
class NoneZeroesTheFirstLayer(Engine):
    """Swapping to the base model clears one layer only."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        if adapter is not None:
            return super().swap(model, adapter)
        super().swap(model, self.adapter_paths()[0])
        next(iter(self.layers(model).values())).scaling[self.adapter_name] = 0.0
        return None


@breaks("swap-has-effect")
class PrefixLost(Engine):
    """No name of the file matches a module, and nobody minds: lora_B becomes zero."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for slot in self.slots(model):
            if "B" in slot.key:
                slot.tensor.data.zero_()


# ---- something else is touched -------------------------------------------------------------------


@breaks("swap-isolated")
class OtherAdapterZeroed(Engine):
    """Names are matched by substring: "default" is in "default2"."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in lora_layers(model).values():
            for name in layer.scaling:
                if self.adapter_name in name and name != self.adapter_name:
                    slots(layer, name)[0].tensor.data.zero_()


@breaks("swap-isolated")
class OtherScalingWritten(Engine):
    """The scaling of every adapter of a layer is written."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in lora_layers(model).values():
            for name in layer.scaling:
                layer.scaling[name] = 0.123


@breaks("swap-isolated")
class BaseWeightMerged(Engine):
    """The adapter leaks into a base weight."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        next(iter(self.layers(model).values())).get_base_layer().weight.data.mul_(1.5)


@breaks("swap-isolated")
class BaseBiasCleared(Engine):
    """Everything named bias is cleared, that of the base layer too."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.layers(model)["first"].get_base_layer().bias.data.zero_()


# ---- a failure leaves something behind -----------------------------------------------------------


class Failing(Engine):
    """Something is done when the adapter is refused."""

    def failed(self, model: Any) -> None:
        raise NotImplementedError

    def swap(self, model: Any, adapter: Path | None) -> None:
        try:
            super().swap(model, adapter)
        except Exception:
            self.failed(model)
            raise


@breaks("swap-atomic")
class HalfSwapped(Failing):
    """The tensors before the bad one have been written."""

    def failed(self, model: Any) -> None:
        next(self.slots(model)).tensor.data.add_(1.0)


@breaks("swap-atomic")
class ClearedOnError(Failing):
    """A refused adapter removes the one that was serving."""

    def failed(self, model: Any) -> None:
        for slot in self.slots(model):
            slot.tensor.data.zero_()


@breaks("swap-atomic")
class ScalingWrittenFirst(Failing):
    """The scaling is changed before the weights are looked at."""

    def failed(self, model: Any) -> None:
        scale_all(self, model, lambda *_: 0.5)


@breaks("swap-atomic")
class RecordsWrittenFirst(Failing):
    """The layer's rank is changed before the weights are looked at."""

    def failed(self, model: Any) -> None:
        self.layers(model)["first"].r[self.adapter_name] += 1


@breaks("swap-atomic")
class ConfigWrittenFirst(Failing):
    """The config is changed before the weights are looked at."""

    def failed(self, model: Any) -> None:
        unwrap(model).peft_config[self.adapter_name].lora_alpha = 99


@breaks("swap-atomic")
class ErrorsSwallowed(Failing):
    """A bad adapter is logged and forgotten; the caller is not told."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        with contextlib.suppress(Exception):
            Engine.swap(self, model, adapter)


@breaks("swap-atomic")
class NotReadyAfterAnError(Failing):
    """A failure leaves a lock taken: no adapter is accepted any more."""

    broken = False

    def failed(self, model: Any) -> None:
        self.broken = True

    def swap(self, model: Any, adapter: Path | None) -> None:
        if self.broken:
            self.broken = False
            raise RuntimeError("busy")
        super().swap(model, adapter)


# ---- something moves -----------------------------------------------------------------------------


@breaks("swap-in-place")
class StorageMoved(Engine):
    """Tensors are replaced through .data."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for slot in self.slots(model):
            slot.tensor.data = slot.tensor.data.clone()


@breaks("swap-in-place")
class OnePointerMoved(Engine):
    """One tensor of many is replaced through .data."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        last = list(self.slots(model))[-1].tensor
        last.data = last.data.clone()


@breaks("swap-in-place", own=True)
class ParameterReplaced(Engine):
    """A new Parameter takes the place of the old one."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        lora_b = self.layers(model)["first"].lora_B[self.adapter_name]
        lora_b.weight = nn.Parameter(lora_b.weight.detach().clone())


@breaks("swap-in-place", own=True)
class RequiresGradChanged(Engine):
    """The swapped weights become trainable."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        next(self.slots(model)).tensor.requires_grad_(True)


@breaks("swap-in-place", own=True)
class StrideChanged(Engine):
    """A weight is stored transposed."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        weight = self.layers(model)["first"].lora_B[self.adapter_name].weight
        weight.data = weight.data.t().contiguous().t()


@breaks("swap-in-place", own=True)
class ScalingReplaced(Engine):
    """The scaling is a new tensor after each swap."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in self.layers(model).values():
            layer.scaling.put(self.adapter_name, layer.scaling[self.adapter_name].clone())


# ---- torch.compile -------------------------------------------------------------------------------


class CountsSwaps:
    """The forward reads a Python number that each swap changes."""

    def base_model(self) -> Any:
        model = super().base_model()
        model.version = 0
        model.register_forward_hook(lambda module, _, output: output + 0 * module.version)
        return model

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        unwrap(model).base_model.model.version += 1


class Versioned(CountsSwaps, Engine):
    """An engine that counts its swaps."""


@breaks("zero-recompiles", own=True)
class VersionInTheForward(Versioned):
    """A counter of swaps is guarded on."""


@breaks("zero-recompiles", own=True)
class RecompileHiddenByTheLimit(Versioned):
    """Past the recompile limit torch runs eagerly and reports no recompile."""

    def compile(self, model: Any) -> Any:
        torch._dynamo.config.recompile_limit = 1
        return super().compile(model)


@breaks("zero-recompiles", own=True)
class FloatScaling(Engine):
    """Each swap leaves a number in one layer, where there was a tensor."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        layer = self.layers(model)["first"]
        if isinstance(layer.scaling, dict):
            vars(layer).pop("scaling")
            layer._modules["scaling"] = self.kept_scaling
        super().swap(model, adapter)
        self.kept_scaling = layer._modules.pop("scaling")
        vars(layer)["scaling"] = self.kept_scaling.copy()


@breaks("zero-recompiles", own=True)
class NeverCompiled(Engine):
    """torch.compile is forgotten: nothing can recompile."""

    def compile(self, model: Any) -> Any:
        return model


@breaks("zero-recompiles", own=True)
class CompileDisabled(Engine):
    """Compiled code is there and never runs."""

    def run(self, model: Any, inputs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return super().run(model, inputs)


@breaks("zero-recompiles", own=True)
class ResetsDynamo(Engine):
    """A swap throws the compiled code away: the next compile is a first one."""

    swaps = 0

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.swaps += 1
        if self.swaps == 1:
            torch._dynamo.reset()


@breaks("unprepared-recompiles", own=True)
class WatchSeesNothing(Engine):
    """compile() returns the model itself, so a recompile cannot be seen."""

    def compile(self, model: Any) -> Any:
        return model


# ---- preparation ---------------------------------------------------------------------------------


@breaks("preparation-covers", own=True)
class OneFloatScaling(Engine):
    """One layer keeps a number as its scaling."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        layer = list(self.layers(model).values())[-1]
        number = float(layer.scaling[self.adapter_name])
        del layer.scaling
        layer.scaling = {self.adapter_name: number}


@breaks("preparation-covers", own=True)
class OnlyLoraAPadded(Engine):
    """lora_B keeps its rank."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        old = {id(slot.tensor): slot.tensor.data for slot in self.slots(model)}
        super().prepare(model, plan)
        for slot in self.slots(model):
            if slot.axis == 1:
                slot.tensor.data = old[id(slot.tensor)]


@breaks("preparation-covers", own=True)
class EmbeddingNotPadded(Engine):
    """A list of layer kinds lacks embeddings."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        old = {id(slot.tensor): slot.tensor.data for slot in self.slots(model)}
        super().prepare(model, plan)
        for slot in self.slots(model):
            if "embedding" in slot.key:
                slot.tensor.data = old[id(slot.tensor)]


@breaks("preparation-covers", own=True)
class NotPrepared(Engine):
    """prepare() is a no-op."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        pass


@breaks("preparation-preserves", own=True)
class ScalingOverTargetRank(Engine):
    """Preparation rescales by the target rank."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        scale_all(self, model, lambda layer, name: float(layer.scaling[name]) * 0.5)


@breaks("preparation-preserves", own=True)
class PaddedWithOnes(Engine):
    """The padding is not zero on either side."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        old = {id(slot.tensor): slot.tensor.numel() for slot in self.slots(model)}
        super().prepare(model, plan)
        for slot in self.slots(model):
            if slot.tensor.numel() > old.get(id(slot.tensor), 0):
                slot.tensor.data[slot.tensor == 0] = 1.0


@breaks("preparation-idempotent", own=True)
class ScaledAtEachPreparation(Engine):
    """Preparing twice scales twice."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        scale_all(self, model, lambda layer, name: float(layer.scaling[name]) * 0.999)


@breaks("preparation-idempotent", own=True)
class NewStorageAtEachPreparation(Engine):
    """Preparing twice moves everything."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        super().prepare(model, plan)
        for slot in self.slots(model):
            slot.tensor.data = slot.tensor.data.clone()


@breaks("prepare-before-compile", own=True)
class CompiledAccepted(Engine):
    """Whether the model is compiled is not looked at."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        hotswap.prepare(model, plan=plan, check_compiled="ignore")


@breaks("prepare-before-compile", own=True)
class OnlyTheWrapperIsSeen(Engine):
    """A compiled submodule or forward is not looked for."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        if hasattr(model, "_orig_mod"):
            raise ValueError("compiled")
        hotswap.prepare(model, plan=plan, check_compiled="ignore")


@breaks("rank-bound")
class LargerRankTruncated(Engine):
    """A rank above the target is cut to it."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        try:
            super().swap(model, adapter)
        except hotswap.errors.RankTooLargeError:
            super().swap(model, self.adapter_paths()[0])


@breaks("rank-bound", own=True)
class GrowsTheSlot(Engine):
    """A rank above the target replaces the parameters, as PEFT does."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        try:
            super().swap(model, adapter)
        except hotswap.errors.RankTooLargeError:
            lora = self.layers(model)["first"].lora_A[self.adapter_name]
            lora.weight = nn.Parameter(torch.zeros(32, lora.weight.shape[1]))


# ---- knobs ---------------------------------------------------------------------------------------


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
