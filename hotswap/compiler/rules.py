"""What torch's text of a failed guard means: its cause, a sentence, and a remedy as code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hotswap.compiler.reasons import Cause, Reason

Reads = Literal["model", "input", "state"]
"""``state``: what is neither, such as a global variable or one that a function closes over."""

MADE_IN_INFERENCE = "it is an inference tensor"
_WARM = "warm up with a call like this one"
_MODES = {"Autograd": ("inference_mode", ""), "Autocast": ("autocast", "...")}
"""Kinds of dispatch keys that one mode alone switches, and how the mode is entered."""
_MISMATCH = r"mismatch.* expected (?P<old>\[.*?\]|\S+), actual (?P<new>\[.*?\]|[^\s;]+)"

_RULES = r"""
anything: environment
  GLOBAL_STATE changed: .*grad_mode
    gradients were on in one call and off in the other
    warm up in the same mode: with torch.no_grad(): model(...)
  GLOBAL_STATE changed: .*autocast
    one call ran under torch.autocast(), the other did not
    warm up in the same mode: with torch.autocast(...): model(...)
  GLOBAL_STATE changed: .*num_threads
    the number of threads changed
    call torch.set_num_threads() before the warm-up
  GLOBAL_STATE changed: ?(?P<what>.*)
    a global setting of torch changed ({what})
    set it before the warm-up
  torch_function_mode_stack|CURRENT_DEVICE|saved_tensors_hooks|functorch|DualLevel
    a torch mode (default device, function mode, tensor hooks) is not what it was at warm-up
    warm up under the same modes
  __import_torch\w*'\]\.(?P<what>\w+)
    a global of torch's own modules changed ({what})
    set it before the warm-up
  BACKEND_MATCH
    the model was compiled again with another backend object
    pass the same backend object: torch.compile(model, backend=backend)
model: other model
  layer_idx
    the code is specialised on layer_idx, so it fits one layer only
    call model(..., use_cache=False), or layer.compile(isolate_recompiles=True) for each layer
anything: input
  past_key_values|cache_position|is_initialized|\.layers\[\d+\]\.(?:keys|values|cumulative)
    the KV cache is in another state than at warm-up
    call model(..., use_cache=False), or use a StaticCache
  dispatch key set mismatch\. expected DispatchKeySet\((?P<old>.*?)\), actual DispatchKeySet\((?P<new>.*?)\)
    what happened shows in the keys that differ
    -
model: environment
  \.training\b
    train() or eval() was called after warm-up
    warm up in the same mode: model.eval()
