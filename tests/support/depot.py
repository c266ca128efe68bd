"""A third engine that is right: images by content, staged in buffers that stay, undone from others.

It knows saved modules and token rows too, remembers what is in place, and refuses by name what it has no
room for. Nothing of it is hotswap's.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor

import hotswap
from tests.mutants.subject import Engine

_PREFIX = "base_model.model."
_NUMBERS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
_NAMES = ("target_modules", "modules_to_save", "trainable_token_indices")
_ROOM = 6  # images that are kept


@dataclass
class Given:
    """An adapter as its folder has it."""

    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    scalings: dict[str, float] = field(default_factory=dict)


@dataclass
class Place:
    """A tensor of the model; ``home`` is what it holds where an adapter has nothing for it."""

    module: str
    part: str
    tensor: Tensor
    axis: int | None = None
    blocks: int = 1
    home: Tensor | None = None

    def padded(self, value: Tensor, rank: int) -> Tensor:
        if self.axis is None:
            return value
        if self.axis == 0:
            wide = value.new_zeros(self.blocks, rank // self.blocks, *value.shape[1:])
            own = value.reshape(self.blocks, -1, *value.shape[1:])
            wide[:, : own.shape[1]] = own
            return wide.reshape(rank, *value.shape[1:])
        wide = value.new_zeros(value.shape[0], rank // self.blocks, *value.shape[2:])
        wide[:, : value.shape[1]] = value
        return wide

    def trimmed(self, rank: int) -> Tensor:
        tensor = self.tensor.detach().clone()
        if self.axis is None:
            return tensor
        if self.axis == 0:
            own = tensor.reshape(self.blocks, -1, *tensor.shape[1:])[:, : rank // self.blocks]
            return own.reshape(rank, *tensor.shape[1:]).contiguous()
        return tensor[:, : rank // self.blocks].contiguous()

    @property
    def rank(self) -> int:
        """What it has room for."""
        if self.axis is None:
            return 0
        return self.tensor.shape[self.axis] * (self.blocks if self.axis else 1)


@dataclass
class Book:
    """What is known of a model."""

    first: Path
    layers: dict[str, LoraLayer] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    stage: list[Tensor] = field(default_factory=list)
    backup: list[Tensor] = field(default_factory=list)
    images: OrderedDict[str, tuple[Given, list[Tensor]]] = field(default_factory=OrderedDict)
    state: tuple[str, Given, float] = ("", Given(), 1.0)  # what is in place, under which factor


class Depot(Engine):
    """It stages an image of an adapter, keeps what was there, and copies tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.books: Any = weakref.WeakKeyDictionary()

    def book(self, model: Any) -> Book:
        found: Book = self.books[self.models(model)[0]]
        return found

    def load(self, base: Any, adapter: Path) -> Any:
        model: Any = PeftModel.from_pretrained(base, adapter).eval()
        self.books[model] = Book(adapter)
        return model

    def restored(self, model: Any) -> None:
        book = self.book(model)
        book.state = (self.digest(book.first), self.read(book.first), 1.0)

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        (inner,), book = self.models(model), self.book(model)
        marks = ("_orig_mod", "_compiled_call_impl")
        compiled = (vars(m).get(mark) for m in inner.modules() for mark in marks)
        forwards = (vars(m).get("forward") for m in inner.modules())
        wrapped = any("_orig_mod" in m._modules for m in inner.modules())
        if model is not inner or wrapped or any(compiled) or any(forwards):
            raise ValueError("prepare the model before torch.compile")
        named = {name.removeprefix(_PREFIX): module for name, module in inner.named_modules()}
        layers = {n: m for n, m in named.items() if isinstance(m, LoraLayer) and m.scaling}
        places = [*self.wholes(named)]
        planned = {*plan.modules, *plan.tokens, *(n.rpartition(".")[0] for n in plan.saved)}
        if lacking := sorted(planned - layers.keys() - {place.module for place in places}):
            raise ValueError(f"the first adapter has no {', '.join(lacking)}: load one that has")
        for name, layer in layers.items():
            if max(p.rank for a in layer.scaling for p in self.pair(name, layer, a)) > (
                plan.modules[name].rank
            ):
                raise ValueError(f"the plan has no room for the rank of {name}")
        for name, layer in layers.items():
            for adapter in list(layer.scaling):
                for place in self.pair(name, layer, adapter):
                    if place.rank != plan.modules[name].rank:
                        place.tensor.data = place.padded(place.tensor.data, plan.modules[name].rank)
                if not isinstance(layer.scaling[adapter], Tensor):
                    layer.scaling[adapter] = torch.tensor(float(layer.scaling[adapter]))
        pairs = [p for name, layer in layers.items() for p in self.pair(name, layer, "default")]
        book.layers, book.places = layers, pairs + places
        book.stage = [torch.zeros_like(place.tensor) for place in book.places]
        book.backup = [torch.zeros_like(place.tensor) for place in book.places]
        self.restored(model)

    def pair(self, module: str, layer: LoraLayer, name: str) -> Iterator[Place]:
        groups = int(getattr(layer.get_base_layer(), "groups", 1))
        if name in layer.lora_embedding_A:
            yield Place(module, "lora_embedding_A", layer.lora_embedding_A[name], 0)
            yield Place(module, "lora_embedding_B", layer.lora_embedding_B[name], 1)
        else:
            yield Place(module, "lora_A.weight", layer.lora_A[name].weight, 0, groups)
            yield Place(module, "lora_B.weight", layer.lora_B[name].weight, 1, groups)

    def wholes(self, named: Mapping[str, Any]) -> Iterator[Place]:
        for name, module in named.items():
            if isinstance(module, ModulesToSaveWrapper):
                home = module.original_module.state_dict()
                own = module.modules_to_save["default"].state_dict(keep_vars=True)
                yield from (Place(name, part, own[part], home=home[part]) for part in own)
            if isinstance(module, TrainableTokensWrapper):
                rows = module.token_adapter
                base = rows.get_base_layer().weight.detach()
                home = base[torch.tensor(rows.token_indices["default"])].clone()
                part, delta = "token_adapter.trainable_tokens_delta", rows.trainable_tokens_delta
                yield Place(name, part, delta["default"], home=home)

    def digest(self, adapter: Path | None) -> str:
        if adapter is None:
            return ""
        files = ("adapter_config.json", "adapter_model.safetensors")
        return "".join(hashlib.sha256((adapter / file).read_bytes()).hexdigest() for file in files)

    def read(self, adapter: Path) -> Given:
        config = json.loads((adapter / "adapter_config.json").read_text())
        found = Given(config)
        for key, value in load_file(adapter / "adapter_model.safetensors").items():
            name = key.removeprefix(_PREFIX)
            match = re.match(r"(.+?)\.((?:lora_|token_adapter\.).+)|(.+)\.(.+)", name)
            assert match is not None
            module, part = match[1] or match[3], match[2] or match[4]
            found.tensors[module, part] = value
            if part.startswith("lora_"):
                rank = self.matching(config["rank_pattern"], module, config["r"])
                alpha = self.matching(config["alpha_pattern"], module, config["lora_alpha"])
                found.ranks[module] = int(rank)
                root = math.sqrt(rank) if config["use_rslora"] else rank
                found.scalings[module] = float(alpha) / root
        return found

    def matching(self, patterns: Mapping[str, float] | None, module: str, default: float) -> float:
        each = (patterns or {}).items()
        return next((v for key, v in each if re.match(rf"(.*\.)?({key})$", module)), default)

    def check(self, book: Book, given: Given) -> None:
        room = {(place.module, place.part): place for place in book.places}
        for key, value in given.tensors.items():
            if key not in room:
                raise ValueError(f"there is no room for {'.'.join(key)}")
            place = room[key]
            rank = given.ranks.get(place.module, 0)
            if place.axis is not None and rank > place.rank:
                raise ValueError(f"{place.module} has rank {rank}, above {place.rank}")
            wanted = place.trimmed(rank) if place.axis is not None else place.tensor
            if value.shape != wanted.shape:
                raise ValueError(f"{'.'.join(key)} is {[*value.shape]}, not {[*wanted.shape]}")
            if not value.to(place.tensor.dtype).isfinite().all():
                raise ValueError(f"{'.'.join(key)} is not finite")
        named = {*given.ranks, *(given.config.get("modules_to_save") or ())}
        named |= {*(given.config.get("trainable_token_indices") or ())}
        for key in room.keys() - given.tensors.keys():
            if key[0] in named:
                raise ValueError(f"the adapter lacks {'.'.join(key)}")

    def image(self, book: Book, adapter: Path | None) -> tuple[str, Given, list[Tensor]]:
        key = self.digest(adapter)
        if key not in book.images:
            given = self.read(adapter) if adapter is not None else Given()
            self.check(book, given)
            book.images[key] = given, [self.value(place, given) for place in book.places]
        book.images.move_to_end(key)
        while len(book.images) > _ROOM:
            book.images.popitem(last=False)
        return (key, *book.images[key])

    def value(self, place: Place, given: Given) -> Tensor:
        own = given.tensors.get((place.module, place.part))
        if own is not None:
            return place.padded(own, place.rank)
        return torch.zeros_like(place.tensor) if place.home is None else place.home

    @torch.no_grad()
    def swap(self, model: Any, adapter: Path | None) -> None:
        book, config = self.book(model), self.models(model)[0].peft_config["default"]
        key, given, values = self.image(book, adapter)
        if book.state[0] == key and book.state[2] == 1.0:
            return
        for stage, value in zip(book.stage, values, strict=True):
            stage.copy_(value)
        for backup, place in zip(book.backup, book.places, strict=True):
            backup.copy_(place.tensor)
        numbers = {name: float(layer.scaling["default"]) for name, layer in book.layers.items()}
        fields, state = dict(vars(config)), book.state
        try:
            self.put(book, book.stage, given.scalings)
            for name in (*_NUMBERS, *_NAMES):
                if name in given.config:
                    setattr(config, name, given.config[name])
            book.state = key, given, 1.0
        except BaseException:
            self.put(book, book.backup, numbers)
            vars(config).update(fields)
            book.state = state
            raise

    def put(self, book: Book, values: list[Tensor], scalings: Mapping[str, float]) -> None:
        for place, value in zip(book.places, values, strict=True):
            place.tensor.copy_(value)
        for name, layer in book.layers.items():
            layer.scaling["default"].fill_(scalings.get(name, 0.0))

    @torch.no_grad()
    def set_scale(self, model: Any, scale: float) -> None:
        book = self.book(model)
        key, given, _ = book.state
        for name, layer in book.layers.items():
            layer.scaling["default"].fill_(given.scalings.get(name, 0.0) * scale)
        book.state = key, given, scale

    def save(self, model: Any, folder: Path) -> None:
        book = self.book(model)
        given = book.state[1]
        tensors = {
            f"{_PREFIX}{place.module}.{place.part}": place.trimmed(given.ranks.get(place.module, 0))
            for place in book.places
            if (place.module, place.part) in given.tensors
        }
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(given.config))
