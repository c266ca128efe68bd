"""Manifest: what a package says of its adapters: the plan, and which constants the slots and scalings are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.packages import Constant, PackageFile
from hotswap.engine.layout.arena import Layout
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.slots import Role, Slot
from hotswap.errors import HotswapError, PackageError
from hotswap.findings import Finding

VERSION = 1
_EXPORT = "export the prepared model with hotswap.export(model, args, path)"
_KEEP = "hotswap.export compiles with always_keep_tensor_constants=True"


@dataclass(frozen=True, slots=True)
class PackagedTensor:
    """A slot, or with ``key`` "" a scaling: its name among the constants, and what Slot says of it."""

    constant: str
    module: str
    key: str
    shape: tuple[int, ...]
    dtype: str
    role: Role = "factor"
    axis: int | None = None
    blocks: int = 1
    groups: int = 1
    experts: int = 1

    def slot(self, tensor: torch.Tensor) -> Slot:
        """The slot, with a tensor that is where the constant is."""
        return Slot(
            self.module,
            self.key,
            self.constant,
            tensor,
            self.role,
            None,
            self.axis,
            self.blocks,
            self.groups,
            self.experts,
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """The slots in the order of their layout, then a scaling for each module."""

    adapter_name: str
    plan: SwapPlan
    slots: tuple[PackagedTensor, ...]
    scalings: tuple[PackagedTensor, ...]

    @classmethod
    def of(cls, model: nn.Module, placement: Placement) -> Manifest:
        """Describe a prepared model, by its tensors' names."""
        found = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        names = {id(tensor): name for name, tensor in reversed(found)}
        slots = tuple(
            PackagedTensor(
                names[id(slot.tensor)],
                slot.module,
                slot.key,
                tuple(slot.tensor.shape),
                _word(slot.tensor),
                slot.role,
                slot.axis,
                slot.blocks,
                slot.groups,
                slot.experts,
            )
            for slot in placement.slots
        )
        scalings = tuple(
            PackagedTensor(names[id(value)], module, "", (), _word(value))
            for module, layer in placement.layers.items()
            for value in (layer.scaling[placement.name],)
        )
        return cls(placement.name, placement.envelope, slots, scalings)

    @property
    def tensors(self) -> tuple[PackagedTensor, ...]:
        """The slots, then the scalings."""
        return self.slots + self.scalings

    @property
    def modules(self) -> list[str]:
        """The modules that carry LoRA."""
        return [scaling.module for scaling in self.scalings]

    def layout(self, device: torch.device) -> Layout:
        """Where the tensors lie in the buffer that takes the place of the constants."""
        like = [
            torch.empty(0, dtype=getattr(torch, one.dtype), device=device) for one in self.tensors
        ]
        return Layout.of(like, [one.shape for one in self.tensors])

    def dumps(self) -> str:
        """As JSON."""
        told = {
            "version": VERSION,
            "adapter_name": self.adapter_name,
            "plan": self.plan.to_dict(),
            "slots": [asdict(slot) for slot in self.slots],
            "scalings": [asdict(scaling) for scaling in self.scalings],
        }
        return json.dumps(told)

    @classmethod
    def loads(cls, text: str) -> Manifest:
        """Read it; raises ValueError for a text that is none, or of another version."""
        told = json.loads(text)
        if not isinstance(told, dict) or told.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION}")
        slots, scalings = (tuple(map(_tensor, told[key])) for key in ("slots", "scalings"))
        return cls(str(told["adapter_name"]), SwapPlan.from_dict(told["plan"]), slots, scalings)

    @classmethod
    def read(cls, file: PackageFile) -> Manifest:
        """That of a package whose adapters can be swapped; raises PackageError for any other."""
        found, findings = cls.judge(file)
        if found is None or findings:
            raise PackageError(findings)
        return found

    @classmethod
    def judge(cls, file: PackageFile) -> tuple[Manifest | None, list[Finding]]:
        """The manifest of a package, if it can be read, and what keeps its adapters from being swapped."""
        findings = list(_baked(file))
        if file.note is None:
            text = "was not written by hotswap.export: nothing says where its adapters are"
            return None, [*findings, Finding(str(file.path), "HSW312", text, _EXPORT)]
        try:
            found = cls.loads(file.note)
            return found, [*findings, *_differences(found, file)]
        except (ValueError, KeyError, TypeError, AttributeError, HotswapError) as error:
            text = f"what hotswap wrote into the package cannot be read: {error}"
            return None, [*findings, Finding(str(file.path), "HSW312", text, _EXPORT)]


def _baked(file: PackageFile) -> Iterator[Finding]:
    """Constants that were computed from weights, or took their place, when the package was compiled."""
    for prefix, code, text in (
        ("_FOLDED_CONST_", "HSW314", "constants are computed from weights once, at the first call"),
        ("_frozen_param", "HSW315", "weights are frozen under other names"),
    ):
        count = sum(name.startswith(prefix) for name in file.constants)
        if count:
            text = f"{count} {text}, so a swap would not be served"
            yield Finding(str(file.path), code, text, _EXPORT)
    weights = sum(".lora_" in name for name in file.constants)
    if weights and not any(".scaling." in name for name in file.constants):
        text = f"has {weights} LoRA weights and no scaling among its constants: alpha / rank is compiled in"
        yield Finding(str(file.path), "HSW313", text, _EXPORT)


def _differences(manifest: Manifest, file: PackageFile) -> Iterator[Finding]:
    """Slots and scalings that are no constants of the package, or others than was written."""
    rooms = {name: module.shapes(module.rank) for name, module in manifest.plan.modules.items()}
    if rooms.keys() != set(manifest.modules):
        text = "its plan is of other modules than its scalings"
        yield Finding(str(file.path), "HSW312", text, _EXPORT)
    for one in manifest.tensors:
        where, known = f"{file.path}::{one.constant}", file.constants.get(one.constant)
        if known is None:
            text = "is not among the constants of the package: it is compiled in"
            yield Finding(where, "HSW313", text, _KEEP)
            continue
        expected = Constant(one.dtype, one.shape, _strides(one.shape), known.device)
        if known != expected:
            text = f"is {_shown(known)} in the package, and {_shown(expected)} for its adapters"
            yield Finding(where, "HSW316", text, _EXPORT)
        elif one.key and one.shape not in rooms.get(one.module, []):
            text = f"has shape {list(one.shape)}, which its plan does not have"
            yield Finding(where, "HSW316", text, _EXPORT)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _shown(constant: Constant) -> str:
    return f"{constant.dtype} {list(constant.shape)} with strides {list(constant.stride)}"


def _word(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tensor(told: Mapping[str, Any]) -> PackagedTensor:
    found = PackagedTensor(**{**told, "shape": tuple(map(int, told["shape"]))})
    if not isinstance(getattr(torch, found.dtype, None), torch.dtype):
        raise ValueError(f"{found.constant} has dtype {found.dtype!r}")
    return found
