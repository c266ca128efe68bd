"""compiled_parts: is any part of this model compiled already, and how. PYTEST_DONT_REWRITE"""

from __future__ import annotations

from typing import Any

from torch import nn


def compiled_parts(model: nn.Module) -> list[str]:
    """Describe each compiled part of a model, empty when there is none.

    Seen are ``torch.compile(module)`` wrappers, ``module.compile()`` and a ``forward`` replaced by a
    compiled one, on the model and on every submodule. A wrapper or a function that holds the model
    from outside cannot be seen.
    """
    parts = []
    for name, module in model.named_modules():
        where = name or "the model"
        if "_orig_mod" in module.__dict__.get("_modules", {}):
            parts.append(f"{where} is wrapped by torch.compile")
        elif getattr(module, "_compiled_call_impl", None) is not None:
            parts.append(f"{where} was compiled in place by .compile()")
        elif _is_compiled_function(module.__dict__.get("forward")):
            parts.append(f"{where} has a compiled forward")
    return parts


def _is_compiled_function(function: Any) -> bool:
    return function is not None and hasattr(function, "_torchdynamo_orig_callable")
