"""What the objects of a program are, and what their attributes are."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.names import unimported
from hotswap.lint.interpreter.run import Run
from hotswap.lint.typestate import Facts, Kind, Shape

_COMPONENTS = v.DENOISERS | {
    "controlnet", "image_encoder", "prior", "safety_checker", "scheduler", "text_encoder",
    "text_encoder_2", "text_encoder_3", "tokenizer", "transformer_2", "vae", "vocoder",
}  # fmt: skip


REQUEST_STATE = "request state"
"""What the lifespan of an application hands to every request."""
_OF_ALL = frozenset({"bot_data"})
"""Attributes that are the same object, whatever a framework hands it over by."""


def become(run: Run, value: v.Value | None, kind: Kind) -> v.Obj | None:
    """Take the value for a model: an unknown one becomes a model with an unknown history."""
    if isinstance(value, v.Obj):
        return value
    if not isinstance(value, v.Opaque):
        return None
    key = run.identity(value)
    known = run.s.heap.get(key)
    if known is None:
        obj = v.Obj(value.oid) if key == ("is", value.oid) else run.new(kind)
        run.put(obj, Facts(kind=kind, open=True))
        run.s.put(key, obj)
        if kind == "pipeline":
            component(run, obj, "transformer")
        return obj
    return known if isinstance(known, v.Obj) else None


def narrow(run: Run, value: v.Value, cls: v.Value) -> v.Value:
    """Take an unknown value for an instance of a class that makes models."""
    kind = run.language.kind_of(cls.name) if isinstance(cls, v.Ref) else None
    if kind in (None, "module"):
        return value
    obj = become(run, value, kind)
    if obj is not None and run.facts(obj).kind == "unknown":
        run.put(obj, replace(run.facts(obj), kind=kind))
    return value if obj is None else obj


def reveal(run: Run, value: v.Value) -> None:
    """Hand a value to unknown code: a model's history is unknown from here on."""
    value = run.known(value)
    if isinstance(value, v.Obj):
        run.put(value, replace(run.facts(value), open=True))
        if run.facts(value).kind == "pipeline":
            reveal(run, component(run, value, "transformer"))
    elif isinstance(value, v.Seq | v.Dict):
        for item in value.items if isinstance(value, v.Seq) else value.items.values():
            reveal(run, item)


def component(run: Run, pipe: v.Obj, name: str) -> v.Obj:
    """Return a component of a pipeline, made with the pipeline if the program has not set it."""
    key = (pipe.oid, component_key(name))
    part = become(run, run.s.heap.get(key), "component")
    if part is None:
        facts = run.facts(pipe)
        part = run.new("component", history_unknown=facts.open)
        run.put(part, replace(run.facts(part), enabled=facts.enabled))
        run.s.put(key, part)
    return part


def has_component(run: Run, pipe: v.Value, name: str | None) -> bool | None:
    """Tell whether a pipeline has a denoiser of that name; None unless one of the two names was used."""
    used = run.s.heap.get((pipe.oid, "__denoiser__")) if isinstance(pipe, v.Obj) else None
    return None if used is None or name not in v.DENOISERS else used == v.Const(name)


def component_key(name: str) -> str:
    """Return the name under which a pipeline keeps a component."""
    return "denoiser" if name in v.DENOISERS else name


def changed(run: Run, obj: v.Obj, fields: Mapping[str, v.Value]) -> v.Obj:
    """Return a copy of an instance with other values in some of its fields."""
    twin = run.new(run.facts(obj).kind)
    own = {key[1]: each for key, each in run.s.heap.items() if key[0] == obj.oid and len(key) == 2}
    for name, value in (own | dict(fields)).items():
        run.s.put((twin.oid, name), value)
    return twin


def class_of(run: Run, value: v.Value | None) -> v.Class | None:
    """Return the class of this file that the value is an instance of, or is itself."""
    cls = run.s.heap.get((value.oid, "__class__")) if isinstance(value, v.Obj) else value
    return cls if isinstance(cls, v.Class) else None


def line_of(cls: v.Class) -> list[v.Class]:
    """Return a class and the classes of the program that it derives from, as Python looks through them."""
    above = [each for base in cls.bases if isinstance(base, v.Class) for each in line_of(base)]
    return [cls, *reversed(dict.fromkeys(reversed(above)))]


