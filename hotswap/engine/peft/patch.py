"""patch_peft: PEFT, transformers and diffusers hot-swap by this engine."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import TracebackType
from typing import Any, Self

from peft.utils import hotswap as upstream

from hotswap.engine.incoming.source import IncomingAdapter, read
from hotswap.engine.layout.slots import lora_layers
from hotswap.engine.peft.functions import (
    HUB,
    check_hotswap_configs_compatible,
    hotswap_adapter,
    hotswap_adapter_from_state_dict,
    prepare_model_for_compiled_hotswap,
    swap_as_peft,
    without_name,
)


class PeftPatch:
    """The functions of peft_compat in the place of PEFT's, until ``undo()`` or the end of a ``with``."""

    def __init__(self) -> None:
        """Put them in place now, wherever they are imported already, unless they are in place."""
        from transformers.integrations.peft import PeftAdapterMixin

        self._mixin = PeftAdapterMixin
        self._load = load = PeftAdapterMixin.load_adapter
        self._installed = id(upstream.hotswap_adapter) in {id(theirs) for theirs, _ in _STAND_INS}
        if self._installed:
            _exchange({id(theirs): ours for theirs, ours in _STAND_INS})
            if "hotswap" in inspect.signature(load).parameters:  # transformers has it since 5
                PeftAdapterMixin.load_adapter = _load_adapter(load)

    def undo(self) -> None:
        """Put PEFT's functions back; what another patch put in place stays. Doing it twice is harmless."""
        if self._installed:
            self._installed = False
            _exchange({id(ours): theirs for theirs, ours in _STAND_INS})
            self._mixin.load_adapter = self._load

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def patch_peft() -> PeftPatch:
    """Let PEFT, transformers and diffusers hot-swap by this engine, from now on or within a ``with``.

    Covered are the functions of ``peft.utils.hotswap`` under any name that a loaded module has for them,
    so diffusers' ``enable_lora_hotswap`` and ``load_lora_weights(hotswap=True)``, and transformers'
    ``enable_peft_hotswap`` and ``load_adapter(hotswap=True)``. diffusers itself deletes the adapter when
    a swap is refused; ``hotswap.swap`` leaves it serving.
    """
    return PeftPatch()


def _stand_in(ours: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is told from ours itself, which somebody may have imported on purpose."""

    @functools.wraps(ours)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    return stand_in


_STAND_INS = [
    (getattr(upstream, ours.__name__), _stand_in(ours))
    for ours in (
        prepare_model_for_compiled_hotswap,
        hotswap_adapter,
        hotswap_adapter_from_state_dict,
        check_hotswap_configs_compatible,
    )
]


def _exchange(functions: dict[int, Callable[..., Any]]) -> None:
    """Replace functions, by their id, in the namespace of every loaded module."""
    for module in list(sys.modules.values()):
        space = getattr(module, "__dict__", {})
        for name, value in list(space.items()):
            if id(value) in functions:
                space[name] = functions[id(value)]


def _load_adapter(original: Callable[..., Any]) -> Callable[..., Any]:
    """Stand in for transformers' ``load_adapter``, which neither pads nor rescales."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def load_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        asked = given.arguments
        name = asked["adapter_name"] or "default"
        loaded = bool(self._hf_peft_config_loaded and name in self.peft_config)
        hotswap = asked["hotswap"]
        if hotswap == "auto":
            hotswap = loaded and getattr(self, "_hotswap_enabled", False)
        if not hotswap:
            info = original(self, *args, **kwargs)
            _prepare_as_enabled(self)
            return info
        if not loaded:
            raise ValueError(
                f"there is no adapter named {name!r} to be swapped; load the first one with hotswap=False"
            )
        _prepare_as_enabled(self)
        swap_as_peft(self, name, lambda: _asked_for(asked, name))
        return _nothing_amiss()

    return load_adapter


def _asked_for(asked: Mapping[str, Any], name: str) -> IncomingAdapter:
    """Read the adapter that transformers' load_adapter was called with."""
    config, tensors = asked["peft_config"], asked["adapter_state_dict"]
    if tensors is not None:
        return read({without_name(key, name): value for key, value in tensors.items()}, config)
    if asked["peft_model_id"] is None:
        raise ValueError("pass peft_model_id, or adapter_state_dict with peft_config")
    hub = {**(asked["adapter_kwargs"] or {}), **asked["kwargs"]}
    hub = {key: value for key, value in hub.items() if key in HUB and value is not None}
    if asked["local_files_only"]:
        hub["local_files_only"] = True
    return read(asked["peft_model_id"], config, **hub)


def _nothing_amiss() -> Any:
    """What transformers returns for an adapter of which every tensor found its place."""
    from transformers.utils.loading_report import LoadStateDictInfo

    kinds: dict[str, Callable[[], Any]] = {"error_msgs": list, "conversion_errors": dict}
    return LoadStateDictInfo(
        **{each.name: kinds.get(each.name, set)() for each in fields(LoadStateDictInfo)}
    )


def _prepare_as_enabled(model: Any) -> None:
    """Do what enable_peft_hotswap asked for, once there is an adapter; transformers forgets it."""
    wanted = model._prepare_peft_hotswap_kwargs
    if wanted is not None and lora_layers(model):
        prepare_model_for_compiled_hotswap(model, **wanted)
        model._prepare_peft_hotswap_kwargs = None
