"""What an expression can be worth to the linter: a constant, a container, a model, or something unknown."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hotswap.lint.typestate import Shape

DENOISERS = frozenset({"unet", "transformer"})
"""The component of a pipeline that adapters change: each pipeline has one of the two."""
Cell: TypeAlias = "tuple[Any, tuple[str, ...]]"
"""The call that has bound the names around a function, and these names."""
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True, slots=True)
class Const:
    """A Python constant; ``drawn_from`` are the numbers of the list that it was picked out of."""

    value: Any
    drawn_from: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Sort:
    """Something of which only the sort is known: a number, a tensor, a gradient mode."""

    name: str


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A whole number that grows: a counter that has counted up to ``least``, or further."""

    least: int


NUMBER = Sort("number")
TENSOR = Sort("tensor")
IN_TIME = Sort("in time")
"""The truth of a condition that does not hold at first, and does some time later, or the other way round."""


@dataclass(frozen=True, slots=True)
class Seq:
    """A list, tuple or set whose elements are known."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Dict:
    """A dictionary with constant keys."""

    items: Mapping[Any, Value]


@dataclass(frozen=True, slots=True)
class Ref:
    """Something imported, by its qualified name: ``torch.compile``."""

    name: str


@dataclass(frozen=True, slots=True)
class Module:
    """Another module of the program; ``home`` is the frame with its names."""

    home: int
    name: str


@dataclass(frozen=True, slots=True)
class Obj:
    """An object with an identity: a model, a pipeline, or an instance of a class in this file."""

    oid: int
    wrapped: bool = False
    """Seen through the wrapper that ``torch.compile`` returned."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something inside a model that has no state of its own here: layers, a block, ``forward``."""

    owner: Obj
    path: str


@dataclass(frozen=True, slots=True)
class Func:
    """A function or lambda of this file; ``owner`` is what ``self`` is, ``frame`` where it was defined."""

    node: Function
    owner: Value | None = None
    frame: int = 0
    compiler: ast.AST | None = None
    """Where it is compiled, if it is."""
    around: Value | None = None
    """What is called in its place, which may call it: what a decorator of the program returned."""
    cell: Cell | None = None
    """Where the names around it are kept, if the function that defined it has returned it."""


@dataclass(frozen=True, slots=True)
class Entered:
    """What a ``with`` block is given, and what is done when the block is left."""

    value: Value
    exit: Value | None = None
    rest: tuple[ast.stmt, ...] = ()
    names: Mapping[str, Value] = field(default_factory=dict)
    frame: int = 0


@dataclass(frozen=True, slots=True)
class Class:
    """A class of this file."""

    oid: int
    node: ast.ClassDef
    bases: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Partial:
    """A callable with some of its arguments given."""

    func: Value
    args: tuple[Value, ...]
    keywords: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something unknown; the same identity is the same thing."""

    oid: int


Value: TypeAlias = (
    Const
    | Sort
    | AtLeast
    | Seq
    | Dict
    | Ref
    | Module
    | Obj
    | Part
    | Func
    | Entered
    | Class
    | Partial
    | Shape
    | Opaque
)


@dataclass(slots=True)
class Args:
    """The evaluated arguments of one call."""

    node: ast.Call
    positional: list[Value]
    keywords: dict[str, Value]
    starred: bool = False
    """Whether more arguments may come out of ``*`` or ``**`` of something unknown."""

    def get(self, index: int | None, name: str) -> Value | None:
        """Return the argument of that position or name, None if it is not given."""
        if name in self.keywords:
            return self.keywords[name]
        if index is not None and index < len(self.positional):
            return self.positional[index]
        return None

    def all(self) -> Iterator[Value]:
        """Yield every argument."""
        yield from self.positional
        yield from self.keywords.values()


def text_of(value: Value | None) -> str | None:
    """Return the text that the value is known to be."""
    return value.value if isinstance(value, Const) and isinstance(value.value, str) else None


def whole_of(value: Value | None) -> int | None:
    """Return the whole number that the value is known to be."""
    return value.value if isinstance(value, Const) and type(value.value) is int else None


def is_number(value: Value | None) -> bool:
    """Tell whether the value is a Python number, known or not."""
    if isinstance(value, Const):
        return isinstance(value.value, int | float) and not isinstance(value.value, bool)
    return value == NUMBER or isinstance(value, AtLeast)


def truth(value: Value) -> bool | None:
    """Tell whether the value is true in a condition; None if that is unknown."""
    if isinstance(value, Const):
        return bool(value.value)
    if isinstance(value, Seq | Dict):
        return bool(value.items)
    if isinstance(value, AtLeast):
        return value.least > 0 or None
    return None if isinstance(value, Opaque | Sort | Part | Ref | Module) else True


def key_of(value: Value) -> Any:
    """Return what identifies the value in a comparison, or None."""
    if isinstance(value, Const):
        return ("const", repr(value.value))
    if isinstance(value, Opaque | Obj):
        return value.oid
    if isinstance(value, Ref):
        return value.name
    if isinstance(value, Part):
        return (value.owner.oid, value.path)
    return None


def path_key(value: Value | None) -> Any:
    """Return what identifies a path: a text without its last slash, or the identity of something unknown."""
    if isinstance(value, Const):
        return str(value.value).rstrip("/") if isinstance(value.value, str) else None
    return key_of(value) if value is not None else None


def elements(value: Value | None) -> list[Value] | None:
    """Return the elements of an iterable, None if they are not known."""
    if isinstance(value, Seq):
        return list(value.items)
    if isinstance(value, Dict):
        return [Const(key) for key in value.items]
    if isinstance(value, Part):
        return [Part(value.owner, f"{value.path}[]")]
    return None
