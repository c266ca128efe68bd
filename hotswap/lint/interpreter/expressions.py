"""Expressions, as far as models, flags, names and ranks are concerned."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.assign import assign
from hotswap.lint.interpreter.calls import call
from hotswap.lint.interpreter.conditions import boolean, compare, holds, is_among, negation
from hotswap.lint.interpreter.objects import changed, fields_of, look_up, method_of, read_attribute
from hotswap.lint.interpreter.run import Run
from hotswap.lint.interpreter.state import Table, join, same_component

_NUMBERS_INSIDE = re.compile(r"(?:^|\.)(?:lora_alpha|r)(?:\[\])?$")
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}


def _sequence(run: Run, node: ast.List | ast.Tuple | ast.Set) -> v.Value:
    items: list[v.Value] = []
    known = True
    for element in node.elts:
        if isinstance(element, ast.Starred):
            inside = run.ev(element.value)
            known = known and isinstance(inside, v.Seq)
            items += inside.items if isinstance(inside, v.Seq) else ()
        else:
            items.append(run.ev(element))
    return v.Seq(tuple(items)) if known else run.fresh()


def _dict(run: Run, node: ast.Dict) -> v.Value:
    items: dict[Any, v.Value] = {}
    known = True
    for key, value_node in zip(node.keys, node.values, strict=True):
        value = run.ev(value_node)
        name = run.ev(key) if key is not None else None
        if isinstance(name, v.Const) and isinstance(name.value, str | int | None):
            items[name.value] = value
        elif key is None and isinstance(value, v.Dict):
            items |= value.items
        else:
            known = False
    return v.Dict(items) if known else run.fresh()


def _unary(run: Run, node: ast.UnaryOp) -> v.Value:
    value = run.ev(node.operand)
    if isinstance(node.op, ast.Not):
        return negation(run, value)
    if isinstance(value, v.Const) and isinstance(value.value, int | float):
        return v.Const(-value.value) if isinstance(node.op, ast.USub) else value
    return value if value == v.NUMBER else run.fresh()


def _binary(run: Run, node: ast.BinOp) -> v.Value:
    left, right = run.ev(node.left), run.ev(node.right)
    function = _OPERATORS.get(type(node.op))
    if function is not None and _small(left) and _small(right):
        try:
            return v.Const(function(left.value, right.value))
        except Exception:  # whatever the program's own arithmetic raises
            return run.fresh()
    if isinstance(left, v.Seq) and isinstance(right, v.Seq) and isinstance(node.op, ast.Add):
        return v.Seq((*left.items, *right.items))
    if isinstance(left, v.Dict) and isinstance(right, v.Dict) and isinstance(node.op, ast.BitOr):
        return v.Dict({**left.items, **right.items})
    if isinstance(node.op, ast.BitOr):  # of classes
        sides = [each for side in (left, right) for each in v.elements(side) or [side]]
        if all(isinstance(each, v.Ref | v.Class) for each in sides):
            return v.Seq(tuple(sides))
    if v.is_number(left) and v.is_number(right):
        return _counted(left, right, node.op)
    if any(
        isinstance(each, v.Part) and _NUMBERS_INSIDE.search(each.path) for each in (left, right)
    ):
        return v.NUMBER
    if isinstance(node.op, ast.Div):
        return joined_path(run, [left, right])
    keys = v.key_of(left), v.key_of(right)
    known = isinstance(node.op, ast.Add) and None not in keys
    return run.memo(("+", keys)) if known else run.fresh()


def _counted(left: v.Value, right: v.Value, op: ast.operator) -> v.Value:
    """Return the number that two numbers give: a counter that is added to is a counter still."""
    count, step = (left, right) if isinstance(left, v.AtLeast) else (right, left)
    more = v.whole_of(step)
    if isinstance(count, v.AtLeast) and isinstance(op, ast.Add) and more is not None:
        return v.AtLeast(count.least + more)
    return v.NUMBER


def _small(value: v.Value) -> TypeGuard[v.Const]:
    if not isinstance(value, v.Const):
        return False
    if isinstance(value.value, int | float):
        return abs(value.value) < 1 << 32
    return isinstance(value.value, str) and len(value.value) < 500


def joined_path(run: Run, parts: Sequence[v.Value]) -> v.Value:
    """Join the parts of a path; the same parts are the same path, however they are joined."""
    if not parts:
        return run.fresh()
    first, *texts = [v.text_of(part) for part in parts]
    if first is not None and None not in texts:
        return v.Const("/".join([first.rstrip("/"), *(str(text).strip("/") for text in texts)]))
    key = v.path_key(parts[0])
    for part in parts[1:]:
        text = v.text_of(part)
        inner = v.key_of(part) if text is None else text.strip("/")
        if key is None or inner is None:
            return run.fresh()
        key = ("path", key, inner)
    return run.memo(key)


def _conditional(run: Run, node: ast.IfExp) -> v.Value:
    known = holds(run, run.ev(node.test))
    if known is not None:
        return run.ev(node.body if known else node.orelse)
    other = run.s.copy()
    value = run.ev(node.body)
    first, run.s = run.s, other
    alternative = run.ev(node.orelse)
    run.s = join([first, run.s], run.fresh)
    if value == alternative:
        return value
    if isinstance(value, v.Obj) and isinstance(alternative, v.Obj) and value.oid == alternative.oid:
        return v.Obj(value.oid, wrapped=True)
    for one, another in ((value, alternative), (alternative, value)):
        if isinstance(one, v.Obj) and isinstance(another, v.Const | v.Opaque):
            return one
    return same_component(value, alternative) or class_like(run, [value, alternative])


def class_like(run: Run, values: Sequence[v.Value]) -> v.Value:
    """Return one of several classes that make models of the same kind, for whichever it is."""
    kinds = {
        run.language.kind_of(each.name) if isinstance(each, v.Ref) else None for each in values
    }
    return values[0] if len(kinds) == 1 and None not in kinds else run.fresh()


def any_of(run: Run, values: Sequence[v.Value]) -> v.Value:
    """Return one of several values, for whichever it is: models of which the same is known, or classes."""
    first = values[0] if values else None
    if isinstance(first, v.Obj) and all(
        isinstance(each, v.Obj)
        and each.wrapped == first.wrapped
        and run.facts(each) == run.facts(first)
        and run.s.heap.get((each.oid, "__class__")) == run.s.heap.get((first.oid, "__class__"))
        for each in values
    ):
        return _with_texts(run, first, [each for each in values if isinstance(each, v.Obj)])
    if values and all(v.is_number(each) for each in values):
        return v.NUMBER
    if values and (row := _row_of(run, values)) is not None:
        return row
    return class_like(run, values) if values else run.fresh()


def _with_texts(run: Run, first: v.Obj, others: Sequence[v.Obj]) -> v.Obj:
    """Return an instance that is as good as any of several, also in texts that differ."""
    texts = {
        key[1]: [run.s.heap.get((each.oid, key[1])) for each in others]
        for key, value in run.s.heap.items()
        if key[0] == first.oid and len(key) == 2 and v.text_of(value) is not None
    }
    fields: dict[str, v.Value] = {}
    inside = (value for key, value in run.s.heap.items() if key[0] == first.oid)
    if any(isinstance(value, v.Obj) for value in inside):
        return first  # what holds a model is what it is
    for name, found in texts.items():
        if len({v.text_of(each) for each in found}) > 1:
            fields[name] = run.fresh()
            is_among(run, fields[name], v.Seq(tuple(each or v.NUMBER for each in found)))
    twin = ("any of", first.oid)
    if fields and twin not in run.s.heap:
        run.s.put(twin, changed(run, first, fields))
    return run.s.heap[twin] if fields else first


def _row_of(run: Run, values: Sequence[v.Value]) -> v.Value | None:
    """Return one of several texts, or of the rows of a table: what is a text in it is one of a few."""
    tables = [each.items for each in values if isinstance(each, v.Dict)]
    if len(tables) == len(values):
        keys = [key for key in tables[0] if all(key in table for table in tables)]
        return v.Dict({key: any_of(run, [table[key] for table in tables]) for key in keys})
    row = run.fresh()
    if is_among(run, row, v.Seq(tuple(values))):
        return row
    objects = [each.oid for each in values if isinstance(each, v.Obj)]
    heap = run.s.heap
    if len(objects) < len(values) or len({heap.get((oid, "__class__")) for oid in objects}) > 1:
        return None
    for name in [key[1] for key in heap if key[0] == objects[0] and len(key) == 2]:
        fields = [heap.get((oid, name)) for oid in objects]
        if None not in fields:
            is_among(run, run.memo((row.oid, name)), v.Seq(tuple(each for each in fields if each)))
    return row


def _subscript(run: Run, node: ast.Subscript) -> v.Value:
    owner = run.ev(node.value)
    index = run.ev(node.slice) if not isinstance(node.slice, ast.Slice) else None
    if isinstance(owner, v.Part):
        name = v.text_of(index) if owner.path == "components" else None
        inside = v.Part(owner.owner, f"{owner.path}[]")
        return inside if name is None else read_attribute(run, owner.owner, name)
    owner = fields_of(run, owner) or owner
    if isinstance(owner, v.Obj) and index is not None:
        got = read_attribute(run, owner, "__getitem__")
        if isinstance(got, v.Func):
            return method_of(run, got, index)
        if (made := _filled_in(run, owner, index, node)) is not None:
            return made
    if isinstance(owner, v.Ref) and index is not None:
        if owner.name.endswith((".Annotated", ".wiring.Provide")):
            return index
        if owner.name.endswith(".Literal"):
            return index if isinstance(index, v.Seq) else v.Seq((index,))
    if isinstance(index, v.Const):
        return item(run, owner, index.value)
    if isinstance(owner, v.Dict) and owner.items:
        is_among(run, index or run.fresh(), owner)
        return any_of(run, [*owner.items.values()])
    if isinstance(owner, v.Seq) and isinstance(node.slice, ast.Slice):
        return _slice(run, owner, node.slice)
    if isinstance(owner, v.Seq) and owner.items:
        return any_of(run, owner.items)
    if index is not None and (key := v.key_of(index)) and (whole := v.key_of(owner)):
        return _only_one(run, whole) or run.memo((whole, "[]", key))
    return run.fresh()


def _filled_in(run: Run, owner: v.Obj, index: v.Value, node: ast.AST) -> v.Value | None:
    """Return the element of a dictionary that makes what it lacks; None of any other."""
    missing = read_attribute(run, owner, "__missing__")
    if not isinstance(missing, v.Func | v.Partial | v.Class):
        return None
    name = repr(index.value) if isinstance(index, v.Const) else v.key_of(index)
    found = run.s.heap.get((owner.oid, "[]", name))
    if found is None and not isinstance(index, v.Const):
        found = _only_one(run, owner.oid)
    if found is None:
        given = [index] if isinstance(missing, v.Func) and missing.owner is not None else []
        call = ast.copy_location(ast.Call(ast.Name("missing"), [], []), node)
        found = run.invoke_one(missing, v.Args(call, given, {}))
        run.s.put((owner.oid, "[]", name), found)
    return run.known(found)


def _only_one(run: Run, whole: Any) -> v.Obj | None:
    """Return the only thing that was put into a container, whatever the key is that asks for it."""
    inside = [value for key, value in run.s.heap.items() if key[:2] == (whole, "[]")]
    return inside[0] if len(inside) == 1 and isinstance(inside[0], v.Obj) else None


def item(run: Run, owner: v.Value, index: Any) -> v.Value:
    """Read ``owner[index]`` with a constant index."""
    if isinstance(owner, v.Seq) and isinstance(index, int):
        if -len(owner.items) <= index < len(owner.items):
            return _drawn(owner.items[index], owner)
    elif isinstance(owner, v.Dict) and index in owner.items:
        return owner.items[index]
    elif isinstance(owner, v.Opaque | v.Obj | v.Ref):
        return run.memo((v.key_of(owner), "[]", repr(index)))
    return run.fresh()


def _drawn(value: v.Value, owner: v.Seq) -> v.Value:
    """Note with a number which numbers it was picked out of."""
    numbers = tuple(n for each in owner.items if (n := v.whole_of(each)) is not None)
    picked = v.whole_of(value)
    if picked is not None and len(numbers) == len(owner.items):
        return v.Const(picked, numbers)
    return value


def _slice(run: Run, owner: v.Seq, node: ast.Slice) -> v.Value:
    ends = [run.ev(end) for end in (node.lower, node.upper, node.step)]
    if all(isinstance(e, v.Const) and isinstance(e.value, int | None) for e in ends):
        lower, upper, step = (e.value for e in ends if isinstance(e, v.Const))
        return v.Seq(owner.items[slice(lower, upper, step or None)])
    return run.fresh()


def _format(run: Run, node: ast.JoinedStr) -> v.Value:
    pieces = [p.value if isinstance(p, ast.FormattedValue) else p for p in node.values]
    values = [run.ev(piece) for piece in pieces]
    if all(isinstance(value, v.Const) for value in values):
        return v.Const("".join(str(value.value) for value in values if isinstance(value, v.Const)))
    if len(values) in (2, 3) and isinstance(node.values[0], ast.FormattedValue):
        slash = v.text_of(values[1]) if isinstance(node.values[1], ast.Constant) else None
        if slash and slash[0] == "/" and (len(values) == 2 or slash == "/"):
            return joined_path(run, [values[0], values[-1]])
    keys = tuple(v.key_of(value) for value in values)
    return run.fresh() if None in keys else run.memo(("f", keys))


def _walrus(run: Run, node: ast.NamedExpr) -> v.Value:
    value = run.ev(node.value)
    run.s.frames[-1].bind(node.target.id, value)
    return value


def _comprehension(run: Run, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> v.Value:
    values = _comprehended(run, node.generators, [node.elt])
    return run.fresh() if values is None else v.Seq(tuple(each[0] for each in values))


def _dict_comprehension(run: Run, node: ast.DictComp) -> v.Value:
    values = _comprehended(run, node.generators, [node.key, node.value])
    if values is None or not all(isinstance(k, v.Const) for k, _ in values):
        return run.fresh()
    return v.Dict({k.value: each for k, each in values if isinstance(k, v.Const)})


def _comprehended(
    run: Run, generators: list[ast.comprehension], wanted: list[ast.expr]
) -> list[list[v.Value]] | None:
    outer = Table(run.s.frames[-1].names)
    first, *others = generators
    iterated = run.ev(first.iter)
    over = v.elements(iterated)
    known = over is not None and not others
    found: list[list[v.Value]] = []
    for element in over if over is not None else [run.fresh()]:
        assign(run, first.target, element)
        for other in others:
            run.ev(other.iter)
            assign(run, other.target, run.fresh())
        tests = [holds(run, run.ev(test)) for test in first.ifs]
        if False in tests:
            continue
        known = known and (None not in tests or isinstance(iterated, v.Part))
        found.append([run.ev(part) for part in wanted])
    run.s.frames[-1].names = outer
    return found if known else None


def _yield(run: Run, node: ast.Yield | ast.YieldFrom) -> v.Value:
    value = run.ev(node.value)
    many = v.elements(value) if isinstance(node, ast.YieldFrom) else [value]
    if run.yielded:
        run.yielded[-1] += (
            [run.fresh(), run.fresh()] if many is None else many
        )  # at least a second turn
    return run.fresh()


EXPRESSIONS: dict[type[ast.AST], Callable[[Run, Any], v.Value]] = {
    ast.Attribute: lambda run, node: read_attribute(run, run.ev(node.value), node.attr),
    ast.Await: lambda run, node: run.ev(node.value),
    ast.BinOp: _binary,
    ast.BoolOp: boolean,
    ast.Call: lambda run, node: run.united(call(run, node)),
    ast.Compare: compare,
    ast.Constant: lambda run, node: v.Const(node.value),
    ast.Dict: _dict,
    ast.DictComp: _dict_comprehension,
    ast.GeneratorExp: _comprehension,
    ast.IfExp: _conditional,
    ast.JoinedStr: _format,
    ast.Lambda: lambda run, node: v.Func(node, None, len(run.s.frames) - 1),
    ast.List: _sequence,
    ast.ListComp: _comprehension,
    ast.Name: lambda run, node: look_up(run, node.id),
    ast.NamedExpr: _walrus,
    ast.Set: _sequence,
    ast.SetComp: _comprehension,
    ast.Subscript: _subscript,
    ast.Tuple: _sequence,
    ast.UnaryOp: _unary,
    ast.Yield: _yield,
    ast.YieldFrom: _yield,
}
