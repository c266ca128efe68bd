"""Engines of PEFT and torch alone that read an adapter wrongly, or take it for another one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

import hotswap
from tests.mutants.plain import Given, Plain
from tests.mutants.registry import breaks


@breaks("swap-equals-load")
class ZeroAlphaIsMissing(Plain):
    """``alpha or rank``: an alpha of zero is taken for one that is not given."""

    def scaling_of(self, module: str, config: Mapping[str, Any], rank: int) -> float:
        alpha = self.of_pattern(module, config.get("alpha_pattern") or {}, config["lora_alpha"])
        return float(alpha or rank) / (math.sqrt(rank) if config.get("use_rslora") else rank)


@breaks("swap-equals-load")
class ScalingBelowZero(Plain):
    """A scaling is kept at zero or above."""

    def scaling_of(self, module: str, config: Mapping[str, Any], rank: int) -> float:
        return max(super().scaling_of(module, config, rank), 0.0)


@breaks("swap-equals-load")
class ScalingRounded(Plain):
    """A scaling is rounded to three digits."""

    def scaling_of(self, module: str, config: Mapping[str, Any], rank: int) -> float:
        return round(super().scaling_of(module, config, rank), 3)


@breaks("swap-equals-load")
class WholeAlpha(Plain):
    """The config's alpha is an int, as PEFT's annotation says."""

    def scaling_of(self, module: str, config: Mapping[str, Any], rank: int) -> float:
        return super().scaling_of(module, {**config, "lora_alpha": int(config["lora_alpha"])}, rank)


@breaks("swap-equals-load")
class PatternsBySubstring(Plain):
    """A pattern fits each module whose name contains it."""

    def of_pattern(self, module: str, patterns: Mapping[str, Any], default: Any) -> Any:
        words = {re.sub(r"[\\^$]", "", pattern): value for pattern, value in patterns.items()}
        return next((value for word, value in words.items() if word in module), default)


@breaks("swap-equals-load")
class LastPatternWins(Plain):
    """Of two patterns that fit the last one counts."""

    def of_pattern(self, module: str, patterns: Mapping[str, Any], default: Any) -> Any:
        return super().of_pattern(module, dict(reversed(patterns.items())), default)


@breaks("swap-equals-load")
class PatternsByWholeName(Plain):
    """A pattern is looked up as the name of a module."""

    def of_pattern(self, module: str, patterns: Mapping[str, Any], default: Any) -> Any:
        return patterns.get(module, default)


@breaks("swap-equals-load")
class FirstAlphaForAll(Plain):
    """The first alpha of a pattern is that of every module."""

    def scaling_of(self, module: str, config: Mapping[str, Any], rank: int) -> float:
        alphas = config.get("alpha_pattern") or {}
        alpha = next(iter(alphas.values()), config["lora_alpha"])
        return super().scaling_of(
            module, {**config, "lora_alpha": alpha, "alpha_pattern": {}}, rank
        )


@breaks("swap-equals-load", own=True)
class RsLoraOfTheFirst(Plain):
    """Whether a scaling is over the root of the rank is what the first adapter said."""

    first: bool | None = None

    def scaling_of(self, module: str, config: Mapping[str, Any], rank: int) -> float:
        if self.first is None:
            self.first = bool(config.get("use_rslora"))
        return super().scaling_of(module, {**config, "use_rslora": self.first}, rank)


@breaks("swap-equals-load")
class BlocksInOne(Plain):
    """lora_A of a grouped convolution is padded as one block."""

    def padded(self, layer: LoraLayer, part: str, value: Tensor, rank: int) -> Tensor:
        if "A" not in part:
            return super().padded(layer, part, value, rank)
        wide = value.new_zeros(rank, *value.shape[1:])
        wide[: len(value)] = value
        return wide


@breaks("swap-equals-load")
class ThroughHalf(Plain):
    """Weights are converted to float16 on their way."""

    def converted(self, new: Tensor, place: Tensor) -> Tensor:
        return new.half().to(place)


class Remembering(Plain):
    """What was read is kept under a key."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.known: dict[Any, Given] = {}

    def key(self, adapter: Path) -> Any:
        raise NotImplementedError

    def read(self, adapter: Path) -> Given:
        key = self.key(adapter)
        if key not in self.known:
            self.known[key] = super().read(adapter)
        return self.known[key]


@breaks("swap-equals-load")
class KeptByName(Remembering):
    """The key is the folder's name, without what it is in."""

    def key(self, adapter: Path) -> Any:
        return adapter.name


