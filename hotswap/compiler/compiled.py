"""What is compiled in a model already, and how. PYTEST_DONT_REWRITE"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import nn

from hotswap.compiler import private
from hotswap.compiler.guards import module_reasons, of_module
from hotswap.compiler.reasons import Reason
from hotswap.compiler.regions import canonical, unwrap
from hotswap.compiler.rules import module_path, reads_inside

Walked = Sequence[tuple[str, nn.Module]]
"""What ``walk`` gives of a model, so that it need not be walked twice."""


def walk(model: nn.Module) -> Walked:
    """List what ``named_modules()`` gives, without a generator per level, in half the time."""
    found: list[tuple[str, nn.Module]] = [("", model)]
    seen = {id(model)}

    def inside(module: nn.Module, prefix: str) -> None:
        for key, child in module._modules.items():
            if child is None or id(child) in seen:
                continue
            seen.add(id(child))
            found.append((prefix + key, child))
            if child._modules:
                inside(child, f"{prefix}{key}.")

    inside(model, "")
    return found


def instances(walked: Walked, cls: type) -> Walked:
    """Those that are instances of a class; each type is asked once: of an abstract class that is slow."""
    wanted = {kind for kind in {type(module) for _, module in walked} if issubclass(kind, cls)}
    return [pair for pair in walked if type(pair[1]) in wanted] if wanted else []


def compiled_parts(model: nn.Module, *, walked: Walked | None = None) -> list[str]:
    """Describe each compiled part of a model, empty when there is none.

    Seen are ``torch.compile(module)`` wrappers, ``module.compile()``, a ``forward`` replaced by a
    compiled one, and what transformers' ``generate()`` compiled, on the model and on every submodule. A
    wrapper or a function that holds the model from outside cannot be seen.
    """
    parts = _parts(walk(model) if walked is None else walked)
    return [f"{name or 'the model'} {how}" for name, how, _ in parts]


def compiled_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Map the path of each compiled part to its module or wrapper; "" is the model itself."""
    return {canonical(name): module for name, _, module in _parts(walk(model))}


def _parts(walked: Walked) -> Iterator[tuple[str, str, nn.Module]]:
    kinds = {type(module) for _, module in walked}
    compiled = {kind for kind in kinds if _is_compiled(kind.forward)}
    for name, module in walked:
        own = module.__dict__
        if "_orig_mod" in own.get("_modules", ()):
            yield name, "is wrapped by torch.compile", module
        elif own.get("_compiled_call_impl") is not None:
            yield name, "was compiled in place by .compile()", module
        elif own.get("_compiled_call") is not None:
            yield name, "was compiled by its own generate()", module
        elif ("forward" in own or type(module) in compiled) and _is_compiled(module.forward):
            yield name, "has a compiled forward", module


def _is_compiled(function: Any) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable")


@dataclass(frozen=True, slots=True)
class CompiledModule:
    """The compiled code of a module that is compiled on its own.

    ``variants`` are those that fit the module as it stands, whatever it may be called with, each with
    the code that it replaces; ``misfits`` says of each other variant why it does not fit.
    """

    module: nn.Module
    code: CodeType | None
    variants: list[tuple[Any, CodeType]]
    misfits: list[tuple[Reason, ...]]

    @classmethod
    def of(cls, module: nn.Module) -> CompiledModule:
        """Look up what was compiled for a module (or its wrapper); nothing is, before it was called."""
        found = cls(unwrap(module), private.call_of(module, (), {}).code, [], [])
        if found.code is not None:
            found._add(found.code)
        return found

    def _add(self, code: CodeType) -> None:
        for variant in private.variants(code):
            if why := module_reasons(variant, code, self.module):
                self.misfits.append(why)
                continue
            self.variants.append((variant, code))
            for rest in private.continuations(variant):
                if all(rest is not known for _, known in self.variants):
                    self._add(rest)


def ignored_hooks(module: nn.Module) -> list[str]:
    """Name the modules inside with a forward hook that the compiled code, which fits, never calls.

    torch has no guards on hooks that it did not meet when it compiled. A module of which it reads
    nothing is called as it is, hooks and all: the graph breaks there.
    """
    hooked = [
        path
        for path, inner in unwrap(module).named_modules()
        if path and (inner._forward_hooks or inner._forward_pre_hooks)
    ]
    found: set[str] = set()
    for variant, code in CompiledModule.of(module).variants if hooked else ():
        sources = [guard.source for guard in of_module(variant, code)]
        traced = {".".join(module_path(source)) for source in sources if reads_inside(source)}
        called = {".".join(module_path(source)) for source in sources if "_forward_" in source}
        found |= {canonical(path) for path in hooked if path in traced - called}
    return sorted(found)
