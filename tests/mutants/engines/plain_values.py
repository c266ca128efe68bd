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
class FirstModuleUnbounded(RankOfTheConfig):
    """An embedding is taken whatever its rank, and cut."""

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        if "embedding" not in name:
            super().check_tensor(layer, name, value, place, rank)


@breaks("rank-bound")
class OneBoundForAll(RankOfTheConfig):
    """One bound, that of the widest module, is that of all."""

    def check(self, model: Any, given: Given) -> None:
        layers = [layer for _, layer in self.found(model)]
        tensors = [self.parts(layer, self.adapter_name) for layer in layers]
        widest = max(t.shape[0] for each in tensors for part, t in each.items() if "A" in part)
        if above := [module for module, rank in given.ranks.items() if rank > widest]:
            raise ValueError(f"{above[0]} has a rank above {widest}")

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        pass


@breaks("rank-bound")
class BoundTimesGroups(RankOfTheConfig):
    """The bound of a grouped convolution is multiplied by its groups once too often."""

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        if rank > place.shape[0] * self.groups(layer) and "_A" in name:
            raise ValueError(f"{name} has rank {rank}")


@breaks("rank-bound")
class FullRankRefused(Plain):
    """``>=`` where ``>`` is meant: the target rank itself is refused."""

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        super().check_tensor(layer, name, value, place, rank)
        if name.startswith("conv.lora_A") and rank >= place.shape[0]:
            raise ValueError(f"{name} has rank {rank}")


@breaks("swap-equals-load", own=True)
class DropsWhatItLacks(Plain):
    """A model without some modules of the plan is prepared, and a swap passes over them."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        here = {self.name_of(path) for path, _ in self.found(model)}
        self.planned = {*plan.modules}
        known = {name: place for name, place in plan.modules.items() if name in here}
        super().prepare(model, replace(plan, modules=known))

    def check(self, model: Any, given: Given) -> None:
        here = {self.name_of(path) for path, _ in self.found(model)}
        for module in self.planned - here:
            given.tensors.pop(module, None)
        super().check(model, given)


@breaks("swap-forgets")
class KeepsTheBytes(Plain):
    """The file of each swap is kept for a report."""

    log: list[bytes] | None = None

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if adapter is not None:
            self.log = [*(self.log or []), (adapter / "adapter_model.safetensors").read_bytes()]


@breaks("swap-forgets")
class KeepsArrays(Plain):
    """The same as arrays of numpy, for its statistics."""

    log: list[Any] | None = None

    def record(self, model: Any, given: Given) -> None:
        super().record(model, given)
        arrays = [v.numpy().copy() for parts in given.tensors.values() for v in parts.values()]
        self.log = [*(self.log or []), *arrays]