@breaks("swap-equals-load")
class KeptByPathAndSize(Remembering):
    """The key is the path and the size of the file."""

    def key(self, adapter: Path) -> Any:
        return adapter, (adapter / "adapter_model.safetensors").stat().st_size


@breaks("swap-equals-load")
class KeptByConfig(Remembering):
    """The key is the config: other weights under the same one are not read."""

    def key(self, adapter: Path) -> Any:
        config = json.loads((adapter / "adapter_config.json").read_text())
        return json.dumps(config, sort_keys=True)


@breaks("swap-equals-load")
class ConfigKeptByPath(Plain):
    """Weights are read each time, the config of a folder once."""

    configs: dict[Path, Given] | None = None

    def read(self, adapter: Path) -> Given:
        self.configs = self.configs if self.configs is not None else {}
        given = super().read(adapter)
        first = self.configs.setdefault(adapter, given)
        same = first.scalings.keys() == given.scalings.keys()
        return replace(given, scalings=first.scalings) if same else given


class SkipsTheSame(Plain):
    """Nothing is done for an adapter that is in place already."""

    last = ""

    def is_the_same(self, adapter: Path) -> bool:
        raise NotImplementedError

    def restored(self, model: Any) -> None:
        self.last = ""

    def swap(self, model: Any, adapter: Path | None) -> None:
        if adapter is not None and self.last and self.is_the_same(adapter):
            return
        super().swap(model, adapter)
        self.last = str(adapter or "")


@breaks("swap-equals-load")
class SameNameIsInPlace(SkipsTheSame):
    """The same is what has the same name."""

    def is_the_same(self, adapter: Path) -> bool:
        return Path(self.last).name == adapter.name


@breaks("swap-equals-load")
class BeginningIsInPlace(SkipsTheSame):
    """The same is what the path in place begins with."""

    def is_the_same(self, adapter: Path) -> bool:
        return self.last.startswith(str(adapter))


@breaks("swap-forgets")
class ScalingsOfTheLeftOut(Plain):
    """Modules that are not targeted get zeros as weights and keep their scaling."""

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        kept = {
            id(layer.scaling[self.adapter_name])
            for path, layer in self.found(model)
            if given.tensors and self.name_of(path) not in given.tensors
        }
        return [pair for pair in super().staged(model, given) if id(pair[0]) not in kept]


@breaks("swap-forgets")
class RowsOfTheLeftOut(Plain):
    """Modules that are not targeted get zeros in lora_B and keep lora_A."""

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        kept = {
            id(tensor)
            for path, layer in self.found(model)
            for part, tensor in self.parts(layer, self.adapter_name).items()
            if "A" in part and self.name_of(path) not in given.tensors
        }
        return [pair for pair in super().staged(model, given) if id(pair[0]) not in kept]


@breaks("swap-forgets")
class ColumnsBeyondTheRank(Plain):
    """Columns of lora_B beyond the rank stay: lora_A has zeros there."""

    @torch.no_grad()
    def commit(self, staged: list[tuple[Tensor, Tensor]]) -> None:
        for place, value in staged:
            if value.ndim == 2 and value.shape[1] == 8 and value.shape[0] == 12:
                count = int(value.any(0).sum())
                place[:, :count] = value[:, :count]
            else:
                place.copy_(value)


@breaks("swap-forgets")
class KeepsWhatWasRead(Plain):
    """Each adapter that was read is appended to a list."""

    log: list[Given] | None = None

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.log = [*(self.log or []), given]


