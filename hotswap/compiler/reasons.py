"""Reason: why compiled code did not fit a call; guard text → cause, sentence, remedy as code."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

Cause = Literal["swap", "input", "environment", "other model", "unknown"]
SEVERITY: tuple[Cause, ...] = ("swap", "unknown", "other model", "environment", "input")
"""The worst first: the first cause that occurs is the cause of a recompile."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One change that compiled code did not fit; ``raw`` is torch's text of each failed guard."""

    cause: Cause
    message: str
    remedy: str
    modules: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()

    def inside(self, prefix: str) -> Reason:
        """The same with the modules' paths as seen from further outside."""
        return replace(self, modules=tuple(prefix + module for module in self.modules))

    def __str__(self) -> str:
        text = f"{some(self.modules)}: {self.message}" if self.modules else self.message
        return f"{text}; {self.remedy}" if self.remedy else text


@dataclass(frozen=True, slots=True)
class _Rule:
    """``reads``: what the guard reads, the model or an input; None where it does not matter."""

    reads: Literal["model", "input"] | None
    pattern: re.Pattern[str]
    cause: Cause
    message: str
    remedy: str


def _rule(
    reads: Literal["model", "input"] | None, pattern: str, cause: Cause, message: str, remedy: str
) -> _Rule:
    return _Rule(reads, re.compile(pattern, re.S), cause, message, remedy)


_PREPARE = "call hotswap.prepare(model, target_rank={new}) before torch.compile"
_WARM = "warm up with a call like this one"
_AUTOCAST = "one call ran under torch.autocast(), the other did not"
_MISMATCH = r"{} mismatch.* expected (?P<old>\[.*?\]|\S+), actual (?P<new>\[.*?\]|[^\s;]+)"

