"""Engines that are right for the adapters of the fleet, and wrong for others that the plan admits."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import hotswap
from hotswap.adapters.spec import AdapterSpec
from hotswap.engine.layout.slots import slots
from tests.mutants.registry import breaks, scale_all
from tests.mutants.subject import Engine
from tests.support.models import Micro, seeded


class Special(Engine):
    """It goes wrong where an adapter has a feature."""

    def has(self, spec: AdapterSpec) -> bool:
        raise NotImplementedError

    def spoil(self, model: Any, spec: AdapterSpec) -> None:
        scale_all(self, model, lambda layer, name: float(layer.scaling[name]) * 1.5)

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if adapter is not None and self.has(spec := AdapterSpec.read(adapter)):
            self.spoil(model, spec)


@breaks("swap-equals-load")
class RankOneWrong(Special):
    """A rank of 1 is squeezed away, and the scaling divides by 2."""

    def has(self, spec: AdapterSpec) -> bool:
        return any(module.rank == 1 for module in spec.modules.values())


@breaks("swap-equals-load")
class RsLoraWithPatterns(Special):
    """rsLoRA takes the config's r where a pattern gives another rank."""

    def has(self, spec: AdapterSpec) -> bool:
        return bool(spec.config.get("use_rslora") and spec.config.get("rank_pattern"))


@breaks("swap-equals-load")
class AlphaOfOneModule(Special):
    """A pattern of alphas is not read where no pattern of ranks stands beside it."""

    def has(self, spec: AdapterSpec) -> bool:
        config = spec.config
        return bool(config.get("alpha_pattern")) and not config.get("rank_pattern")


@breaks("swap-equals-load")
class WholeAlphas(Special):
    """An alpha is made a whole number."""

    def has(self, spec: AdapterSpec) -> bool:
        return float(spec.config["lora_alpha"]) % 1 != 0


@breaks("swap-equals-load")
class OneModuleOnly(Special):
    """An adapter with one module is taken for a file that lost its others."""

    def has(self, spec: AdapterSpec) -> bool:
        return len(spec.modules) == 1


@breaks("swap-equals-load")
class EmbeddingAssumed(Special):
    """The first layer is expected to have weights in every file."""

    def has(self, spec: AdapterSpec) -> bool:
        return "embed" not in spec.modules


@breaks("swap-equals-load")
class FullRankEverywhere(Special):
    """A slice up to -0 rows is empty: nothing is written where nothing is padded."""

    def has(self, spec: AdapterSpec) -> bool:
        ranks = {name: module.rank for name, module in spec.modules.items()}
        return ranks == {"embed": 8, "first": 8, "second": 8, "conv": 8} and not spec.config.get(
            "use_rslora"
        )


@breaks("swap-equals-load")
class EvenRanksOnly(Special):
    """Ranks are rounded up to even ones, as some kernels want them."""

    def has(self, spec: AdapterSpec) -> bool:
        return any(module.rank % 2 and module.rank > 1 for module in spec.modules.values())


@breaks("swap-equals-load")
class MixedRanks(Special):
    """The largest rank of a file is taken for that of each module."""

    def has(self, spec: AdapterSpec) -> bool:
        return len({module.rank for module in spec.modules.values()}) > 2 or (
            bool(spec.config.get("use_rslora"))
            and len({module.rank for module in spec.modules.values()}) > 1
        )


@breaks("swap-equals-load", fleet="features")
class BiasWithoutDora(Special):
    """A bias of lora_B is halved when it is copied."""

    def has(self, spec: AdapterSpec) -> bool:
        return bool(spec.config.get("lora_bias")) and "second" in spec.modules

    def spoil(self, model: Any, spec: AdapterSpec) -> None:
        for slot in slots(self.layers(model)["second"], self.adapter_name):
            if slot.role == "bias":
                slot.tensor.data.mul_(0.5)


@breaks("swap-equals-load", fleet="features")
class MagnitudeInHalf(Special):
    """Magnitudes go through bfloat16."""

    def has(self, spec: AdapterSpec) -> bool:
        return bool(spec.config.get("use_dora"))

    def spoil(self, model: Any, spec: AdapterSpec) -> None:
        for slot in self.slots(model):
            if slot.role == "magnitude":
                slot.tensor.data.copy_(slot.tensor.detach().bfloat16())


