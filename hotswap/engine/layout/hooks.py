"""Hooks and code that have weights of their own, so that what is written into a model is not what serves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, repeat
from typing import Any

from torch import nn

from hotswap.engine.layout.unsupported import Why

_REMEDY = (
    "prepare and swap before enable_group_offload(), or offload without offload_to_disk_path and "
    "use_stream"
)
_SIGNS = ("_compiled_call_impl", "_diffusers_hook")


def marked(modules: Sequence[nn.Module], attributes: Sequence[dict[str, Any]]) -> list[nn.Module]:
    """Those of some modules, with these attributes, at which ``why_elsewhere`` has anything to look."""
    found: list[nn.Module] = []
    for sign in _SIGNS:
        found += compress(modules, map(dict.__contains__, attributes, repeat(sign)))
    return found


def why_elsewhere(module: nn.Module) -> Why | None:
    """Say where the weights that a module's forward uses come from, or None when they are its own.

    Group offloading with a disk path or a stream keeps copies and puts them back before every forward
    (diffusers/hooks/group_offloading.py); without either it moves the very tensors. ``freezing`` is an option
    of inductor's.
    """
    own = module.__dict__
    compiled = own.get("_compiled_call_impl") or module
    config = getattr(compiled, "__dict__", {}).get("get_compiler_config")
    if config is not None and (config() or {}).get("freezing"):
        text = "it was compiled with freezing=True, which copies weights into the code"
        return Why(text, "compile it without freezing")
    registry: Any = own.get("_diffusers_hook")
    hooks = registry.hooks if registry is not None else {}
    group = getattr(hooks.get("group_offloading"), "group", None)
    if getattr(group, "offload_to_disk_path", None) is not None:
        text = "group offloading puts its weights back from files before every forward"
        return Why(text, _REMEDY)
    if getattr(group, "stream", None) is not None:
        text = "group offloading with a stream puts copies of its weights back before every forward"
        return Why(text, _REMEDY)
    return None