model: swap
  \.scaling\[.* == (?P<old>[-\d.e+]+)
    the scaling alpha / rank = {old} was compiled in as a constant and has changed
    call hotswap.prepare(model, target_rank=...) before torch.compile
  \.scaling\[.* found <class '(?:float|int)'>
    the scaling was a tensor and is a Python number now, as after PEFT's set_scale()
    write it in place: hotswap.set_scale(model, scale)
  \.scaling\[.* (?:found <class 'torch\.Tensor'>|mismatch)|___check_type.*\.scaling
    the scaling became another kind of object after the model was compiled
    call hotswap.prepare(model, target_rank=...) before torch.compile, and only once
  lora_\w+.* size mismatch at index \d+\. expected (?P<old>\d+), actual (?P<new>\d+)
    the rank changed from {old} to {new}
    call hotswap.prepare(model, target_rank={new}) before torch.compile
  expected type of .*lora_\w+.* found <class 'torch\.Tensor'>
    an adapter of a larger rank came in, and PEFT replaced the parameter by a plain tensor
    call hotswap.prepare(model, target_rank=...) with the largest rank before torch.compile
  len\(.*(?:lora_\w+|scaling|peft_config)|___dict_contains\(.*lora_|not .*(?:lora_variant|lora_bias)
    an adapter was added or removed after the model was compiled
    load every adapter before torch.compile, or swap into one: hotswap.swap(model, adapter)
  active_adapter
    the active adapter changed, as by set_adapter(): each one is compiled apart
    swap into one slot instead: hotswap.swap(model, adapter)
  adapter_names
    a batch named its adapters in another order, or others: each order is compiled apart
    sort the rows of a batch by adapter, or use one adapter for a batch
  _adapters_disabled|_disable_adapters
    adapters were disabled or enabled: each state is compiled apart
    warm up both states, or use hotswap.swap(model, None) for the base model
  merged_adapters
    an adapter was merged or unmerged: each state is compiled apart
    do not merge a compiled model, or warm up both states
  lora_.*dtype MISMATCH
    the adapter's dtype changed from {old} to {new}
    cast the adapter's weights before the swap, not the live ones
  dtype MISMATCH
    a weight's dtype changed from {old} to {new}
    cast the model before torch.compile: model.to(dtype)
  device MISMATCH
    a weight moved from {old} to {new}
    move the model before torch.compile: model.to(device)
  size mismatch at index \d+\. expected (?P<old>\d+), actual (?P<new>\d+)
    a weight's size changed from {old} to {new}
    copy into the weight instead of replacing it: weight.copy_(new)
  (?:stride|strides) mismatch
    a weight's memory layout (strides) changed
    copy into the weight instead of replacing it: weight.copy_(new)
  lora_.*requires_grad mismatch
    an adapter was frozen or unfrozen after warm-up, as by set_adapter() or by enabling it
    call requires_grad_() before the warm-up
  requires_grad mismatch
    a weight was frozen or unfrozen after warm-up
    call requires_grad_() before the warm-up
  expected type of .* found (?P<new><class .*?>)
    a parameter was replaced by {new}
    copy into the parameter instead of replacing it: parameter.copy_(new)
  (?P<what>\.\w+(?:\[[^\]]*\])*) (?:==|is|!=) (?P<old>[^#]*)
    the model's attribute {what} was {old} when it was compiled and has changed
    set it before the warm-up
  ___dict_contains\('(?P<what>\w+)'
    {what} was added to the model or removed from it after it was compiled
    build the model completely before torch.compile
  ^not |___check_(?:type|obj)_id|___dict_contains|len\(|hasattr
    a part of the model was replaced, added or removed after it was compiled
    build the model completely before torch.compile
state: swap
  [ ](?:==|is|!=) (?P<old>[^#]*)
    {root} was {old} when it was compiled and has changed
    set it before the warm-up
  ^
    {root} was replaced or changed after it was compiled
    set it before the warm-up
input: input
  size mismatch at index (?P<axis>\d+)\. expected (?P<old>\d+), actual (?P<new>\d+)
    an input's shape changed in dimension {axis} from {old} to {new}
    warm up with a call like this one, or torch._dynamo.mark_dynamic(input, {axis})
  \.size\(\)|\.stride\(\)|\.storage_offset\(\)|Eq\(|Mod\(
    an input's shape is outside what was compiled as dynamic (0 and 1 are always special)
    warm up with a call like this one
  (?P<what>dtype|device) MISMATCH
    an input's {what} changed from {old} to {new}
    warm up with a call like this one
  (?P<what>requires_grad|stride|strides) mismatch
    an input's {what} changed
    warm up with a call like this one
  (?P<what>\w+(?:\[[^\]]*\])*) (?:==|is|!=) (?P<old>[^#]*)
    the argument {what} was {old} at warm-up and is something else now
    warm up with a call like this one
  ___check_(?:type|obj)_id|___dict_contains|len\(|hasattr|rank mismatch|expected type|^not |Duplicate
    the model was called with other arguments than at warm-up
    warm up with a call like this one
"""
"""What a guard reads and the cause; below them what its text looks like, a sentence and a remedy.

The first rule that fits counts. MISMATCH stands for torch's ``mismatch. expected .., actual ..``, a
remedy "-" for what ``_keys`` says.
"""


def _parsed(table: str) -> Iterator[tuple[Any, Any, str, str, str]]:
    """What a guard reads, the cause, pattern, sentence and remedy of each rule."""
    reads, cause = "", ""
    lines = iter(table.strip().splitlines())
    for line in lines:
        if not line.startswith(" "):
            reads, cause = line.split(": ")
        else:
            pattern = line[2:].replace("MISMATCH", _MISMATCH)
            yield reads, cause, pattern, next(lines).strip(), next(lines).strip()


_PARSED = tuple(_parsed(_RULES))


@dataclass(frozen=True, slots=True)
class Guarded:
    """A guard's text, what it reads, and the path on which that is found.

    A path in the text that leads through a module begins at that module, as ``self``.
    """

    text: str
    reads: Reads | None
    root: str = ""

    @classmethod
    def guess(cls, raw: str) -> Guarded:
        """Tell from the text alone."""
        text = normal(raw)
        through = re.search(r"_modules|_(?:parameters|buffers)\[|(?<![\w.'\"])self\b", text)
        return cls(text, "model" if through else "input")


def explain(guarded: Guarded) -> Reason:
    """Turn torch's text of one failed guard into a reason.

    What is not understood is quoted, under the cause ``unknown``.
    """
    text = guarded.text
    for reads, cause, pattern, sentence, remedy in _PARSED:
        if reads not in ("anything", guarded.reads) or not (
            found := re.search(pattern, text, re.S)
        ):
            continue
        if remedy == "-":
            return _keys(found["old"], found["new"], guarded)
        groups = {key: (value or "").strip() for key, value in found.groupdict().items()}
        groups["what"] = groups.get("what", "").lstrip(".")
        groups = {"new": "...", "root": guarded.root, **groups}
        modules = _modules(guarded) if cause == "swap" else ()
        told = sentence.format(**groups), remedy.format(**groups)
        return Reason(cause, *told, modules, (text,))
    return Reason("unknown", f"a guard failed: {text[:300]}", "", (), (text,))


def _modules(guarded: Guarded) -> tuple[str, ...]:
    if guarded.reads != "model":
        return ()
    path = ".".join(part for part in (guarded.root, where(guarded.text)) if part)
    return (path,) if path else ()


def where(text: str) -> str:
    """The path of the module that a guard reads, without PEFT's own modules; empty for the model."""
    parts = module_path(text.split(" is ")[0])
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    inside = (i for i, part in enumerate(parts) if part.startswith("lora_") or part == "base_layer")
    return ".".join(parts[: next(inside, len(parts))])


_MODULE = r"_modules(?:'\])?\['([^']+)'\]"


def module_path(source: str) -> list[str]:
    """The names of the modules on the way to what a guard reads."""
    return re.findall(_MODULE, source)


def reads_inside(source: str) -> bool:
    """Whether a guard reads something of a module, and not only which one it is."""
    return re.search(rf"{_MODULE}$", source) is None


def normal(raw: str) -> str:
    """Strip what torch puts around a guard's text, and its way to spell local variables."""
    text = re.sub(r"^\d+/\d+(?:_\d+)?: ", "", raw.strip())
    text = text.split("\nUser stack trace")[0]
    text = re.split(r"\s{2,}# ", text)[0].strip()
    text = re.sub(r"\bL\['(\w+)'\]", r"\1", text)
    return re.sub(r"^(tensor|expected type of) '(.+?)' (?=[a-z])", r"\1 \2 ", text)


def _keys(old: str, new: str, guarded: Guarded) -> Reason:
    """Tell from the dispatch keys that differ what happened to a tensor."""
    one, other = ({key.strip() for key in keys.split(",")} for keys in (old, new))
    differ = one ^ other
    cause: Cause = "input"
    modules: tuple[str, ...] = ()
    remedy = _WARM
    made_apart = "ADInplaceOrView" in differ or MADE_IN_INFERENCE in guarded.text
    if made_apart and guarded.reads == "model":
        cause, modules = "swap", _modules(guarded)
        message = "a weight was replaced by a tensor that was made inside torch.inference_mode()"
        remedy = "copy into the weight instead of replacing it: weight.copy_(new)"
    elif made_apart:
        message = "a tensor was made inside torch.inference_mode() in one call and outside it in the other"
        remedy = "make the inputs of warm-up and check in the same way"
    elif differ and (mode := next((m for m in _MODES if all(k.startswith(m) for k in differ)), "")):
        cause, (call, argument) = "environment", _MODES[mode]
        message = f"one call ran under torch.{call}(), the other did not"
        remedy = f"warm up in the same mode: with torch.{call}({argument}): model(...)"
    else:
        message = f"a tensor's dispatch keys changed: {', '.join(sorted(differ))}"
    return Reason(cause, message, remedy, modules, (guarded.text,))
