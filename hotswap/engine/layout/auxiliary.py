"""What PEFT trains beside LoRA: whole modules (modules_to_save) and token rows, as slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from hotswap.adapters.names import TOKENS, canonical
from hotswap.compiler.compiled import Walked, instances, walk
from hotswap.engine.layout.slots import Slot
from hotswap.engine.layout.states import States
from hotswap.engine.layout.unsupported import Why, why_not_replaced

STATES = "hotswap_states"
"""Attribute of a wrapped module: what the adapter in place has of it."""


def auxiliary_slots(
    model: nn.Module, adapter_name: str, *, walked: Walked | None = None
) -> list[Slot]:
    """List the tensors of an adapter that hang in modules wrapped as a whole; tied ones once."""
    found: dict[int, Slot] = {}
    for name, wrapper in _wrappers(walk(model) if walked is None else walked):
        if adapter_name in wrapper._adapters:
            for slot in _slots(canonical(name), wrapper, adapter_name):
                known = found.setdefault(id(slot.tensor), slot)
                if known is not slot:
                    found[id(slot.tensor)] = known._replace(tied=(*known.tied, slot.name))
    return list(found.values())


def unsupported_wrappers(walked: Walked, adapter_name: str, found: list[Slot]) -> dict[str, Why]:
    """Name the wrapped modules whose tensors (``found``) cannot be swapped, with the reason."""
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    refused: dict[str, Why] = {}
    for name, wrapper in _wrappers(walked):
        known = isinstance(wrapper, ModulesToSaveWrapper | TrainableTokensWrapper)
        if adapter_name in wrapper._adapters and not known:
            refused[canonical(name)] = Why(f"PEFT's {type(wrapper).__name__} is not known")
    for slot in found:
        if why := why_not_replaced(slot):
            refused[slot.name] = why
    return refused


def _wrappers(walked: Walked) -> Any:
    from peft.utils.other import AuxiliaryTrainingWrapper

    return instances(walked, AuxiliaryTrainingWrapper)


def _slots(name: str, wrapper: Any, adapter_name: str) -> Iterator[Slot]:
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(wrapper, TrainableTokensWrapper):
        adapter = wrapper.token_adapter
        if adapter.tied_adapter is not None:
            return  # shares the tensors of another wrapper
        yield Slot(
            name,
            TOKENS,
            f"trainable_tokens_delta.{adapter_name}",
            adapter.trainable_tokens_delta[adapter_name],
            "tokens",
            adapter.trainable_tokens_delta._parameters,
            owner=adapter,
            default=adapter.trainable_tokens_original[adapter_name].detach(),
            rows=tuple(adapter.token_indices[adapter_name]),
        )
    elif isinstance(wrapper, ModulesToSaveWrapper):
        own = wrapper.modules_to_save[adapter_name]
        base = wrapper.original_module.state_dict(keep_vars=True)
        dicts = [held for _, part in walk(own) for held in (part._parameters, part._buffers)]
        holders = {id(tensor): held for held in dicts for tensor in held.values()}
        for key, tensor in own.state_dict(keep_vars=True).items():
            holder, default = holders.get(id(tensor)), base[key].detach()
            yield Slot(name, key, key, tensor, "saved", holder, owner=own, default=default)


def states_of(slot: Slot) -> States:
    """What the adapter in place has of the wrapped module that a slot hangs in."""
    if slot.owner is None:
        raise TypeError(f"{slot.name} hangs in no wrapped module")
    states: States = slot.owner.__dict__.setdefault(STATES, States())
    return states


def hook(slot: Slot, adapter_name: str) -> None:
    """Let the state dict of a wrapped module speak of the adapter in place; once per module."""
    if slot.owner is not None and STATES not in slot.owner.__dict__:
        save = _save_rows if slot.role == "tokens" else _save_if_there
        slot.owner.register_state_dict_post_hook(save)  # type: ignore[no-untyped-call]
        slot.owner.register_load_state_dict_pre_hook(_load_what_was_left_out)  # type: ignore[no-untyped-call]
    states_of(slot).setdefault(adapter_name, slot.rows if slot.role == "tokens" else True)


def unhook(slot: Slot) -> Callable[[], None]:
    """Give what takes ``hook`` back: to how the wrapped module is now."""
    owner = slot.owner
    if owner is None:
        raise TypeError(f"{slot.name} hangs in no wrapped module")
    holders = owner._state_dict_hooks, owner._load_state_dict_pre_hooks
    before, states = [dict(hooks) for hooks in holders], vars(owner).get(STATES)
    places = dict(states.places) if states is not None else {}

    def undo() -> None:
        for hooks, then in zip(holders, before, strict=True):
            hooks.clear()
            hooks.update(then)
        if states is None:
            vars(owner).pop(STATES, None)
        else:
            states.places.clear()
            states.places.update(places)

    return undo


def _save_if_there(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    if any(module.__dict__.get(STATES, {}).values()):
        return
    for key in [key for key in state if key.startswith(prefix)]:
        if not isinstance(state[key], nn.Parameter):  # a state dict of the live tensors stays whole
            del state[key]


def _load_what_was_left_out(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Accept a state dict in which the tensors are missing that the adapter in place does not have."""
    if any(module.__dict__.get(STATES, {}).values()):
        return
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            state.setdefault(f"{prefix}{key}", tensor.detach().clone())


def _save_rows(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    for adapter_name, rows in module.__dict__.get(STATES, {}).items():
        key = f"{prefix}trainable_tokens_delta.{adapter_name}"
        if key not in state or isinstance(state[key], nn.Parameter):
            continue
        places = [module.token_indices[adapter_name].index(row) for row in rows]
        state[key] = state[key][places]
