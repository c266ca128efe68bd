"""Assignment: to names, attributes, elements and several targets at once."""

from __future__ import annotations

import ast
import builtins
from dataclasses import replace

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.names import ANOTHER
from hotswap.lint.interpreter.objects import become, component_key, fields_of, last_name
from hotswap.lint.interpreter.run import Run
from hotswap.lint.typestate import unless_run


def assign(run: Run, target: ast.expr, value: v.Value) -> None:
    """Bind a name, an attribute, an element, or each of several targets."""
    if isinstance(target, ast.Name):
        frame = run.s.frames[-1]
        if target.id in frame.outer:
            frame = run.s.frames[frame.outer[target.id]]
        old = frame.names.get(target.id)
        frame.bind(target.id, value)
        replaced(run, old, value)
    elif isinstance(target, ast.Attribute):
        set_attribute(run, run.ev(target.value), target.attr, value)
    elif isinstance(target, ast.Subscript):
        _set_item(run, target, value)
    elif isinstance(target, ast.Tuple | ast.List):
        _unpack(run, target.elts, value)
    elif isinstance(target, ast.Starred):
        assign(run, target.value, run.fresh())


def given_back(run: Run, target: ast.expr, value: ast.expr | None) -> v.Obj | None:
    """Return the model in a name that is given what a library's function makes of it: the same, changed."""
    if isinstance(value, ast.Await):
        value = value.value
    if not isinstance(value, ast.Call) or not isinstance(target, ast.Name | ast.Attribute):
        return None
    name = last_name(value.func)
    if ANOTHER.match(name) or hasattr(builtins, name) or name[:1].isupper():
        return None
    same = ast.unparse(target)
    given = (*value.args, *(keyword.value for keyword in value.keywords))
    if all(not isinstance(each, type(target)) or ast.unparse(each) != same for each in given):
        return None
    old = run.ev(next(each for each in given if ast.unparse(each) == same))
    is_model = isinstance(old, v.Obj) and run.facts(old).kind not in ("instance", "unknown")
    return old if is_model and isinstance(old, v.Obj) else None


def mutate(run: Run, holder: ast.expr, value: v.Value) -> None:
    """Change a container in place: where the name is bound, which may be outside of the function."""
    frame = run.frame_of(holder.id) if isinstance(holder, ast.Name) else None
    if frame is not None and isinstance(holder, ast.Name):
        frame.bind(holder.id, value)
    else:
        assign(run, holder, value)


def set_attribute(run: Run, owner: v.Value, name: str, value: v.Value) -> None:
    """Set an attribute; what is given a denoiser is a pipeline."""
    if isinstance(owner, v.Opaque) and name in v.DENOISERS and isinstance(value, v.Obj):
        owner = become(run, owner, "pipeline") or owner
    if isinstance(owner, v.Module):
        run.s.frames[owner.home].bind(name, value)
    elif isinstance(owner, v.Obj):
        is_pipeline = run.facts(owner).kind == "pipeline"
        key = (owner.oid, component_key(name) if is_pipeline else name)
        old = run.s.heap.get(key)
        run.s.put(key, value)
        replaced(run, old, value)
    elif isinstance(owner, v.Opaque | v.Class):
        run.s.put((owner.oid, name), value)
    elif isinstance(owner, v.Ref):
        run.s.put((owner.name, name), value)


def replaced(run: Run, old: v.Value | None, new: v.Value) -> None:
    """Forget that a model was compiled once nothing refers to its wrapper any more."""
    if not isinstance(old, v.Obj) or not old.wrapped or new == old:
        return
    names = (value for frame in run.s.frames for value in frame.names.values())
    facts = run.facts(old)
    if facts.compiled is None or facts.compiled.how != "wrapper":
        return
    if not any(_refers(value, old) for value in (*names, *run.s.heap.values())):
        run.put(old, replace(facts, compiled=None, ran=None, deferred=unless_run(facts)))


def _refers(value: v.Value, obj: v.Obj) -> bool:
    inside = v.elements(value) if isinstance(value, v.Seq) else None
    inside = [*value.items.values()] if isinstance(value, v.Dict) else inside
    return value == obj or any(_refers(each, obj) for each in inside or ())


def _set_item(run: Run, target: ast.Subscript, value: v.Value) -> None:
    owner = run.ev(target.value)
    index = run.ev(target.slice) if not isinstance(target.slice, ast.Slice) else None
    if isinstance(owner, v.Part):
        run.language.set_item(run, owner, target, value)
    elif isinstance(owner, v.Dict) and isinstance(index, v.Const):
        mutate(run, target.value, v.Dict({**owner.items, index.value: value}))
    elif isinstance(owner, v.Dict | v.Seq):
        owner = run.fresh()
        mutate(run, target.value, owner)
    keeps = isinstance(owner, v.Opaque | v.Obj | v.Ref) and index is not None
    if keeps and index is not None and (key := v.key_of(index)):
        name = repr(index.value) if isinstance(index, v.Const) else key
        run.s.put((v.key_of(owner), "[]", name), value)


def _unpack(run: Run, targets: list[ast.expr], value: v.Value) -> None:
    value = fields_of(run, value) or value
    starred = next((i for i, t in enumerate(targets) if isinstance(t, ast.Starred)), None)
    if isinstance(value, v.Seq) and starred is not None and len(value.items) >= len(targets) - 1:
        after = len(value.items) - (len(targets) - 1 - starred)
        middle = v.Seq(value.items[starred:after])
        value = v.Seq((*value.items[:starred], middle, *value.items[after:]))
    if isinstance(value, v.Seq) and len(value.items) == len(targets):
        for target, item in zip(targets, value.items, strict=True):
            assign(run, target.value if isinstance(target, ast.Starred) else target, item)
        return
    named = isinstance(value, v.Part) and "named_" in value.path
    for target in targets[:-1] if named else targets:
        assign(run, target, run.fresh())
    if named:
        assign(run, targets[-1], value)