def read_attribute(run: Run, owner: v.Value, name: str) -> v.Value:
    """Read an attribute."""
    owner = run.known(owner)
    if owner == v.Ref("flask.current_app"):
        return read_attribute(run, web_app(run) or run.fresh(), name)
    if isinstance(owner, v.Ref):
        if (owner.name, name) in run.s.heap:
            return run.known(run.s.heap[owner.name, name])
        qualified = f"{owner.name}.{name}"
        module = run.s.frames[run.home].names.get(qualified)  # import a.b binds a, and finds a.b
        return module if isinstance(module, v.Module) else v.Ref(qualified)
    if isinstance(owner, v.Module):
        return run.s.frames[owner.home].names.get(name) or v.Ref(f"{owner.name}.{name}")
    if isinstance(owner, v.Obj):
        return _attribute_of(run, owner, name)
    if isinstance(owner, v.Part):
        return v.Part(owner.owner, f"{owner.path}.{name}")
    if isinstance(owner, v.Class):
        return _from_class(run, owner, owner, name) or run.memo((owner.oid, name))
    if isinstance(owner, Shape) and name in ("r", "lora_alpha"):
        number = owner.rank if name == "r" else owner.alpha
        return v.NUMBER if number is None else v.Const(number)
    if name == "value" and v.text_of(owner) is not None:  # of an enumeration's member
        return owner
    if isinstance(owner, v.Opaque):
        if name in v.DENOISERS and (pipe := become(run, owner, "pipeline")):
            return component(run, pipe, name)
        if name == "app":  # request.app, of a web framework
            return web_app(run) or run.memo((owner.oid, name))
        if name == "state" and REQUEST_STATE in run.s.heap:
            return run.known(run.s.heap[REQUEST_STATE])
        if name in _OF_ALL:
            return run.memo(("global", name))
        return run.memo((owner.oid, name))
    key = v.key_of(owner)
    return run.fresh() if key is None else run.memo((key, name))


def web_app(run: Run) -> v.Value | None:
    """Return the application that the program makes for a web framework."""
    app = run.s.heap.get("web app") or run.s.frames[run.main].names.get("app")
    return None if app is None else run.known(app)


def _attribute_of(run: Run, owner: v.Obj, name: str) -> v.Value:
    stored = run.s.heap.get((owner.oid, name))
    if name in ("_orig_mod", "module") and stored is None:
        return v.Obj(owner.oid)
    kind = run.facts(owner).kind
    if kind == "pipeline" and name in _COMPONENTS:
        if name in v.DENOISERS and (owner.oid, "__denoiser__") not in run.s.heap:
            run.s.put((owner.oid, "__denoiser__"), v.Const(name))
        return component(run, owner, name)
    if stored is not None:
        return stored  # type: ignore[no-any-return]
    if cls := class_of(run, owner):
        found = _from_class(run, cls, owner, name)
        if found is not None:
            return found
        asked = _from_class(run, cls, owner, "__getattr__") if name[:2] != "__" else None
        if isinstance(asked, v.Func) and (owner.oid, name) not in run.memos:
            return method_of(run, asked, v.Const(name))
    return run.memo((owner.oid, name)) if kind == "instance" else v.Part(owner, name)


def _from_class(run: Run, cls: v.Class, owner: v.Value, name: str) -> v.Value | None:
    found = (run.s.heap.get((each.oid, name)) for each in line_of(cls))
    stored: v.Value | None = next((each for each in found if each is not None), None)
    return _bound(run, stored, cls, owner) if isinstance(stored, v.Func) else stored


def _bound(run: Run, func: v.Func, cls: v.Class, owner: v.Value) -> v.Value:
    """Bind a function of a class to what it is read from; a property is called."""
    if isinstance(func.node, ast.Lambda):
        return func
    marks = {last_name(d) for d in func.node.decorator_list}
    if "classmethod" in marks:
        return replace(func, owner=cls)
    if "staticmethod" in marks or isinstance(owner, v.Class):
        return func
    bound = replace(func, owner=owner)
    if marks & {"property", "cached_property"}:
        call = ast.copy_location(ast.Call(ast.Name(func.node.name), [], []), func.node)
        return run.invoke_one(bound, v.Args(call, [], {}))
    return bound


FIELDS = "__match_args__"
"""The attribute under which an instance has the names of its fields, if it is a tuple."""


def fields_of(run: Run, value: v.Value) -> v.Seq | None:
    """Return the elements of a named tuple."""
    names = run.s.heap.get((value.oid, FIELDS)) if isinstance(value, v.Obj) else None
    if not isinstance(names, v.Seq) or not isinstance(value, v.Obj):
        return None
    texts = [str(v.text_of(each)) for each in names.items]
    return v.Seq(tuple(read_attribute(run, value, text) for text in texts))


def method_of(run: Run, func: v.Func, *given: v.Value) -> v.Value:
    """Return what a method gives that Python calls by itself."""
    call = ast.copy_location(ast.Call(ast.Name("method"), [], []), func.node)
    return run.invoke_one(func, v.Args(call, [*given], {}))


def look_up(run: Run, name: str) -> v.Value:
    """Return what a name is bound to."""
    frame = run.frame_of(name)
    if frame is not None:
        return run.known(frame.names[name])
    if name == "__name__":  # every file is looked at as the one that is run
        return v.Const("__main__" if run.home == run.main else "a module")
    qualified = unimported(name)
    return v.Ref(qualified) if qualified is not None else run.memo(("global", name))


def last_name(node: ast.expr) -> str:
    """Return the last name of a dotted name or call."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
