"""Snapshot: a bit-exact fingerprint of a model, what changed since, and restoring it in place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from hotswap.adapters.names import canonical
from hotswap.compiler.compiled import walk
from hotswap.compiler.regions import unwrap
from hotswap.compiler.shards import local_of
from hotswap.engine.layout.registry import forget_adapters

_FLAGS = (
    "r",
    "lora_alpha",
    "use_rslora",
    "lora_bias",
    "merged_adapters",
    "scaling",
    "_disable_adapters",
    "_active_adapter",
)
_PLACES = ("_parameters", "_buffers")
_OF_TORCH = {*vars(nn.Module()), "_compiled_call_impl"} - {"training"}
_GONE = object()
_LOOKED_AT = 12


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor: where it hangs, the object, an alias of its storage, a copy of its values."""

    name: str
    holder: dict[str, Any]
    key: str
    tensor: Tensor
    alias: Tensor
    values: Tensor
    requires_grad: bool
    kind: type

    def storage(self) -> dict[str, Any]:
        found = _storage(self.alias)
        return found | {"type": self.kind.__name__, "requires_grad": self.requires_grad}

    def changes(self, now: Tensor, *, values: bool, storage: bool) -> Iterator[str]:
        if values and not _same_bits(local_of(now), self.values):
            yield f"{self.name} changed its values"
        if storage and (moved := _moved(self.storage(), _now(now))):
            yield f"{self.name} {moved}"
        elif storage and now is not self.tensor:
            yield f"{self.name} was replaced by another {self.kind.__name__} of the same storage"


def _now(tensor: Tensor) -> dict[str, Any]:
    """A tensor as it is; of a DTensor, the part that this rank holds."""
    found = {"type": type(tensor).__name__, "requires_grad": tensor.requires_grad}
    return _storage(local_of(tensor)) | found


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


_USUAL = (
    (("type", "shape"), "PEFT's swap of a rank above the prepared one replaces the parameter"),
    (("dtype",), "model.to(dtype) or half() does this: cast before torch.compile"),
    (("device",), "model.to(device) does this: move before torch.compile"),
    (("shape",), "prepare() after the snapshot or a swap of another rank does this"),
    (("stride",), "replacing .data by a transposed or contiguous copy does this: use copy_()"),
    (
        ("requires_grad",),
        "requires_grad_() or PEFT's set_adapter() does this: call it before warm-up",
    ),
    (
        ("address",),
        "load_state_dict(assign=True), merge_adapter(safe_merge=True), or .to() there and back does "
        "this: CUDA graphs are recorded again",
    ),
)
"""What changed together, the most telling first, and the call that typically does it."""