_RULES: tuple[_Rule, ...] = (
    _rule(
        None,
        r"GLOBAL_STATE changed: .*grad_mode",
        "environment",
        "gradients were on in one call and off in the other",
        "warm up in the same mode: with torch.no_grad(): model(...)",
    ),
    _rule(
        None,
        r"GLOBAL_STATE changed: .*autocast",
        "environment",
        _AUTOCAST,
        "warm up in the same mode: with torch.autocast(...): model(...)",
    ),
    _rule(
        None,
        r"GLOBAL_STATE changed: .*num_threads",
        "environment",
        "the number of threads changed",
        "call torch.set_num_threads() before the warm-up",
    ),
    _rule(
        None,
        r"GLOBAL_STATE changed: ?(?P<what>.*)",
        "environment",
        "a global setting of torch changed ({what})",
        "set it before the warm-up",
    ),
    _rule(
        None,
        r"torch_function_mode_stack|CURRENT_DEVICE|saved_tensors_hooks|functorch|DualLevel",
        "environment",
        "a torch mode (default device, function mode, saved-tensor hooks) is not what it was at warm-up",
        "warm up under the same modes",
    ),
    _rule(
        None,
        r"BACKEND_MATCH",
        "environment",
        "the model was compiled again with another backend object",
        "pass the same backend object: torch.compile(model, backend=backend)",
    ),
    _rule(
        "model",
        r"layer_idx",
        "other model",
        "the code is specialised on layer_idx, so it fits one layer only",
        "call model(..., use_cache=False), or layer.compile(isolate_recompiles=True) for each layer",
    ),
    _rule(
        None,
        r"past_key_values|cache_position|is_initialized|\.layers\[\d+\]\.(?:keys|values|cumulative)",
        "input",
        "the KV cache is in another state than at warm-up",
        "call model(..., use_cache=False), or use a StaticCache",
    ),
    _rule(
        None,
        r"dispatch key set mismatch\. expected DispatchKeySet\((?P<old>.*?)\), "
        r"actual DispatchKeySet\((?P<new>.*?)\)",
        "input",
        "",  # which keys differ tells what happened: see _keys
        "",
    ),
    _rule(
        "model",
        r"\.scaling\[.* == (?P<old>[-\d.e+]+)",
        "swap",
        "the scaling alpha / rank = {old} was compiled in as a constant and has changed",
        "call hotswap.prepare(model, target_rank=...) before torch.compile",
    ),
    _rule(
        "model",
        r"\.scaling\[.* found <class '(?:float|int)'>",
        "swap",
        "the scaling was a tensor and is a Python number now, as after PEFT's set_scale()",
        "write it in place: hotswap.set_scale(model, scale)",
    ),
    _rule(
        "model",
        r"\.scaling\[.* found <class 'torch\.Tensor'>|___check_type.*\.scaling|\.scaling\[.* mismatch",
        "swap",
        "the scaling became another kind of object after the model was compiled",
        "call hotswap.prepare(model, target_rank=...) before torch.compile, and only once",
    ),
    _rule(
        "model",
        r"lora_\w+.* size mismatch at index \d+\. expected (?P<old>\d+), actual (?P<new>\d+)",
        "swap",
        "the rank changed from {old} to {new}",
        _PREPARE,
    ),
    _rule(
        "model",
        r"expected type of .*lora_\w+.* found <class 'torch\.Tensor'>",
        "swap",
        "an adapter of a larger rank came in, and PEFT replaced the parameter by a plain tensor",
        "call hotswap.prepare(model, target_rank=...) with the largest rank before torch.compile",
    ),
    _rule(
        "model",
        r"len\(.*(?:lora_\w+|scaling|peft_config|lora_variant)|___dict_contains\(.*lora_"
        r"|not .*(?:lora_variant|lora_bias)",
        "swap",
        "an adapter was added or removed after the model was compiled",
        "load every adapter before torch.compile, or swap into one: hotswap.swap(model, adapter)",
    ),
    _rule(
        "model",
        r"active_adapter",
        "swap",
        "the active adapter changed, as by set_adapter(): each one is compiled apart",
        "swap into one slot instead: hotswap.swap(model, adapter)",
    ),
    _rule(
        "model",
        r"_adapters_disabled|_disable_adapters",
        "swap",
        "adapters were disabled or enabled: each state is compiled apart",
        "warm up both states, or use hotswap.swap(model, None) for the base model",
    ),
    _rule(
        "model",
        r"merged_adapters",
        "swap",
        "an adapter was merged or unmerged: each state is compiled apart",
        "do not merge a compiled model, or warm up both states",
    ),
    _rule(
        "model",
        r"\.training(?: ==|$)|\.training\b",
        "environment",
        "train() or eval() was called after warm-up",
        "warm up in the same mode: model.eval()",
    ),
    _rule(
        "model",
        "lora_.*" + _MISMATCH.format("dtype"),
        "swap",
        "the adapter's dtype changed from {old} to {new}",
        "cast the adapter's weights before the swap, not the live ones",
    ),
    _rule(
        "model",
        _MISMATCH.format("dtype"),
        "swap",
        "a weight's dtype changed from {old} to {new}",
        "cast the model before torch.compile: model.to(dtype)",
    ),
    _rule(
        "model",
        _MISMATCH.format("device"),
        "swap",
        "a weight moved from {old} to {new}",
        "move the model before torch.compile: model.to(device)",
    ),
    _rule(
        "model",
        r"size mismatch at index \d+\. expected (?P<old>\d+), actual (?P<new>\d+)",
        "swap",
        "a weight's size changed from {old} to {new}",
        "copy into the weight instead of replacing it: weight.copy_(new)",
    ),
    _rule(
        "model",
        r"(?:stride|strides) mismatch",
        "swap",
        "a weight's memory layout (strides) changed",
        "copy into the weight instead of replacing it: weight.copy_(new)",
    ),
    _rule(
        "model",
        r"lora_.*requires_grad mismatch",
        "swap",
        "an adapter was frozen or unfrozen after warm-up, as by set_adapter() or by enabling it",
        "call requires_grad_() before the warm-up",
    ),
    _rule(
        "model",
        r"requires_grad mismatch",
        "swap",
        "a weight was frozen or unfrozen after warm-up",
        "call requires_grad_() before the warm-up",
    ),
    _rule(
        "model",
        r"expected type of .* found (?P<new><class .*?>)",
        "swap",
        "a parameter was replaced by {new}",
        "copy into the parameter instead of replacing it: parameter.copy_(new)",
    ),
    _rule(
        "model",
        r"(?P<what>\.\w+(?:\[[^\]]*\])*) (?:==|is|!=) (?P<old>[^#]*)",
        "swap",
        "the model's attribute {what} was {old} when it was compiled and has changed",
        "set it before the warm-up",
    ),
    _rule(
        "model",
        r"___dict_contains\('(?P<what>\w+)'",
        "swap",
        "{what} was added to the model or removed from it after it was compiled",
        "build the model completely before torch.compile",
    ),
    _rule(
        "model",
        r"___check_(?:type|obj)_id|___dict_contains|len\(|hasattr|^not ",
        "swap",
        "a part of the model was replaced, added or removed after it was compiled",
        "build the model completely before torch.compile",
    ),
    _rule(
        "input",
        r"size mismatch at index (?P<axis>\d+)\. expected (?P<old>\d+), actual (?P<new>\d+)",
        "input",
        "an input's shape changed in dimension {axis} from {old} to {new}",
        _WARM + ", or torch._dynamo.mark_dynamic(input, {axis})",
    ),
    _rule(
        "input",
        r"\.size\(\)|\.stride\(\)|\.storage_offset\(\)|Eq\(|Mod\(",
        "input",
        "an input's shape is outside what was compiled as dynamic (0 and 1 are always special)",
        _WARM,
    ),
    _rule(
        "input",
        _MISMATCH.format("(?P<what>dtype|device)"),
        "input",
        "an input's {what} changed from {old} to {new}",
        _WARM,
    ),
    _rule(
        "input",
        r"(?P<what>requires_grad|stride|strides) mismatch",
        "input",
        "an input's {what} changed",
        _WARM,
    ),
    _rule(
        "input",
        r"(?P<what>\w+(?:\[[^\]]*\])*) (?:==|is|!=) (?P<old>[^#]*)",
        "input",
        "the argument {what} was {old} at warm-up and is something else now",
        _WARM,
    ),
    _rule(
        "input",
        r"___check_(?:type|obj)_id|___dict_contains|len\(|hasattr|rank mismatch|expected type|^not "
        r"|Duplicate",
        "input",
        "the model was called with other arguments than at warm-up",
        _WARM,
    ),
)


