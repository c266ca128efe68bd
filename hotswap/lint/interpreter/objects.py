"""The objects of a program: what each is known to be, and what its attributes are."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hotswap.lint.interpreter.names import unimported
from hotswap.lint.interpreter.state import Frame, State
from hotswap.lint.interpreter.typestate import Facts, Kind, Shape
from hotswap.lint.interpreter.values import (
    Class,
    Const,
    Func,
    Method,
    Number,
    Obj,
    Opaque,
    Part,
    Ref,
    Value,
)

_DENOISER = frozenset({"unet", "transformer"})
_PARTS = frozenset(
    {
        "controlnet", "image_encoder", "prior", "safety_checker", "scheduler", "text_encoder",
        "text_encoder_2", "text_encoder_3", "tokenizer", "transformer_2", "vae", "vocoder",
    }
)  # fmt: skip


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


class Objects:
    """Keeps the objects of the current state ``s``."""

    def __init__(self) -> None:
        self.s = State([])
        self.memos: dict[Any, Value] = {}
        """What unknown things are made of: the same attribute of the same thing is the same."""
        self._ids = itertools.count(1)
        self._conditions: dict[ast.expr, bool] = {}

    def fresh(self) -> Opaque:
        """Return something unknown that is like nothing else."""
        return Opaque(next(self._ids))

    def new(self, kind: Kind, *, open: bool = False) -> Obj:  # noqa: A002
        """Create an object."""
        oid = next(self._ids)
        self.s.put(oid, Facts(kind=kind, open=open))
        return Obj(oid)

    def facts(self, obj: Obj) -> Facts:
        """Return what is known of the object."""
        found = self.s.heap.get(obj.oid)
        return found if isinstance(found, Facts) else Facts(open=True)

    def put(self, obj: Obj, facts: Facts) -> None:
        """Replace what is known of the object."""
        self.s.put(obj.oid, facts)

    def become(self, value: Value | None, kind: Kind) -> Obj | None:
        """Take the value for a model: an unknown one becomes a model with an unknown history."""
        if isinstance(value, Obj):
            return value
        if not isinstance(value, Opaque):
            return None
        known = self.s.heap.get(("is", value.oid))
        if known is None:
            obj = Obj(value.oid)
            self.s.put(value.oid, Facts(kind=kind, open=True))
            self.s.put(("is", value.oid), obj)
            if kind == "pipeline":
                self.component(obj, "transformer")
            return obj
        return known if isinstance(known, Obj) else None

    def known(self, value: Value) -> Value:
        """Return what an unknown value has turned out to be."""
        if isinstance(value, Opaque):
            found = self.s.heap.get(("is", value.oid))
            if isinstance(found, Obj):
                return found
        return value

    def component(self, pipe: Obj, name: str) -> Obj:
        """Return the part of a pipeline; ``unet`` and ``transformer`` are the one that adapters change."""
        key = "denoiser" if name in _DENOISER else name
        found = self.s.heap.get((pipe.oid, key))
        part = self.become(found, "component")
        if part is not None:
            return part
        part = self.new("component", open=self.facts(pipe).open)
        self.s.put((pipe.oid, key), part)
        return part

    def read_attribute(self, owner: Value, name: str) -> Value:
        """Read an attribute."""
        owner = self.known(owner)
        if isinstance(owner, Ref):
            return Ref(f"{owner.name}.{name}")
        if isinstance(owner, Obj):
            return self._attribute_of(owner, name)
        if isinstance(owner, Part):
            return Part(owner.owner, f"{owner.path}.{name}")
        if isinstance(owner, Class):
            return self._from_class(owner, owner, name) or Method(owner, name)
        if isinstance(owner, Shape) and name in ("r", "lora_alpha"):
            number = owner.rank if name == "r" else owner.alpha
            return Number() if number is None else Const(number)
        if isinstance(owner, Opaque):
            if name in _DENOISER and (pipe := self.become(owner, "pipeline")):
                return self.component(pipe, name)
            if name == "app" and name in self.s.frames[0].names:  # request.app, of a web framework
                return self.known(self.s.frames[0].names[name])
            return self._memo((owner.oid, name))
        return Method(owner, name)

    def _memo(self, key: Any) -> Value:
        found = self.s.heap.get(key)
        if found is None:
            found = self.memos.get(key)
        if found is None:
            found = self.memos[key] = self.fresh()
        return found

    def _attribute_of(self, owner: Obj, name: str) -> Value:
        if name in ("_orig_mod", "module") and (owner.oid, name) not in self.s.heap:
            return Obj(owner.oid)
        kind = self.facts(owner).kind
        if kind == "pipeline" and (name in _DENOISER or name in _PARTS):
            return self.component(owner, name)
        stored = self.s.heap.get((owner.oid, name))
        if stored is not None:
            return stored  # type: ignore[no-any-return]
        cls = self.s.heap.get((owner.oid, "__class__"))
        if isinstance(cls, Class):
            found = self._from_class(cls, owner, name)
            if found is not None:
                return found
        return self._memo((owner.oid, name)) if kind == "instance" else Part(owner, name)

    def _from_class(self, cls: Class, owner: Value, name: str) -> Value | None:
        stored = self.s.heap.get((cls.oid, name))
        if isinstance(stored, Func):
            node = stored.node
            if isinstance(node, ast.Lambda):
                return stored
            marks = {last_name(d) for d in node.decorator_list}
            if "staticmethod" in marks:
                return stored
            bound = Func(node, cls if "classmethod" in marks else owner, stored.frame)
            if marks & {"property", "cached_property"} and not isinstance(owner, Class):
                call = ast.copy_location(ast.Call(ast.Name(name), [], []), node)
                return self.invoke_one(bound, Args(call, [], {}))
            return (
                bound
                if not (
                    isinstance(owner, Class) and bound.owner is owner and "classmethod" not in marks
                )
                else stored
            )
        if stored is not None:
            return stored  # type: ignore[no-any-return]
        for base in cls.bases:
            if (
                isinstance(base, Class)
                and (found := self._from_class(base, owner, name)) is not None
            ):
                return found
        return None

    def invoke_one(self, func: Value, args: Args) -> Value:
        """Call a value whose arguments are evaluated, uniting the outcomes."""
        raise NotImplementedError

    def frame_of(self, name: str) -> Frame | None:
        """Return the frame in which the running function finds the name."""
        frame = self.s.frames[-1]
        if name in frame.outer:
            frame = self.s.frames[frame.outer[name]]
        while name not in frame.names:
            if frame.parent < 0:
                return None
            frame = self.s.frames[frame.parent]
        return frame

    def look_up(self, name: str) -> Value:
        """Return what a name is bound to."""
        frame = self.frame_of(name)
        if frame is not None:
            return self.known(frame.names[name])
        qualified = unimported(name)
        if qualified is not None:
            return Ref(qualified)
        return self._memo(("global", name))


def last_name(node: ast.expr) -> str:
    """Return the last name of a dotted name or call."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
