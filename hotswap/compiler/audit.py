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
        found += [
            Finding(
                prefix + module,
                "HSW307",
                "its forward hook was added after torch.compile, and compiled code never calls it",
                "add it before torch.compile",
            )
            for module in ignored_hooks(part.module)
        ]
    return sorted(set(found))


def _unfit(path: str, part: CompiledModule) -> Iterator[Finding]:
    if part.variants:
        return
    if not part.misfits:
        message = "it is to be compiled, but was not called yet"
        yield Finding(path, "HSW308", message, "run it once before the audit")
        return
    why = min(part.misfits, key=len)
    yield Finding(
        path,
        "HSW304",
        f"no compiled code fits it as it stands: {'; also '.join(reason.message for reason in why)}",
        why[0].remedy or "run it once more",
    )


def _guarded(prefix: str, part: CompiledModule, plan: SwapPlan | None) -> Iterator[Finding]:
    """What the guards of the fitting variants say of scalings and ranks."""
    ranks: dict[str, int] = {}
    for variant, code in part.variants:
        for guard in of_module(variant, code):
            name = prefix + where(guard.source)
            if pinned := _PINNED.search(guard.text):
                yield Finding(
                    name,
                    "HSW301",
                    f"the scaling alpha / rank = {pinned[1]} is compiled in as a constant: "
                    "an adapter with another one recompiles",
                    "call hotswap.prepare(model, target_rank=...) before torch.compile",
                )
            if rank := _RANK.search(guard.text):
                ranks[name] = int(rank[1])
    for name, planned in plan.modules.items() if plan is not None and part.variants else ():
        if not name.startswith(prefix):
            continue
        if name not in ranks:
            yield Finding(
                name,
                "HSW303",
                "the plan has an adapter for it, but compiled code has no LoRA layer there",
                "load the model with hotswap.load(base_model, plan, adapter) before torch.compile",
            )
        elif ranks[name] < planned.rank:
            yield Finding(
                name,
                "HSW302",
                f"it is compiled for rank {ranks[name]}, and the plan has rank {planned.rank}",
                "call hotswap.prepare(model, plan=plan) before torch.compile",
            )


def _shared(parts: dict[str, CompiledModule]) -> Iterator[Finding]:
    """Whether the limit of variants of a code object is nearly reached, or too low from the start."""
    by_code: defaultdict[CodeType, list[str]] = defaultdict(list)
    for path, part in parts.items():
        if part.code is not None:
            by_code[part.code].append(path)
    limit = private.recompile_limit()
    for code, paths in by_code.items():
        variants = private.variants(code)
        fits = [{id(variant) for variant, _ in parts[path].variants} for path in paths]
        if len(paths) > limit and any(one != fits[0] for one in fits):
            yield Finding(
                paths[0],
                "HSW306",
                f"it and {len(paths) - 1} more share one code object that is compiled for each of "
                f"them, and recompile_limit={limit}: the others run eagerly",
                "call layer.compile(isolate_recompiles=True) for each layer, or use_cache=False",
            )
        elif limit - _NEARLY <= len(variants):
            yield Finding(
                paths[0] or "the model",
                "HSW305",
                f"{len(variants)} variants are compiled, and recompile_limit={limit}: "
                "past it every other call runs eagerly",
                "warm up with fewer shapes, mark them dynamic, or raise "
                "torch._dynamo.config.recompile_limit",
            )


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