def explain(
    raw: str, *, owners: Collection[str] = ("self",), inputs: Collection[str] | None = None
) -> Reason:
    """Turn torch's text of one failed guard into a reason.

    ``owners`` names the locals of the compiled frame that are modules; ``inputs`` the other ones, if
    they are known. What is not understood is quoted, under the cause ``unknown``.
    """
    text = _normal(raw)
    reads = _reads(text, owners, inputs)
    for rule in _RULES:
        if rule.reads not in (None, reads) or not (found := rule.pattern.search(text)):
            continue
        if "DispatchKeySet" in rule.pattern.pattern:
            return _keys(found["old"], found["new"], text)
        groups = {key: (value or "").strip() for key, value in found.groupdict().items()}
        groups["what"] = groups.get("what", "").lstrip(".")
        path = where(text) if reads == "model" and rule.cause == "swap" else ""
        modules = (path,) if path else ()
        remedy = rule.remedy.format(**{"new": "...", **groups})
        return Reason(rule.cause, rule.message.format(**groups), remedy, modules, (text,))
    return Reason("unknown", f"a guard failed: {text[:300]}", "", (), (text,))


def some(names: Collection[str]) -> str:
    """Name two, and count the others."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(list(names)[:2]) + more


def group(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Join the reasons that say the same of different modules; the worst cause comes first."""
    found: dict[tuple[Cause, str, str], list[Reason]] = {}
    for reason in reasons:
        found.setdefault((reason.cause, reason.message, reason.remedy), []).append(reason)
    joined = [
        Reason(
            *key,
            modules=tuple(sorted({module for one in same for module in one.modules}, key=_natural)),
            raw=tuple(text for one in same for text in one.raw),
        )
        for key, same in found.items()
    ]
    return tuple(sorted(joined, key=lambda reason: SEVERITY.index(reason.cause)))


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort ``layers.10`` behind ``layers.2``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def where(text: str) -> str:
    """The path of the module that a guard reads, without PEFT's own modules; empty for the model."""
    parts = module_path(text.split(" is ")[0])
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    inside = (i for i, part in enumerate(parts) if part.startswith("lora_") or part == "base_layer")
    return ".".join(parts[: next(inside, len(parts))])


def module_path(source: str) -> list[str]:
    """The names of the modules on the way to what a guard reads."""
    return re.findall(r"_modules(?:'\])?\['([^']+)'\]", source)


def _normal(raw: str) -> str:
    text = re.sub(r"^\d+/\d+(?:_\d+)?: ", "", raw.strip())
    text = text.split("\nUser stack trace")[0]
    text = re.split(r"\s{2,}# ", text)[0].strip()
    text = re.sub(r"\bL\['(\w+)'\]", r"\1", text)
    return re.sub(r"^(tensor|expected type of) '(.+?)' (?=[a-z])", r"\1 \2 ", text)


def _reads(
    text: str, owners: Collection[str], inputs: Collection[str] | None
) -> Literal["model", "input"] | None:
    if "_modules" in text or "_parameters[" in text or "_buffers[" in text:
        return "model"
    roots = set(re.findall(r"(?<![\w.'\"])([A-Za-z_]\w*)", text))
    if roots & set(owners):
        return "model"
    if inputs is None or roots & set(inputs):
        return "input"
    return None


def _keys(old: str, new: str, text: str) -> Reason:
    """Tell from the dispatch keys that differ what happened to a tensor."""
    one, other = ({key.strip() for key in keys.split(",")} for keys in (old, new))
    differ = one ^ other
    if "ADInplaceOrView" in differ:
        return Reason(
            "input",
            "a tensor was made inside torch.inference_mode() in one call and outside it in the other",
            "make the inputs of warm-up and check in the same way",
            raw=(text,),
        )
    if differ and all(key.startswith("Autograd") for key in differ):
        return Reason(
            "environment",
            "one call ran under torch.inference_mode(), the other did not",
            "warm up in the same mode: with torch.inference_mode(): model(...)",
            raw=(text,),
        )
    if differ and all(key.startswith("Autocast") for key in differ):
        remedy = "warm up in the same mode: with torch.autocast(...): model(...)"
        return Reason("environment", _AUTOCAST, remedy, raw=(text,))
    message = f"a tensor's dispatch keys changed: {', '.join(sorted(differ))}"
    return Reason("input", message, _WARM, raw=(text,))
