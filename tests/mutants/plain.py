"""Another engine on the same micro deployment, as somebody would write it with PEFT and torch alone.

Each step of a swap is a method, so that a faulty engine is one step that is wrong.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

import hotswap
from tests.mutants.subject import Engine

_PREFIX = "base_model.model."


@dataclass
class Given:
    """An adapter as its folder has it: tensors by module and part, and numbers by module."""

    config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    ranks: dict[str, int]
    scalings: dict[str, float]


def write(folder: Path, tensors: dict[str, dict[str, Tensor]], config: dict[str, Any]) -> None:
    """Write an adapter folder from the tensors of each module, as PEFT names them."""
    flat = {f"{_PREFIX}{m}.{part}": t for m, parts in tensors.items() for part, t in parts.items()}
    folder.mkdir()
    save_file(flat, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))


class Plain(Engine):
    """It pads with zeros, makes scalings tensors, and copies tensor by tensor; a failure is undone."""

    fleet = "plain"

    def __init__(self, folder: Path) -> None:
        super(Engine, self).__init__(adapters=[str(folder / "fleet" / "*")])

    def load(self, base: Any, adapter: Path) -> Any:
        model: Any = PeftModel.from_pretrained(base, adapter).eval()
        model.in_place = self.read(adapter)
        return model

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        if self.is_compiled(model):
            raise ValueError("the model is compiled already: prepare it before torch.compile")
        found = {self.name_of(path): layer for path, layer in self.found(model)}
        if lacking := plan.modules.keys() - found.keys():
            raise ValueError(
                f"the adapter that is loaded first has no {', '.join(sorted(lacking))}"
            )
        self.check_ranks(found, plan)
        for name, layer in found.items():
            self.prepare_layer(layer, plan.modules[name].rank)

    def check_ranks(self, found: Mapping[str, Any], plan: hotswap.SwapPlan) -> None:
        """Refuse a plan that has no room for what is loaded, before anything is padded."""
        for name, layer in found.items():
            rows, *_ = self.parts(layer, self.adapter_name).values()
            if rows.shape[0] > plan.modules[name].rank:
                raise ValueError(f"{name} has rank {rows.shape[0]}, the plan less")

    def is_compiled(self, model: Any) -> bool:
        return any(
            hasattr(module, "_orig_mod")
            or module._compiled_call_impl is not None
            or hasattr(vars(module).get("forward"), "get_compiler_config")
            for module in model.modules()
        ) or hasattr(model, "_orig_mod")

    def prepare_layer(self, layer: LoraLayer, rank: int) -> None:
        for name in list(layer.scaling):
            for part, tensor in self.parts(layer, name).items():
                wide = self.padded(layer, part, tensor.data, rank)
                if wide.shape != tensor.shape:
                    tensor.data = wide
            if not isinstance(layer.scaling[name], Tensor):
                layer.scaling[name] = torch.tensor(float(layer.scaling[name]))

    def found(self, model: Any) -> Iterator[tuple[str, LoraLayer]]:
        """Every LoRA layer that has this adapter."""
        (inner,) = self.models(model)
        for path, module in inner.named_modules():
            if isinstance(module, LoraLayer) and self.adapter_name in module.scaling:
                yield path, module

    def name_of(self, path: str) -> str:
        return path.removeprefix(_PREFIX)

    def parts(self, layer: LoraLayer, name: str) -> dict[str, Tensor]:
        """The tensors of an adapter in a layer, by their names in a file."""
        if name in layer.lora_embedding_A:
            held = {
                "lora_embedding_A": layer.lora_embedding_A,
                "lora_embedding_B": layer.lora_embedding_B,
            }
            return {part: both[name] for part, both in held.items()}
        return {
            "lora_A.weight": layer.lora_A[name].weight,
            "lora_B.weight": layer.lora_B[name].weight,
        }

    def groups(self, layer: LoraLayer) -> int:
        return int(getattr(layer.get_base_layer(), "groups", 1))

    def padded(self, layer: LoraLayer, part: str, value: Tensor, rank: int) -> Tensor:
        """A tensor at another rank: rows of A, in a block for each group, or columns of B."""
        groups = self.groups(layer)
        shape = list(value.shape)
        if "A" in part:
            wide = value.new_zeros(groups, rank // groups, *shape[1:])
            own = value.reshape(groups, -1, *shape[1:])
            wide[:, : own.shape[1]] = own
            return wide.reshape(rank, *shape[1:])
        wide = value.new_zeros(shape[0], rank // groups, *shape[2:])
        wide[:, : shape[1]] = value
        return wide

    def swap(self, model: Any, adapter: Path | None) -> None:
        given = self.read(adapter) if adapter is not None else Given({}, {}, {}, {})
        self.check(model, given)
        staged = self.staged(model, given)
        old = [(tensor, tensor.detach().clone()) for tensor, _ in staged]
        try:
            self.commit(staged)
        except BaseException:
            self.commit(old)
            raise
        self.record(model, given)

    def read(self, adapter: Path) -> Given:
        config = json.loads((adapter / "adapter_config.json").read_text())
        tensors: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(adapter / "adapter_model.safetensors").items():
            module, part = self.split(key)
            tensors.setdefault(module, {})[part] = value
        ranks = {module: self.rank_of(module, config) for module in tensors}
        scalings = {module: self.scaling_of(module, config, ranks[module]) for module in tensors}
        return Given(config, tensors, ranks, scalings)

    def split(self, key: str) -> tuple[str, str]:
        module, _, part = key.removeprefix(_PREFIX).partition(".lora_")
        return module, f"lora_{part}"

    def of_pattern(self, module: str, patterns: Mapping[str, Any], default: Any) -> Any:
        """PEFT's rule: the first pattern that a module's name ends in."""
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default

    def rank_of(self, module: str, config: Mapping[str, Any]) -> int:
        return int(self.of_pattern(module, config.get("rank_pattern") or {}, config["r"]))

    def scaling_of(self, module: str, config: Mapping[str, Any], rank: int) -> float:
        alpha = self.of_pattern(module, config.get("alpha_pattern") or {}, config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def check(self, model: Any, given: Given) -> None:
        """Refuse what does not fit, before anything is written."""
        layers = {self.name_of(path): layer for path, layer in self.found(model)}
        for module, tensors in given.tensors.items():
            if module not in layers:
                raise ValueError(f"the model has no LoRA layer {module}")
            room = self.parts(layers[module], self.adapter_name)
            if tensors.keys() != room.keys():
                raise ValueError(f"{module} has {', '.join(tensors)}, expected {', '.join(room)}")
            for part, value in tensors.items():
                self.check_tensor(
                    layers[module], f"{module}.{part}", value, room[part], given.ranks[module]
                )

    def check_tensor(
        self, layer: LoraLayer, name: str, value: Tensor, place: Tensor, rank: int
    ) -> None:
        axis, groups = (0, 1) if "_A" in name else (1, self.groups(layer))
        if value.shape[axis] * groups != rank:
            raise ValueError(
                f"{name} has rank {value.shape[axis] * groups}, its config says {rank}"
            )
        if value.shape[axis] > place.shape[axis]:
            raise ValueError(f"{name} has rank {rank}, above the target of {place.shape[axis]}")
        sizes = [[*t.shape[:axis], *t.shape[axis + 1 :]] for t in (value, place)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, the layer {tuple(place.shape)}"
            )
        if not self.finite(value, place):
            raise ValueError(f"{name} is not finite")

    def finite(self, value: Tensor, place: Tensor) -> bool:
        return bool(value.to(place.dtype).isfinite().all())

    def staged(self, model: Any, given: Given) -> list[tuple[Tensor, Tensor]]:
        """Every tensor of the adapter in place, and what it is to hold."""
        found = []
        for path, layer in self.found(model):
            module = self.name_of(path)
            for part, place in self.parts(layer, self.adapter_name).items():
                value = given.tensors.get(module, {}).get(part)
                axis, groups = (0, 1) if "A" in part else (1, self.groups(layer))
                room = place.shape[axis] * groups
                new = (
                    torch.zeros_like(place)
                    if value is None
                    else self.padded(layer, part, value, room)
                )
                found.append((place, self.converted(new, place)))
            scaling = given.scalings.get(module, 0.0)
            found.append((layer.scaling[self.adapter_name], torch.tensor(scaling)))
        return found

    def converted(self, new: Tensor, place: Tensor) -> Tensor:
        return new.to(place)

    @torch.no_grad()
    def commit(self, staged: list[tuple[Tensor, Tensor]]) -> None:
        for place, value in staged:
            place.copy_(value)

    def record(self, model: Any, given: Given) -> None:
        """Let the model say what is in place; it hangs at the model, where a snapshot brings it back."""
        (inner,) = self.models(model)
        inner.in_place = given
        config = inner.peft_config[self.adapter_name]
        for field in (
            "r",
            "lora_alpha",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "target_modules",
        ):
            if field in given.config:
                setattr(config, field, given.config[field])

    def in_place(self, model: Any) -> Given:
        """What is in place."""
        (inner,) = self.models(model)
        found: Given = inner.in_place
        return found

    @torch.no_grad()
    def set_scale(self, model: Any, scale: float) -> None:
        scalings = self.in_place(model).scalings
        for path, layer in self.found(model):
            layer.scaling[self.adapter_name].fill_(scalings.get(self.name_of(path), 0.0) * scale)

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:  # type: ignore[override]
        layers = [layer for _, layer in self.found(model)]
        old = [layer._disable_adapters for layer in layers]
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer, flag in zip(layers, old, strict=True):
                layer._disable_adapters = flag

    def save(self, model: Any, folder: Path) -> None:
        given = self.in_place(model)
        tensors = {
            module: {
                part: self.trimmed(layer, part, tensor.detach(), given.ranks[module])
                for part, tensor in self.parts(layer, self.adapter_name).items()
            }
            for path, layer in self.found(model)
            if (module := self.name_of(path)) in given.tensors
        }
        write(folder, tensors, self.saved_config(given))

    def saved_config(self, given: Given) -> dict[str, Any]:
        return given.config

    def trimmed(self, layer: LoraLayer, part: str, tensor: Tensor, rank: int) -> Tensor:
        groups = self.groups(layer)
        if "A" in part:
            own = tensor.reshape(groups, -1, *tensor.shape[1:])[:, : rank // groups]
            return own.reshape(rank, *tensor.shape[1:]).contiguous()
        return tensor[:, : rank // groups].contiguous()
