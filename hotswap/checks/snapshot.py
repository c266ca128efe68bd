"""Snapshot: a bit-exact fingerprint of a model, what changed since, and restoring it in place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from hotswap.adapters.names import canonical
from hotswap.engine.layout.registry import forget_adapters
from hotswap.engine.layout.slots import unwrap

_FLAGS = ("r", "lora_alpha", "use_rslora", "lora_bias", "merged_adapters")
_PLACES = ("_parameters", "_buffers")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor: where it hangs, the object, an alias of its storage, copies of values and identity."""

    name: str
    holder: dict[str, Any]
    key: str
    tensor: Tensor
    alias: Tensor
    values: Tensor
    kind: type
    then: dict[str, Any]


def _storage(tensor: Tensor) -> dict[str, Any]:
    return {
        "type": type(tensor).__name__,
        "address": tensor.data_ptr(),
        "offset": tensor.storage_offset(),
        "shape": tuple(tensor.shape),
        "stride": tensor.stride(),
        "dtype": tensor.dtype,
        "device": str(tensor.device),
        "requires_grad": tensor.requires_grad,
    }


_USUAL = {
    "type shape": "PEFT's swap of a rank above the prepared one replaces the parameter",
    "dtype": "model.to(dtype) or half() does this: cast before torch.compile",
    "device": "model.to(device) does this: move before torch.compile",
    "shape": "prepare() after the snapshot or a swap of another rank does this",
    "stride": "replacing .data by a transposed or contiguous copy does this: use copy_()",
    "requires_grad": "requires_grad_() or PEFT's set_adapter() does this: call it before warm-up",
    "address": "load_state_dict(assign=True), merge_adapter(safe_merge=True), or .to() there and back "
    "does this: CUDA graphs are recorded again",
}
"""What changed together, the most telling first, and the call that typically does it."""


def _moved(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Say what changed of a tensor's identity and which call typically does it; empty if nothing did."""
    changed = [key for key in then if then[key] != now[key]]
    if not changed:
        return ""
    told = [key if key == "address" else f"{key}: {then[key]} to {now[key]}" for key in changed]
    usual = next((call for keys, call in _USUAL.items() if set(keys.split()) <= set(changed)), "")
    return f"changed its {', '.join(told)}" + (f" ({usual})" if usual else "")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    a, b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(a, b)


def _differs(now: Any, then: Any) -> bool:
    """Whether something else is in a dict or list; tensors are entries of their own."""
    if isinstance(then, list):
        return bool(now != then)
    keys = then.keys() | now.keys()
    return any(not isinstance(then.get(k), Tensor) and then.get(k) != now.get(k) for k in keys)


def _fill(now: Any, then: Any) -> None:
    """Let a mapping or list, which others may hold, have in it what it had; in place."""
    if isinstance(now, list):
        now[:] = then
        return
    for key in [*now]:
        if key not in then or isinstance(now, dict):  # of a dict the order comes back too
            del now[key]
    now.update(then)


class Snapshot:
    """Every parameter, buffer and LoRA scaling of some models, with the flags that a swap may touch."""

    def __init__(self, models: tuple[nn.Module, ...]) -> None:
        self._models = models
        self._entries: list[_Entry] = []
        self._held: list[
            tuple[str, Callable[[], Any], Any]
        ] = []  # mappings and lists, and contents
        self._active: list[tuple[str, LoraLayer, str | list[str]]] = []
        self._configs: list[tuple[dict[str, Any], str, Any, dict[str, Any]]] = []
        seen: set[int] = set()
        for model in models:
            for path, module in model.named_modules():
                self._take_module(canonical(path), module, seen)

    @classmethod
    def take(cls, *models: nn.Module) -> Snapshot:
        """Fingerprint models (compiled wrappers too); costs one copy of their tensors."""
        return cls(tuple(unwrap(model) for model in models))

    def _take_module(self, path: str, module: nn.Module, seen: set[int]) -> None:
        configs: dict[str, Any] = getattr(module, "peft_config", {})  # of a component too
        if configs and id(configs) not in seen:
            seen.add(id(configs))
            for name, config in configs.items():
                self._configs.append((configs, name, config, copy.deepcopy(vars(config))))
        for place in (*_PLACES, "_modules"):
            self._hold("", getattr(module, place))
        for place in _PLACES:
            for key, tensor in getattr(module, place).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    self._take_tensor(f"{path}.{key}", getattr(module, place), key, tensor)
        if not isinstance(module, LoraLayer):
            return
        if isinstance(module.scaling, dict):
            self._hold(f"{path}.scaling", module.scaling)
            for key, value in module.scaling.items():
                if isinstance(value, Tensor):
                    self._take_tensor(f"{path}.scaling.{key}", module.scaling, key, value)
        else:
            self._hold(f"{path}.scaling.states", module.scaling.states)
        for flag in _FLAGS:
            now = partial(getattr, module, flag)
            self._held.append((f"{path}.{flag}", now, copy.copy(now())))
        self._active.append((path, module, copy.copy(module._active_adapter)))

    def _hold(self, name: str, mapping: MutableMapping[str, Any]) -> None:
        """Note what is in a mapping; without a name it is no part of the fingerprint."""
        self._held.append((name, lambda: mapping, dict(mapping)))

    def _take_tensor(self, name: str, holder: dict[str, Any], key: str, tensor: Tensor) -> None:
        alias, then = tensor.data, _storage(tensor)
        entry = _Entry(name, holder, key, tensor, alias, alias.clone(), type(tensor), then)
        self._entries.append(entry)

    def changes(self, *, values: bool = True, storage: bool = True) -> list[str]:
        """Say what changed since: values and flags bit for bit, and what compiled code is guarded on."""
        found = []
        for entry in self._entries:
            now = entry.holder.get(entry.key)
            if not isinstance(now, Tensor):
                found.append(
                    f"{entry.name} is no tensor any more (PEFT's set_scale() or unscale_layer() does this "
                    "to a scaling: use hotswap.set_scale())"
                )
                continue
            if values and not _same_bits(now, entry.values):
                found.append(f"{entry.name} changed its values")
            if storage and (moved := _moved(entry.then, _storage(now))):
                found.append(f"{entry.name} {moved}")
        return [*found, *self._changed_flags()] if values else found

    def _changed_flags(self) -> Iterator[str]:
        for name, holder, then in self._held:
            if name and _differs(holder(), then):
                yield f"{name} changed: {then} to {holder()}"
        for path, layer, active in self._active:
            if layer._active_adapter != active:
                yield f"{path} has {layer._active_adapter} active, not {active}"
        for configs, name, config, fields in self._configs:
            if configs.get(name) is not config or vars(config) != fields:
                yield f"peft_config[{name!r}] changed"

    @torch.no_grad()
    def restore(self) -> None:
        """Bring everything back in place: the same objects, storages and bits."""
        for model in self._models:
            forget_adapters(model)
        for _, holder, then in self._held:
            _fill(holder(), then)
        for entry in self._entries:
            entry.holder[entry.key] = entry.tensor
            entry.tensor.__class__ = entry.kind  # PEFT's growth exchanges it by swap_tensors
            entry.tensor.data = entry.alias
            entry.tensor.requires_grad_(entry.then["requires_grad"])
            entry.alias.copy_(entry.values)
        for _, layer, active in self._active:
            if layer._active_adapter != active:  # compiled code is guarded on a list that stays
                layer._active_adapter = copy.copy(active)
        for configs, name, config, fields in self._configs:
            configs[name] = config
            _fill(vars(config), copy.deepcopy(fields))