@breaks("swap-equals-load")
class CachedByPath(Engine):
    """What was read from a folder once is taken for what is in it for ever."""

    copies: dict[str, Path] | None = None

    def swap(self, model: Any, adapter: Path | None) -> None:
        import shutil
        import tempfile

        if adapter is None:
            return super().swap(model, None)
        self.copies = self.copies if self.copies is not None else {}
        if str(adapter) not in self.copies:
            kept = Path(tempfile.mkdtemp(dir=self._folder)) / adapter.name
            self.copies[str(adapter)] = Path(shutil.copytree(adapter, kept))
        super().swap(model, self.copies[str(adapter)])
        return None

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder


@breaks("swap-in-place")
class TwoBuffers(Engine):
    """Two buffers take turns, and the layers point into the one that was written last."""

    other: dict[str, Any] | None = None

    def swap(self, model: Any, adapter: Path | None) -> None:
        layers = list(self.slots(model))
        self.other = self.other or {
            slot.name + str(i): s
            for i, (slot, s) in enumerate((slot, slot.tensor.data.clone()) for slot in layers)
        }
        super().swap(model, adapter)
        spare, self.other = self.other, {}
        for (key, buffer), slot in zip(spare.items(), layers, strict=True):
            self.other[key] = slot.tensor.data
            buffer.copy_(slot.tensor.data)
            slot.tensor.data = buffer


@breaks("swap-in-place")
class MovesAtTheSecondSwap(Engine):
    """The storage moves once, when a second adapter shows that more will come."""

    last: Path | None = None

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        if self.last not in (None, adapter):
            tensor = next(self.slots(model)).tensor
            tensor.data = tensor.data.clone()
        self.last = adapter


@breaks("swap-in-place", own=True)
class LayerReplaced(Engine):
    """lora_A of a layer is a new module of the same tensors."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        import copy

        super().swap(model, adapter)
        lora = self.layers(model)["first"].lora_A
        lora[self.adapter_name] = copy.copy(lora[self.adapter_name])


@breaks("rank-bound")
class OnlyTheConfigIsLookedAt(Engine):
    """The config's r is compared with the target, not what a pattern gives one module."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        spec = AdapterSpec.read(adapter) if adapter is not None else None
        above = [m.rank > 8 for m in spec.modules.values()] if spec is not None else []
        if any(above) and not all(above):
            return super().swap(model, self.adapter_paths()[0])
        return super().swap(model, adapter)


@breaks("rank-bound")
class OnlyTheFirstModuleIsLookedAt(Engine):
    """The rank of the first module is compared with the target."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        spec = AdapterSpec.read(adapter) if adapter is not None else None
        ranks = [m.rank for _, m in sorted(spec.modules.items())] if spec is not None else [0]
        if max(ranks) > 8 >= ranks[0]:
            return super().swap(model, self.adapter_paths()[0])
        return super().swap(model, adapter)


@breaks("rank-bound")
class LastModuleGrows(Engine):
    """A rank above the target in the last module alone changes the model before it is refused."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        spec = AdapterSpec.read(adapter) if adapter is not None else None
        above = [n for n, m in spec.modules.items() if m.rank > 8] if spec is not None else []
        if len(above) == 1:
            next(self.slots(model)).tensor.data.add_(1.0)
        super().swap(model, adapter)


class Longer(Micro):
    """A model with a layer that no adapter of the fleet has."""

    def __init__(self) -> None:
        super().__init__(groups=2)
        self.last = nn.Linear(32, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(super().forward(tokens))


@breaks("swap-atomic", own=True)
class OtherModulesLeftOut(Engine):
    """Of an adapter with a module that was not prepared the others are taken."""

    def base_model(self) -> Any:
        return seeded(Longer)

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter and self.with_what_is_planned(adapter))

    def with_what_is_planned(self, adapter: Path) -> Path:
        planned = hotswap.plan(self.adapter_paths()).modules
        if not AdapterSpec.read(adapter).modules.keys() - planned:
            return adapter
        folder = Path(tempfile.mkdtemp())
        tensors = load_file(adapter / "adapter_model.safetensors")
        kept = {key: value for key, value in tensors.items() if ".last." not in key}
        save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["target_modules"] = [name for name in config["target_modules"] if name != "last"]
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder
