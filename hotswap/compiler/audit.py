"""Which guards of compiled code a swap would break, without swapping. PYTEST_DONT_REWRITE"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from torch import nn

from hotswap.adapters.plan import SwapPlan
from hotswap.compiler import private
from hotswap.compiler.compiled import CompiledModule, compiled_modules, ignored_hooks
from hotswap.compiler.guards import nearest, of_module
from hotswap.compiler.reasons import Reason
from hotswap.compiler.rules import where
from hotswap.errors import NotCompiledError
from hotswap.findings import Finding

_PINNED = re.compile(r"\.scaling\[.* == ([-\d.e+]+)")
_RANK = re.compile(r"lora_(?:embedding_)?A.*size=\[(\d+),")
_NEARLY = 2
_TOLD = {
    "HSW301": (
        "the scaling alpha / rank = {} is compiled in as a constant: an adapter with another one recompiles",
        "call hotswap.prepare(model, target_rank=...) before torch.compile",
    ),
    "HSW302": (
        "it is compiled for rank {}, and the plan has rank {}",
        "call hotswap.prepare(model, plan=plan) before torch.compile",
    ),
    "HSW303": (
        "the plan has an adapter for it, but compiled code has no LoRA layer there",
        "load the model with hotswap.load(base_model, plan, adapter) before torch.compile",
    ),
    "HSW305": (
        "{} variants are compiled, and recompile_limit={}: past it every other call runs eagerly",
        "warm up with fewer shapes, mark them dynamic, or raise torch._dynamo.config.recompile_limit",
    ),
    "HSW306": (
        "it and {} more share one code object that is compiled for each of them, and "
        "recompile_limit={}: the others run eagerly",
        "call layer.compile(isolate_recompiles=True) for each layer, or use_cache=False",
    ),
    "HSW307": (
        "its forward hook was added after torch.compile, and compiled code never calls it",
        "add it before torch.compile",
    ),
}
"""Code → message and remedy."""


def audit_guards(compiled_model: nn.Module, plan: SwapPlan | None = None) -> list[Finding]:
    """List what in the compiled code of a model a swap (within the plan, if one is given) would break.

    Nothing is run and nothing is changed. A prepared model that was called once audits clean; a model
    that is not compiled, or was not called yet, does not.
    """
    modules = compiled_modules(compiled_model)
    if not modules:
        remedy = "call torch.compile(model) and run it once before the audit"
        return [Finding("the model", "HSW308", "nothing in the model is compiled", remedy)]
    parts = {path: CompiledModule.of(module) for path, module in modules.items()}
    found = [*_shared(parts)]
    for path, part in parts.items():
        prefix = f"{path}." if path else ""
        found += _unfit(path or "the model", part)
        found += _guarded(prefix, part, plan)
        found += [_finding(prefix + name, "HSW307") for name in ignored_hooks(part.module)]
    return sorted(set(found))


def _finding(where: str, code: str, *values: object) -> Finding:
    message, remedy = _TOLD[code]
    return Finding(where, code, message.format(*values), remedy)


def _unfit(path: str, part: CompiledModule) -> Iterator[Finding]:
    if part.misfits and not part.variants:
        why = min(part.misfits, key=len)
        reasons = "; also ".join(reason.message for reason in why)
        message = f"no compiled code fits it as it stands: {reasons}"
        yield Finding(path, "HSW304", message, why[0].remedy or "run it once more")
    elif not part.variants:
        message = "it is to be compiled, but was not called yet"
        yield Finding(path, "HSW308", message, "run it once before the audit")


def _guarded(prefix: str, part: CompiledModule, plan: SwapPlan | None) -> Iterator[Finding]:
    """What the guards of the fitting variants say of scalings and ranks."""
    ranks: dict[str, int] = {}
    for variant, code in part.variants:
        for guard in of_module(variant, code):
            name = prefix + where(guard.source)
            if pinned := _PINNED.search(guard.text):
                yield _finding(name, "HSW301", pinned[1])
            if rank := _RANK.search(guard.text):
                ranks[name] = int(rank[1])
    for name, planned in plan.modules.items() if plan is not None and part.variants else ():
        if name.startswith(prefix) and name not in ranks:
            yield _finding(name, "HSW303")
        elif name.startswith(prefix) and ranks[name] < planned.rank:
            yield _finding(name, "HSW302", ranks[name], planned.rank)


def _shared(parts: dict[str, CompiledModule]) -> Iterator[Finding]:
    """Whether the limit of variants of a code object is nearly reached, or too low from the start."""
    by_code: defaultdict[CodeType, list[str]] = defaultdict(list)
    for path, part in parts.items():
        if part.code is not None:
            by_code[part.code].append(path)
    limit = private.recompile_limits()["recompile_limit"]
    for code, paths in by_code.items():
        count = len(private.variants(code))
        fits = [{id(variant) for variant, _ in parts[path].variants} for path in paths]
        if len(paths) > limit and any(one != fits[0] for one in fits):
            yield _finding(paths[0], "HSW306", len(paths) - 1, limit)
        elif limit - _NEARLY <= count:
            yield _finding(paths[0] or "the model", "HSW305", count, limit)


def would_recompile(
    model: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Reason, ...]:
    """Say why a call of a compiled model or function would compile again, without running it.

    Empty: it would not. The answer is for the grad mode, autocast and threads in force. Raises
    NotCompiledError for what is not compiled, or was not called yet, and for a model of which only parts
    are: what they are called with is known only by running it.
    """
    if isinstance(model, nn.Module) and "" not in (parts := compiled_modules(model)):
        listed = ", ".join(list(parts)[:3])
        raise NotCompiledError(
            f"only parts of the model are compiled ({listed}), and what they are called with is known "
            "only by running it: call would_recompile() for one part, or run the model once under "
            "watch_compiles() and torch.compiler.set_stance('eager_on_recompile'), which compiles nothing"
            if parts
            else "the model is not compiled; call torch.compile(model) first"
        )
    call = private.call_of(model, args, kwargs)
    variants = private.variants(call.code) if call.code is not None else []
    if not variants:
        raise NotCompiledError("nothing was compiled for the model yet; call it once first")
    return nearest(variants, call)