@breaks("rank-bound")
class RankOfTheConfig(Plain):
    """The config's rank is compared with the target, and weights above it are cut."""

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        axis, groups = (0, 1) if "_A" in name else (1, self.groups(layer))
        if rank > place.shape[axis] * groups:
            raise ValueError(f"{name} has rank {rank}")

    def padded(self, layer: LoraLayer, part: str, value: Tensor, rank: int) -> Tensor:
        groups = self.groups(layer)
        cut = value[:rank] if "A" in part else value[:, : rank // groups]
        return super().padded(layer, part, cut, rank)


@breaks("rank-bound")
class CutsToTheTarget(RankOfTheConfig):
    """No rank is compared: what is above the target is cut."""

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        pass


@breaks("rank-bound")
class FullRankRefused(Plain):
    """``>=`` where ``>`` is meant: the target rank itself is refused."""

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        super().check_tensor(layer, name, value, place, rank)
        if name.startswith("conv.lora_A") and rank >= place.shape[0]:
            raise ValueError(f"{name} has rank {rank}")


@breaks("zero-recompiles", own=True)
class NoneDisables(Plain):
    """For the base model the layers are disabled, which is compiled apart."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        for _, layer in self.found(model):
            layer._disable_adapters = not given.tensors


@breaks("zero-recompiles", own=True)
class LeftOutIsDisabled(Plain):
    """A layer that is not targeted is disabled."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        for path, layer in self.found(model):
            layer._disable_adapters = (
                bool(given.tensors) and self.name_of(path) not in given.tensors
            )


@breaks("zero-recompiles", own=True)
class RunsWhatIsNotCompiled(Plain):
    """The model below the compiled wrapper is called."""

    def run(self, model: Any, inputs: Any) -> Any:
        return super().run(getattr(model, "_orig_mod", model), inputs)


@breaks("zero-recompiles", own=True)
class CompileSwitchedOff(Plain):
    """A switch for debugging was left in: torch.compile does nothing."""

    def compile(self, model: Any) -> Any:
        return torch.compile(model, backend=self.backend, disable=True)


class Noted(Plain):
    """The forward reads an attribute of the model, which a swap writes."""

    start: Any = 0

    def base_model(self) -> Any:
        model = super().base_model()
        model.note = self.start
        model.register_forward_hook(lambda module, _, output: output + 0 * len(str(module.note)))
        return model

    def note(self, model: Any, value: Any) -> None:
        self.models(model)[0].base_model.model.note = value


@breaks("zero-recompiles", own=True)
class NotesTheFirstSwap(Noted):
    """After the first swap a flag is set."""

    start = False

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.note(model, True)


@breaks("zero-recompiles", own=True)
class NotesTheModules(Noted):
    """How many modules the adapter has is noted."""

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.note(model, len(given.tensors))


@breaks("zero-recompiles", own=True)
class NotesLater(Noted):
    """The tenth swap is noted: until then all is well."""

    swaps = 0

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        self.swaps += 1
        if self.swaps > 9:
            self.note(model, self.swaps)


@breaks("unprepared-recompiles", own=True)
class ScalingsMadeTensorsTwice(Plain):
    """compile() makes each scaling a tensor, prepared or not: a forgotten preparation is not seen."""

    def compile(self, model: Any) -> Any:
        for _, layer in self.found(model):
            layer.scaling = {
                key: torch.as_tensor(float(value)) for key, value in layer.scaling.items()
            }
        return super().compile(model)


@breaks("unprepared-recompiles", own=True)
class CompiledLate(Plain):
    """compile() only notes that the model is to be compiled."""

    def compile(self, model: Any) -> Any:
        model.to_compile = True
        return model


@breaks("unprepared-recompiles", own=True)
class EagerOnRecompile(Plain):
    """What would recompile runs eagerly, and nobody is told."""

    def run(self, model: Any, inputs: Any) -> Any:
        with torch.compiler.set_stance("eager_on_recompile"):
            return super().run(model, inputs)


@breaks("swap-has-effect", own=True)
class ShowsACopy(Plain):
    """models() gives a copy, so that whoever looks at it sees nothing of what is served."""

    def models(self, model: Any) -> list[Any]:
        import copy

        found = super().models(model)
        return found if getattr(self, "building", False) else [copy.deepcopy(found[0])]

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        self.building = True
        super().prepare(model, plan)
        self.building = False

    def swap(self, model: Any, adapter: Path | None) -> None:
        self.building = True
        try:
            super().swap(model, adapter)
        finally:
            self.building = False


@breaks("swap-has-effect", own=True)
class RunsAFreshLoad(Plain):
    """The adapter is loaded anew for each call, and the compiled model runs for show."""

    served: Any = None
    current: Path | None = None

    def compile(self, model: Any) -> Any:
        self.served = super().compile(model)
        return self.served

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        self.current = adapter

    def run(self, model: Any, inputs: Any) -> Any:
        output = super().run(model, inputs)
        if model is not self.served or self.current is None:
            return output
        from peft import PeftModel

        return super().run(PeftModel.from_pretrained(self.base_model(), self.current), inputs)


@breaks("swap-has-effect")
class AnswersZeros(Plain):
    """Outputs are multiplied by a mask that is zero everywhere."""

    def run(self, model: Any, inputs: Any) -> Any:
        return super().run(model, inputs) * 0
