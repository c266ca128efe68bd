"""Which guards of compiled code fail for a call, and why. PYTEST_DONT_REWRITE"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

from torch import Tensor, nn

from hotswap.compiler import private
from hotswap.compiler.reasons import Reason, explain, group

_TENSOR = re.compile(
    r"check_tensor\((?P<source>.*?), (?P<kind>\w+), (?P<keys>DispatchKeySet\(.*?\)), (?P<dtype>[\w.]+), "
    r"device=(?P<device>\S+), requires_grad=(?P<grad>\w+), size=\[(?P<size>.*?)\], "
    r"stride=\[(?P<stride>.*?)\]"
)


def failing(variant: Any, values: dict[str, Any]) -> list[str]:
    """List torch's texts of all guards of a variant that fail for a frame's locals; none if it fits.

    torch itself names the first one only. Guards that relate several values to each other are seen
    only when they fail first.
    """
    first = private.first_failure(variant, values)
    if first is None:
        return []
    found = list(_failing(variant, private.guards(variant), values))
    named = any(len(guard.source) > 1 and guard.source in first for guard, _ in found)
    return [*([] if named else [first]), *(text for _, text in found)]


def _failing(
    variant: Any, guards: Iterable[private.Guard], values: dict[str, Any]
) -> Iterator[tuple[private.Guard, str]]:
    outer, inner = private.scope(variant, values)
    for guard in guards:
        if guard.text.startswith("___check_global_state"):
            continue  # it is the first guard, and only torch's own text says what changed
        try:
            value = eval(guard.source, outer, inner)  # noqa: S307 (torch's own text)
            holds = guard.check(value)
        except Exception:  # noqa: S112 (not to be evaluated alone: the first failure stands for it)
            continue
        if holds is False:
            yield guard, _tensor_mismatch(guard.text, value) or guard.text


def of_module(variant: Any, code: CodeType) -> list[private.Guard]:
    """List the guards that read the module whose method the code is."""
    root = f"L['{private.receiver(code)}']"
    return [guard for guard in private.guards(variant) if root in guard.source]


def module_reasons(variant: Any, code: CodeType, owner: nn.Module) -> tuple[Reason, ...]:
    """Explain the guards on a module's own state that fail, whatever it may be called with."""
    values = {private.receiver(code): owner}
    found = _failing(variant, of_module(variant, code), values)
    return group(explain(text, owners=list(values), inputs=()) for _, text in found)


def reasons(variant: Any, values: dict[str, Any]) -> tuple[Reason, ...]:
    """Explain every failing guard of a variant; none if it fits."""
    owners = [name for name, value in values.items() if isinstance(value, nn.Module)]
    inputs = [name for name in values if name not in owners]
    return group(explain(text, owners=owners, inputs=inputs) for text in failing(variant, values))


def nearest(variants: list[Any], values: dict[str, Any]) -> tuple[Reason, ...]:
    """Explain against the variant that needs the fewest changes; none if one fits or none is there.

    A variant of another layer that shares the code comes last: no change makes it fit.
    """

    def distance(found: tuple[Reason, ...]) -> tuple[bool, int, int]:
        others = any(reason.cause == "other model" for reason in found)
        return others, len(found), sum(len(reason.raw) for reason in found)

    return min((reasons(variant, values) for variant in variants), key=distance, default=())


def _tensor_mismatch(text: str, tensor: Any) -> str | None:
    """Say in torch's words everything in which a tensor differs from what its guard expects."""
    expected = _TENSOR.match(text)
    if expected is None:
        return None
    source = expected["source"]
    if not isinstance(tensor, Tensor):
        return f"expected type of '{source}' to be a tensor type, but found {type(tensor)}"
    size, stride = _numbers(expected["size"]), _numbers(expected["stride"])
    found = []
    if type(tensor).__name__ != expected["kind"]:
        found.append(
            f"expected type of '{source}' to be {expected['kind']}, but found {type(tensor)}"
        )
    if str(tensor.dtype) != expected["dtype"]:
        found.append(f"dtype mismatch. expected {expected['dtype']}, actual {tensor.dtype}")
    if expected["device"] not in ("None", str(tensor.device.index)):
        found.append(f"device mismatch. expected {expected['device']}, actual {tensor.device}")
    if len(size) != tensor.ndim:
        found.append(f"rank mismatch. expected {len(size)}, actual {tensor.ndim}")
    else:
        found += [
            f"size mismatch at index {axis}. expected {old}, actual {new}"
            for axis, (old, new) in enumerate(zip(size, tensor.shape, strict=True))
            if old is not None and old != new
        ]
    if not found and str(tensor.requires_grad) != expected["grad"]:
        found.append(f"requires_grad mismatch. expected requires_grad={expected['grad']}")
    if (
        not found
        and len(stride) == tensor.ndim
        and any(
            old is not None and old != new for old, new in zip(stride, tensor.stride(), strict=True)
        )
    ):
        found.append(f"stride mismatch. expected {list(stride)}, actual {list(tensor.stride())}")
    if not found:
        keys = private.tensor_keys(tensor)
        found.append(f"dispatch key set mismatch. expected {expected['keys']}, actual {keys}")
    return f"tensor '{source}' {'; '.join(found)}"


def _numbers(text: str) -> list[int | None]:
    return [None if part == "None" else int(part) for part in text.split(", ") if part]
