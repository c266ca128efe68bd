"""Region: a module or function compiled on its own, under the user's name. PYTEST_DONT_REWRITE"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch import nn

from hotswap.adapters import names
from hotswap.compiler import private

_RESUMED = re.compile(private.RESUME + r"(.+?)_at_(\d+)$")


def unwrap(model: nn.Module) -> nn.Module:
    """Strip ``torch.compile``'s wrapper."""
    inner = model.__dict__.get("_modules", {}).get("_orig_mod")
    return unwrap(inner) if inner is not None else model


def canonical(name: str) -> str:
    """A module's path as the user knows it: without ``_orig_mod`` and PEFT's ``base_model.model.``."""
    path = names.canonical(name)
    return "" if path in {"_orig_mod", "base_model", "base_model.model"} else path


def graph_break(code: CodeType) -> tuple[str, int] | None:
    """The function and line after whose graph break this code goes on; None for any other code."""
    name, line = code.co_name, 0
    while found := _RESUMED.match(name):
        name, line = found[1], line or int(found[2])
    return (name, line) if line else None


class Place(NamedTuple):
    """How a region is called, and what stands before the paths of the modules inside it."""

    label: str
    prefix: str = ""


class Region:
    """A module or a function whose calls are counted apart; does not keep the module alive."""

    __slots__ = (
        "_counter",
        "_reads",
        "compiled",
        "eager",
        "empty",
        "hit",
        "holds_graph",
        "owner",
        "place",
    )

    def __init__(self, place: Place, owner: nn.Module | None) -> None:
        self.place = place
        self.owner = weakref.ref(owner) if owner is not None else _no_module
        self._counter, self._reads = itertools.count(), 0
        self.hit = self._counter.__next__  # one step in C, so that no thread waits for another
        self.eager = 0  # calls that found no compiled code that fits, and got none
        self.holds_graph = False
        self.empty = 0  # calls that ran compiled code without a graph
        self.compiled = False  # since the observer was installed

    def hits(self) -> int:
        """Calls that ran compiled code; to be asked by one thread at a time."""
        self._reads += 1
        return next(self._counter) - self._reads + 1

    @property
    def is_function(self) -> bool:
        """Whether it is no module's."""
        return self.owner is _no_module


def _no_module() -> nn.Module | None:
    return None


class Regions:
    """Every region met so far, each under a label of its own."""

    def __init__(self) -> None:
        self.known: dict[int | CodeType | str, Region] = {}  # a module is known by its id
        self._all: dict[Region, None] = {}  # a dead module's id may be another one's by now

    def __iter__(self) -> Iterator[Region]:
        return iter(list(self._all))

    def of(self, owner: nn.Module | None, code: CodeType | str, frame: FrameType | None) -> Region:
        """The region of a module's or a function's code; ``frame`` is where its name is looked for."""
        key = code if owner is None else id(owner)
        region = self.known.get(key)
        if region is None or region.owner() is not owner:
            region = self.known[key] = self._new(owner, code, frame)
            self._all[region] = None
        return region

    def _new(
        self, owner: nn.Module | None, code: CodeType | str, frame: FrameType | None
    ) -> Region:
        if owner is None:
            place = Place(_function_label(code))
            functions = (region for region in self if region.is_function)
            same = (region for region in functions if region.place == place)
            return next(same, None) or Region(place, None)
        path = _path_on_stack(owner, frame)
        label = path or type(owner).__name__
        taken = {region.place.label for region in self if region.owner() is not None}
        numbered = (f"{label} ({n})" for n in range(2, len(taken) + 3))
        label = next(name for name in (label, *numbered) if name not in taken)
        return Region(Place(label, f"{label}." if path else ""), owner)


def _function_label(code: CodeType | str) -> str:
    if isinstance(code, str):
        return code
    broken = graph_break(code)
    name = broken[0] if broken else code.co_name
    line = f":{code.co_firstlineno}" if name == "<lambda>" else ""
    return f"{name} ({PurePath(code.co_filename).name}{line})"


def _path_on_stack(owner: nn.Module, frame: FrameType | None) -> str:
    """A module's path in the outermost module that is being called; empty if that is itself."""
    outermost = owner
    while frame is not None:
        called = frame.f_locals.get("self") if frame.f_code.co_name == "_call_impl" else None
        outermost = called if isinstance(called, nn.Module) else outermost
        frame = frame.f_back
    paths = (path for path, module in outermost.named_modules() if module is owner)
    return canonical(next(paths, ""))


class Names:
    """What a watch calls the modules of its models; without models, every region is of interest."""

    def __init__(self, models: Iterable[nn.Module], named: Mapping[str, nn.Module]) -> None:
        self._models: list[nn.Module] = []
        self._places: dict[int, Place] = {}
        unnamed = [unwrap(model) for model in models]
        pairs = [(type(model).__name__, model) for model in unnamed]
        pairs += [(name, unwrap(model)) for name, model in named.items()]
        for name, model in pairs:
            self._models.append(model)
            prefix = "" if unnamed and len(pairs) == 1 else f"{name}."
            for path, module in model.named_modules():
                path = canonical(path)
                place = Place(name, prefix)  # also of what only wraps it, as PEFT does
                if path:
                    place = Place(f"{prefix}{path}", f"{prefix}{path}.")
                self._places.setdefault(id(module), place)

    def __bool__(self) -> bool:
        return bool(self._models)

    def of(self, region: Region) -> Place | None:
        """What a region is called; None for a module that has nothing to do with the models.

        A function is never left out: what it calls cannot be seen from outside.
        """
        owner = region.owner()
        if owner is None or not self._models:
            return region.place
        if (place := self._places.get(id(owner))) is not None:
            return place
        inside: set[Any] = set(owner.modules())
        return region.place if any(model in inside for model in self._models) else None

    def any_of(self, modules: Iterable[nn.Module]) -> bool:
        """Whether one of the modules belongs to the models."""
        return any(id(module) in self._places for module in modules)
