"""Which guards of compiled code fail for a call, and why. PYTEST_DONT_REWRITE"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import CodeType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from hotswap.compiler import private
from hotswap.compiler.reasons import Reason, group
from hotswap.compiler.rules import MADE_IN_INFERENCE, Guarded, Reads, explain, normal

_TENSOR = re.compile(
    r"check_tensor\((?P<source>.*?), (?P<kind>\w+), (?P<keys>DispatchKeySet\(.*?\)), (?P<dtype>[\w.]+), "
    r"device=(?P<device>\S+), requires_grad=(?P<grad>\w+), size=\[(?P<size>.*?)\], "
    r"stride=\[(?P<stride>.*?)\]"
)

_DEVICES = ("CPU", "CUDA", "Meta", "MPS", "XPU", "HPU")
"""Dispatch keys that name a device; torch's guards spell the index only."""


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
    names = private.scope(variant, values)
    for guard in guards:
        if guard.text.startswith("___check_global_state"):
            continue  # it is the first guard, and only torch's own text says what changed
        try:
            value = eval(guard.source, *names)  # noqa: S307 (torch's own text)
            holds = guard.check(value)
        except Exception:  # noqa: S112 (not to be evaluated alone: the first failure stands for it)
            continue
        if holds is False:
            yield guard, _tensor_mismatch(guard.text, value) or guard.text


def of_module(variant: Any, code: CodeType) -> list[private.Guard]:
    """List the guards that read the module whose method the code is."""
    _, root = private.receiver(code)
    return [guard for guard in private.guards(variant) if root in guard.source]


def modules_read(call: private.Call, values: dict[str, Any]) -> Iterator[nn.Module]:
    """The modules that compiled code reads, wherever it holds them, also after its graph breaks."""
    left, seen = [call.code], set()
    while left:
        if (code := left.pop()) is None or code in seen:
            continue
        seen.add(code)
        for variant in private.variants(code):
            names = private.scope(variant, values)
            for source in {guard.source for guard in private.guards(variant)}:
                with suppress(Exception):  # an argument: it holds no module that is watched
                    if isinstance(value := eval(source, *names), nn.Module):  # noqa: S307 (torch's)
                        yield value
            left += private.continuations(variant)


def modules_read_by(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that the compiled code of a module reads, wherever it holds them."""
    call = private.call_of(module, (), {})
    if call.code is not None and call.owner is not None:
        yield from modules_read(call, private.state_of(call.owner, call.code, call.closure))


def module_reasons(variant: Any, code: CodeType, owner: nn.Module) -> tuple[Reason, ...]:
    """Explain the guards on a module's own state that fail, whatever it may be called with."""
    values = private.state_of(owner, code, {})
    found = _failing(variant, of_module(variant, code), values)
    texts = (text for _, text in found)
    return _explained(texts, variant, values, private.Call(owner, code))


def nearest(variants: list[Any], call: private.Call) -> tuple[Reason, ...]:
    """Explain against the variant that needs the fewest changes; none if one fits or none is there.

    A variant of another layer that shares the code comes last: no change makes it fit.
    """
    values = call.values() if variants else {}

    def distance(found: tuple[Reason, ...]) -> tuple[bool, int, int]:
        others = any(reason.cause == "other model" for reason in found)
        return others, len(found), sum(len(reason.raw) for reason in found)

    explained = (
        _explained(failing(variant, values), variant, values, call) for variant in variants
    )
    return min(explained, key=distance, default=())


def _explained(
    texts: Iterable[str], variant: Any, values: dict[str, Any], call: private.Call
) -> tuple[Reason, ...]:
    """Explain failed guards by what their paths lead through: a module, or else an argument."""
    outer, inner = private.scope(variant, values)
    names = {**values, "G": inner["G"]}
    return group(explain(_guarded(normal(text), outer, names, call)) for text in texts)


_PATH = re.compile(
    r"(?<![\w.'\"])(?:G\['(?P<held>\w+)'\]|(?P<name>[A-Za-z_]\w*))(?P<rest>(?:\.\w+|\[(?:'[^']*'|\d+)\])*)"
)
_STEP = re.compile(r"\.\w+|\[.*?\]")


def _guarded(
    text: str, outer: dict[str, Any], names: dict[str, Any], call: private.Call
) -> Guarded:
    """Find what a guard reads by following its paths: through a module, or else to an argument."""
    found: dict[Reads, str] = {}

    def follow(match: re.Match[str]) -> str:
        """Let a path that leads through a module begin at the outermost one."""
        if match["name"] and match["name"] not in names:
            return match[0]
        start = match.start()
        ends = [match.end() - len(match["rest"])]
        ends += [ends[0] + step.end() for step in _STEP.finditer(match["rest"])]
        spoken = match["held"] or match["name"]
        if spoken == "fn" and call.owner is None:  # what torch wrapped, such as a partial
            spoken = type(names["fn"]).__name__
        for end in ends:
            path = text[start:end]
            try:
                value = eval(path, outer, names)  # noqa: S307 (torch's own text)
            except Exception:
                break
            if isinstance(value, nn.Module):
                root = spoken + text[ends[0] : end] if value is not call.owner else ""
                found.setdefault("model", root)
                return "self" + text[end : match.end()]
        closed = call.code is not None and match["name"] in call.code.co_freevars
        is_state = match["held"] or closed or match["name"] in ("self", "fn")
        found.setdefault("state" if is_state else "input", spoken + match["rest"])
        return match[0]

    begun = _PATH.sub(follow, text)
    reads = next((reads for reads in get_args(Reads) if reads in found), None)
    return Guarded(begun, reads, found.get(reads, "") if reads else "")


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
    was_on = next((kind for kind in _DEVICES if re.search(rf"\b{kind}\b", expected["keys"])), "")
    old = was_on.lower() + ("" if expected["device"] == "None" else f":{expected['device']}")
    if old != (str(tensor.device) if ":" in old else tensor.device.type):
        found.append(f"device mismatch. expected {old}, actual {tensor.device}")
    if len(size) != tensor.ndim:
        found.append(f"rank mismatch. expected {len(size)}, actual {tensor.ndim}")
    else:
        found += [
            f"size mismatch at index {axis}. expected {size[axis]}, actual {tensor.shape[axis]}"
            for axis in _changed(size, tensor.shape)
        ]
    if not found and str(tensor.requires_grad) != expected["grad"]:
        found.append(f"requires_grad mismatch. expected requires_grad={expected['grad']}")
    if not found and _changed(stride, tensor.stride()):
        found.append(f"stride mismatch. expected {list(stride)}, actual {list(tensor.stride())}")
    if not found:
        keys = private.tensor_keys(tensor)
        found.append(f"dispatch key set mismatch. expected {expected['keys']}, actual {keys}")
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            found.append(MADE_IN_INFERENCE)
    return f"tensor '{source}' {'; '.join(found)}"


def _changed(old: Sequence[int | None], new: Sequence[int]) -> list[int]:
    """The axes that differ; None stands for any number."""
    pairs = enumerate(zip(old, new, strict=False))
    return [axis for axis, (one, other) in pairs if one is not None and one != other]


def _numbers(text: str) -> list[int | None]:
    return [None if part == "None" else int(part) for part in text.split(", ") if part]