def _moved(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Say what changed of a tensor's identity and which call typically does it; empty if nothing did."""
    changed = [key for key in then if then[key] != now[key]]
    if not changed:
        return ""
    told = [key if key == "address" else f"{key}: {then[key]} to {now[key]}" for key in changed]
    usual = next((call for keys, call in _USUAL if set(keys) <= set(changed)), "")
    return f"changed its {', '.join(told)}" + (f" ({usual})" if usual else "")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    a, b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(a, b)


class Snapshot:
    """Every parameter, buffer and LoRA scaling of some models, their structure and what a swap may touch."""

    def __init__(self, models: tuple[nn.Module, ...]) -> None:
        self._models = models
        self._entries: list[_Entry] = []
        self._modules: dict[str, nn.Module] = {}
        self._names: set[str] = set()
        self._holders: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._plain: list[tuple[dict[str, Any], dict[str, tuple[Any, Any]]]] = []
        self._flags: list[tuple[str, nn.Module, str, Any]] = []
        self._configs: list[tuple[str, dict[str, Any], str, Any, dict[str, Any]]] = []
        seen: set[int] = set()
        for path, module in self._walk():
            self._take_module(path, module, seen)

    @classmethod
    def take(cls, *models: nn.Module) -> Snapshot:
        """Fingerprint models (compiled wrappers too); costs one copy of their tensors."""
        return cls(tuple(unwrap(model) for model in models))

    def _walk(self) -> Iterator[tuple[str, nn.Module]]:
        for model in self._models:
            for path, module in walk(model):
                yield canonical(path), module

    def _take_module(self, path: str, module: nn.Module, seen: set[int]) -> None:
        self._modules[path] = module
        configs: dict[str, Any] = getattr(module, "peft_config", {})  # of a component too
        if configs and id(configs) not in seen:
            seen.add(id(configs))
            for name, config in configs.items():
                self._configs.append((name, configs, name, config, copy.deepcopy(vars(config))))
        for place in (*_PLACES, "_modules"):
            holder = getattr(module, place)
            self._holders.append((holder, dict(holder)))
        for name, holder, key, tensor in _tensors(path, module):
            self._names.add(name)
            if id(tensor) not in seen:
                seen.add(id(tensor))
                self._take_tensor(name, holder, key, tensor)
        own = vars(module)
        kept = {key: (own[key], _kept(key, own[key])) for key in own if key not in _OF_TORCH}
        self._plain.append((own, kept))
        flags = ["training"]
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            flags += _FLAGS
        elif "active_adapter" in own:  # of PEFT's model
            flags += ["active_adapter"]
        self._flags += [(path, module, flag, _flag(module, flag)) for flag in flags]

    def _take_tensor(self, name: str, holder: dict[str, Any], key: str, tensor: Tensor) -> None:
        alias = local_of(tensor).data
        self._entries.append(
            _Entry(
                name, holder, key, tensor, alias, alias.clone(), tensor.requires_grad, type(tensor)
            )
        )

    def changes(self, *, values: bool = True, storage: bool = True) -> list[str]:
        """Say what changed since: values, names and flags, and what compiled code is guarded on.

        A tensor is looked up by its name, so a module that was replaced by an equal one is a change of
        storage only.
        """
        modules: dict[str, nn.Module] = {}
        live: dict[str, Any] = {}
        for path, module in self._walk():
            modules[path] = module
            live.update((name, tensor) for name, _, _, tensor in _tensors(path, module))
        found = [f"{name} was added" for name in live if name not in self._names]
        if storage:
            found += self._replaced(modules)
        for entry in self._entries:
            if entry.name in live:
                found += entry.changes(live[entry.name], values=values, storage=storage)
            elif isinstance(entry.holder.get(entry.key), float | int):
                found.append(
                    f"{entry.name} is no tensor any more (PEFT's set_scale() or unscale_layer() does "
                    "this to a scaling: use hotswap.set_scale())"
                )
            else:
                found.append(f"{entry.name} is gone")
        return found + (self._changed_flags(modules) if values else [])

    def other_values(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By name the tensors that hold other values since: each as it is and what it held, of this rank."""
        live = {n: t for path, module in self._walk() for n, _, _, t in _tensors(path, module)}
        pairs = (
            (e.name, local_of(live[e.name]), e.values) for e in self._entries if e.name in live
        )
        return {
            name: (now.detach(), then)
            for name, now, then in pairs
            if now.shape == then.shape and not _same_bits(now, then)
        }

    def between(self, other: Snapshot) -> Callable[[], bool]:
        """A quick look, at a few tensors, whether the models are neither as here nor as in the other."""
        theirs = {entry.name: entry.values for entry in other._entries}
        pairs = [(e, theirs[e.name]) for e in self._entries if e.name in theirs]
        pairs = [(entry, then) for entry, then in pairs if not _same_bits(entry.values, then)]
        few = pairs[:: len(pairs) // _LOOKED_AT + 1] + pairs[-1:]

        def look() -> bool:
            live = [entry.holder.get(entry.key) for entry, _ in few]
            wanted = ([entry.values for entry, _ in few], [then for _, then in few])
            return not any(
                all(
                    isinstance(a, Tensor) and _same_bits(local_of(a), b)
                    for a, b in zip(live, w, strict=True)
                )
                for w in wanted
            )

        return look

    def _replaced(self, modules: Mapping[str, nn.Module]) -> list[str]:
        """Say which modules are others, are gone or are new; not what is inside of them."""
        found: dict[str, str] = {}
        for path in {**self._modules, **modules}:
            then, now = self._modules.get(path), modules.get(path)
            parts = path.split(".")
            above = (".".join(parts[:end]) for end in range(1, len(parts)))
            if then is now or any(name in found for name in above):
                continue
            another = f"was replaced by another {type(now).__name__}"
            found[path] = "was added" if then is None else "is gone" if now is None else another
        return [f"{path or 'the model'} {what}" for path, what in found.items()]

    def _changed_flags(self, modules: Mapping[str, nn.Module]) -> list[str]:
        found = []
        for path, _, flag, then in self._flags:
            now = _flag(modules[path], flag) if path in modules else then
            if now != then:
                found.append(
                    f"{path} has {now} active, not {then}"
                    if "active_adapter" in flag
                    else f"{path}.{flag} changed: {then} to {now}"
                )
        for name, holder, key, _, fields in self._configs:
            now = vars(holder[key]) if holder.get(key) is not None else {}
            found += [
                f"peft_config[{name!r}].{field} changed: {fields.get(field)} to {now.get(field)}"
                for field in {**fields, **now}
                if _said(fields.get(field)) != _said(now.get(field))
            ]
        return found

    @torch.no_grad()
    def restore(self) -> None:
        """Bring everything back in place: the same objects, storages, bits and plain attributes."""
        for model in self._models:
            forget_adapters(model)
        for holder, entries in self._holders:
            holder.clear()
            holder.update(entries)
        for own, kept in self._plain:
            for key in [key for key in own if key not in kept and key not in _OF_TORCH]:
                del own[key]
            for key, (value, content) in kept.items():
                if own.get(key, _GONE) is not value:
                    own[key] = value
                _refill(value, content)
        for entry in self._entries:
            entry.holder[entry.key] = entry.tensor
            entry.tensor.__class__ = entry.kind  # PEFT's growth exchanges it by swap_tensors
            local_of(entry.tensor).data = entry.alias
            entry.tensor.requires_grad_(entry.requires_grad)
            entry.alias.copy_(entry.values)
        for _, holder, key, config, fields in self._configs:
            holder[key] = config
            vars(config).clear()
            vars(config).update(copy.deepcopy(fields))


def _tensors(path: str, module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, Tensor]]:
    """The tensors that hang in a module itself, those of a plain ``scaling`` mapping too."""
    holders = [(path, getattr(module, place)) for place in _PLACES]
    scaling = vars(module).get("scaling") if isinstance(module, LoraLayer) else None
    if isinstance(scaling, dict):
        holders.append((f"{path}.scaling", scaling))
    for prefix, holder in holders:
        for key, tensor in holder.items():
            if isinstance(tensor, Tensor):
                yield f"{prefix}.{key}", holder, key, tensor


def _flag(module: nn.Module, flag: str) -> Any:
    value = getattr(module, flag, None)
    if "active_adapter" in flag:  # one may stand without a list
        return [value] if isinstance(value, str) else value
    if flag == "scaling":  # what is no tensor; where it is a module there is nothing else
        numbers = value.items() if isinstance(value, Mapping) else ()
        return {key: number for key, number in numbers if not isinstance(number, Tensor)}
    return copy.copy(value)


def _said(value: Any) -> Any:
    """What a field of a config says: names in any order and container, nothing by whatever is empty."""
    if isinstance(value, list | tuple | set | frozenset):
        value = frozenset(map(str, value))
    return value if value or isinstance(value, int | float) else None


def _kept(key: str, value: Any) -> Any:
    """The content of a mapping, or of a list of PEFT's, that restoring fills again; else None."""
    if isinstance(value, MutableMapping):
        return dict(value)
    return list(value) if key in _FLAGS and isinstance(value, list) else None


def _refill(value: Any, content: Any) -> None:
    """Give a container the content that it had, in place and only where it has another."""
    if content is None:
        return
    if isinstance(value, list):
        if len(value) != len(content) or any(
            a is not b for a, b in zip(value, content, strict=True)
        ):
            value[:] = content
    else:
        for key in [key for key in value if key not in content]:
            del value[key]
        for key, item in content.items():
            if value.get(key, _GONE) is not item:
                value[key] = item
