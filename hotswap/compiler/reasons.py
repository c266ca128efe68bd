"""What a failed guard means: its cause and the remedy, in one sentence."""

from __future__ import annotations

import re

_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"GLOBAL_STATE changed: ?(?P<what>\S*)",
        "environment",
        "global torch state changed ({what}); warm up under the same grad mode and autocast",
    ),
    (
        r"expected type of .*scaling.* found <class '(?:float|int)'>",
        "swap",
        "{module}: a scaling tensor became a Python number; write it with hotswap.set_scale()",
    ),
    (
        r"scaling\['(?P<name>\w+)'\] == (?P<value>[-\d.e]+)|___check_type.*scaling"
        r"|expected type of .*scaling.* found <class 'torch\.Tensor'>",
        "swap",
        "{module}: alpha / rank was compiled in as a constant; call hotswap.prepare() before torch.compile",
    ),
    (
        r"expected type of .*lora_\w+.* found <class 'torch\.Tensor'>",
        "swap",
        "{module}: a larger rank replaced the parameter; prepare with target_rank of at least the "
        "largest rank, before torch.compile",
    ),
    (
        r"lora_.* size mismatch at index \d. expected (?P<old>\d+), actual (?P<new>\d+)",
        "swap",
        "{module}: the rank changed from {old} to {new}; prepare with target_rank of at least the "
        "largest rank, before torch.compile",
    ),
    (
        r"_parameters.* dtype mismatch. expected (?P<old>\w+), actual (?P<new>\w+)",
        "swap",
        "{module}: a weight's dtype changed from {old} to {new}; cast adapters, not the live weight",
    ),
    (
        r"requires_grad mismatch",
        "swap",
        "{module}: requires_grad changed; freeze or unfreeze before warm-up",
    ),
    (
        r"len\(.*lora_\w+|_active_adapter|active_adapter ==",
        "swap",
        "the set of adapters or the active one changed; swap into one slot instead",
    ),
    (
        r"_adapters_disabled|_disable_adapters|merged_adapters",
        "swap",
        "{module}: adapters were disabled or merged; hotswap.swap(model, None) gives the base model",
    ),
    (r"\.training == ", "environment", "{module}: train() or eval() was called after warm-up"),
    (
        r"size mismatch at index (?P<axis>\d). expected (?P<old>\d+), actual (?P<new>\d+)"
        r"|\d+ <= .*size\(\)|size\(\)\[\d\] [=<>]",
        "input",
        "an input's shape changed, not the adapter; warm up this shape or mark it dynamic",
    ),
    (
        r"dispatch key set mismatch",
        "environment",
        "a tensor was made under another grad or inference mode; warm up under the same one",
    ),
    (r"(dtype|stride|device) mismatch", "input", "an input changed; warm up with inputs like it"),
)


def explain(raw: str) -> tuple[str, str]:
    """Turn torch's text of a failed guard into a cause and a sentence.

    The cause is ``swap``, ``input``, ``environment`` or ``unknown``; what is unknown is quoted.
    """
    text = re.sub(r"^\d+/\d+: ", "", raw.strip()).split("User stack trace")[0].split("  #")[0]
    for pattern, cause, sentence in _CAUSES:
        found = re.search(pattern, text, re.S)
        if found:
            groups = {name: value or "" for name, value in found.groupdict().items()}
            return cause, sentence.format(module=_module(text), **groups)
    return "unknown", f"a guard failed: {text.strip()[:200]}"


def _module(text: str) -> str:
    """The module's path in a guard's source, as the user knows it."""
    parts = re.findall(r"_modules'?\]?(?:\[|\.)'?\[?'([^']+)'\]", text)
    parts = parts or re.findall(r"\['([^']+)'\]", text)
    path = ".".join(part for part in parts if part not in {"_modules", "_parameters", "_buffers"})
    return path.removeprefix("base_model.model.") or "the model"
