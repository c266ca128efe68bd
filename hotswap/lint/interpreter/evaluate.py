"""Evaluate expressions as far as models, flags, names and ranks are concerned."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from hotswap.lint.interpreter.objects import Objects, last_name
from hotswap.lint.interpreter.state import State, Table, join
from hotswap.lint.interpreter.values import (
    Class,
    Const,
    Dict,
    Func,
    Number,
    Obj,
    Opaque,
    Part,
    Partial,
    Seq,
    Value,
    key_of,
    truth,
)

_PLAIN = re.compile(r"(?:^|\.)(?:lora_alpha|r)(?:\[\])?$")
_PURE = frozenset({"bool", "getattr", "hasattr", "isinstance", "len"})
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


class TooLongError(Exception):
    """The program is larger than the budget; what is not analysed is not reported."""


class Evaluator(Objects):
    """Evaluates expressions; calls are left to the subclass."""

    # -- objects --------------------------------------------------------------------------------

    # -- expressions ----------------------------------------------------------------------------

    def ev(self, node: ast.expr | None) -> Value:
        """Evaluate an expression in the current state."""
        if node is None:
            return Const(None)
        handler = _HANDLERS.get(type(node))
        return self.known(handler(self, node)) if handler else self._children(node)

    def call(self, node: ast.Call) -> Value:
        """Evaluate a call; several outcomes are united."""
        self.s = join(self.calls(node), self.fresh)
        result, self.s.result = self.s.result, None
        return result if result is not None else Const(None)

    def calls(self, node: ast.Call) -> list[State]:
        """Evaluate a call; each outcome is a state with its ``result``."""
        raise NotImplementedError

    def _children(self, node: ast.AST) -> Value:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.ev(child)
        return self.fresh()

    def _name(self, node: ast.Name) -> Value:
        return self.look_up(node.id)

    def _constant(self, node: ast.Constant) -> Value:
        return Const(node.value)

    def _attribute(self, node: ast.Attribute) -> Value:
        return self.read_attribute(self.ev(node.value), node.attr)

    def _await(self, node: ast.Await) -> Value:
        return self.ev(node.value)

    def _sequence(self, node: ast.List | ast.Tuple | ast.Set) -> Value:
        items = self._elements(node.elts)
        return self.fresh() if items is None else Seq(tuple(items))

    def _elements(self, nodes: list[ast.expr]) -> list[Value] | None:
        items: list[Value] = []
        known = True
        for node in nodes:
            if isinstance(node, ast.Starred):
                value = self.ev(node.value)
                if isinstance(value, Seq):
                    items += value.items
                else:
                    known = False
            else:
                items.append(self.ev(node))
        return items if known else None

    def _dict(self, node: ast.Dict) -> Value:
        items: dict[Any, Value] = {}
        known = True
        for key, value_node in zip(node.keys, node.values, strict=True):
            value = self.ev(value_node)
            if key is None:
                if isinstance(value, Dict):
                    items |= value.items
                else:
                    known = False
                continue
            name = self.ev(key)
            if isinstance(name, Const) and isinstance(name.value, str | int | None):
                items[name.value] = value
            else:
                known = False
        return Dict(items) if known else self.fresh()

    def _boolean(self, node: ast.BoolOp) -> Value:
        decided = isinstance(node.op, ast.Or)
        value: Value = Const(None)
        unknown: list[Value] = []
        for part in node.values:
            value = self.ev(part)
            holds = self.holds(value)
            if holds is decided and not unknown:
                return value
            if holds is decided:
                return Const(decided) if isinstance(value, Const) else value
            if holds is None:
                unknown.append(value)
        if not unknown:
            return value
        if len(unknown) == 1 and unknown[0] is value:
            return value
        keys = tuple(key_of(u) for u in unknown)
        if None in keys:
            return self.fresh()
        return self._memo(("bool", decided, keys))

    def _unary(self, node: ast.UnaryOp) -> Value:
        value = self.ev(node.operand)
        if isinstance(node.op, ast.Not):
            holds = self.holds(value)
            if holds is not None:
                return Const(not holds)
            key = key_of(value)
            return self._memo(("not", key)) if key is not None else self.fresh()
        if isinstance(value, Const) and isinstance(value.value, int | float):
            return Const(-value.value) if isinstance(node.op, ast.USub) else value
        return value if isinstance(value, Number) else self.fresh()

    def _binary(self, node: ast.BinOp) -> Value:
        left, right = self.ev(node.left), self.ev(node.right)
        if isinstance(left, Const) and isinstance(right, Const):
            function = _OPERATORS.get(type(node.op))
            if function is not None and _small(left) and _small(right):
                try:
                    return Const(function(left.value, right.value))
                except Exception:  # whatever the program's own arithmetic raises
                    return self.fresh()
        if isinstance(left, Seq) and isinstance(right, Seq) and isinstance(node.op, ast.Add):
            return Seq((*left.items, *right.items))
        if isinstance(left, Dict) and isinstance(right, Dict) and isinstance(node.op, ast.BitOr):
            return Dict({**left.items, **right.items})
        if _number(left) and _number(right):
            return Number()
        if any(isinstance(v, Part) and _PLAIN.search(v.path) for v in (left, right)):
            return Number()
        if isinstance(node.op, ast.Div):
            return self.joined_path([left, right])
        keys = key_of(left), key_of(right)
        if isinstance(node.op, ast.Add) and None not in keys:
            return self._memo(("+", keys))
        return self.fresh()

    def joined_path(self, parts: Sequence[Value]) -> Value:
        """Join the parts of a path; the same parts are the same path, however they are joined."""
        if all(_text(part) for part in parts):
            texts = [str(part.value).strip("/") for part in parts[1:] if isinstance(part, Const)]
            return Const("/".join([str(getattr(parts[0], "value", "")).rstrip("/"), *texts]))
        key = path_key(parts[0])
        for part in parts[1:]:
            inner = part.value if _text(part) else key_of(part)  # type: ignore[union-attr]
            if key is None or inner is None:
                return self.fresh()
            key = ("path", key, inner.strip("/") if isinstance(inner, str) else inner)
        return self._memo(key)

    def _compare(self, node: ast.Compare) -> Value:
        left = self.ev(node.left)
        rights = [self.ev(right) for right in node.comparators]
        if len(rights) > 1:
            return self.fresh()
        right, op = rights[0], node.ops[0]
        if isinstance(op, ast.Is | ast.IsNot | ast.Eq | ast.NotEq):
            same = self._same(left, right, identity=isinstance(op, ast.Is | ast.IsNot))
            if same is not None:
                return Const(same == isinstance(op, ast.Is | ast.Eq))
            keys = sorted((repr(key_of(left)), repr(key_of(right))))
            if "None" in keys:
                return self.fresh()
            equal = self._memo(("same", *keys))
            if isinstance(op, ast.Is | ast.Eq):
                return equal
            holds = self.holds(equal)
            return Const(not holds) if holds is not None else self._memo(("not", key_of(equal)))
        if isinstance(left, Const) and isinstance(right, Const) and type(op) in _OPERATORS:
            try:
                return Const(bool(_OPERATORS[type(op)](left.value, right.value)))
            except Exception:
                return self.fresh()
        if isinstance(op, ast.In | ast.NotIn) and isinstance(left, Const):
            found = _contains(left.value, right)
            if found is not None:
                return Const(found == isinstance(op, ast.In))
        key = (type(op).__name__, key_of(left), key_of(right))
        return self.fresh() if None in key else self._memo(key)

    def _same(self, left: Value, right: Value, *, identity: bool) -> bool | None:
        if isinstance(left, Const) and isinstance(right, Const):
            return bool(left.value is right.value if identity else left.value == right.value)
        for one, other in ((left, right), (right, left)):
            if (
                isinstance(one, Const)
                and one.value is None
                and isinstance(other, Obj | Seq | Dict | Func | Class | Partial | Part)
            ):
                return False
        if isinstance(left, Obj) and isinstance(right, Obj):
            return left.oid == right.oid
        return None

    def _conditional(self, node: ast.IfExp) -> Value:
        holds = self.test(node.test)
        if holds is not None:
            return self.ev(node.body if holds else node.orelse)
        other = self.s.copy()
        value = self.ev(node.body)
        first, self.s = self.s, other
        alternative = self.ev(node.orelse)
        self.s = join([first, self.s], self.fresh)
        if value == alternative:
            return value
        if isinstance(value, Obj) and isinstance(alternative, Obj) and value.oid == alternative.oid:
            return Obj(value.oid, wrapped=value.wrapped or alternative.wrapped)
        if isinstance(value, Obj) and isinstance(alternative, Const | Opaque):
            return value
        if isinstance(alternative, Obj) and isinstance(value, Const | Opaque):
            return alternative
        return self.fresh()

    def _subscript(self, node: ast.Subscript) -> Value:
        owner = self.ev(node.value)
        index = self.ev(node.slice) if not isinstance(node.slice, ast.Slice) else None
        if isinstance(owner, Part) and owner.path == "components" and _text(index):
            return self.read_attribute(owner.owner, index.value)  # type: ignore[union-attr]
        if isinstance(owner, Part):
            return Part(owner.owner, f"{owner.path}[]")
        if isinstance(index, Const):
            return self.item(owner, index.value)
        if isinstance(owner, Seq) and index is None:
            return self._slice(owner, node.slice)
        if index is not None and (key := key_of(index)) and (whole := key_of(owner)):
            return self._memo((whole, "[]", key))
        return self.fresh()

    def item(self, owner: Value, index: Any) -> Value:
        """Read ``owner[index]`` with a constant index."""
        if (
            isinstance(owner, Seq)
            and isinstance(index, int)
            and -len(owner.items) <= index < len(owner.items)
        ):
            return _drawn(owner.items[index], owner)
        if isinstance(owner, Dict) and index in owner.items:
            return owner.items[index]
        if isinstance(owner, Opaque | Obj):
            return self._memo((owner.oid, "[]", repr(index)))
        return self.fresh()

    def _slice(self, owner: Seq, node: ast.expr) -> Value:
        if not isinstance(node, ast.Slice):
            return self.fresh()
        ends = [self.ev(end) for end in (node.lower, node.upper, node.step)]
        if all(isinstance(e, Const) and isinstance(e.value, int | None) for e in ends):
            lower, upper, step = (e.value for e in ends if isinstance(e, Const))
            return Seq(owner.items[slice(lower, upper, step or None)])
        return self.fresh()

    def _joined(self, node: ast.JoinedStr) -> Value:
        parts: list[str] = []
        keys: list[Any] = []
        for piece in node.values:
            inner = piece.value if isinstance(piece, ast.FormattedValue) else piece
            value = self.ev(inner)
            keys.append(key_of(value))
            if isinstance(value, Const):
                parts.append(str(value.value))
        if len(parts) == len(node.values):
            return Const("".join(parts))
        values = node.values
        if len(values) in (2, 3) and isinstance(values[0], ast.FormattedValue):
            slash = values[1]
            if (
                isinstance(slash, ast.Constant)
                and str(slash.value)[:1] == "/"
                and (len(values) == 2 or slash.value == "/")
            ):
                last = values[-1]
                inner = last.value if isinstance(last, ast.FormattedValue) else last
                return self.joined_path([self.ev(values[0].value), self.ev(inner)])
        return self.fresh() if None in keys else self._memo(("f", tuple(keys)))

    def _lambda(self, node: ast.Lambda) -> Value:
        return Func(node, None, len(self.s.frames) - 1)

    def _walrus(self, node: ast.NamedExpr) -> Value:
        value = self.ev(node.value)
        self.s.frames[-1].bind(node.target.id, value)
        return value

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Value:
        values = self._comprehended(node.generators, [node.elt])
        return self.fresh() if values is None else Seq(tuple(v[0] for v in values))

    def _dict_comprehension(self, node: ast.DictComp) -> Value:
        values = self._comprehended(node.generators, [node.key, node.value])
        if values is None or not all(isinstance(k, Const) for k, _ in values):
            return self.fresh()
        return Dict({k.value: v for k, v in values if isinstance(k, Const)})

    def _comprehended(
        self, generators: list[ast.comprehension], wanted: list[ast.expr]
    ) -> list[list[Value]] | None:
        outer = Table(self.s.frames[-1].names)
        first, *others = generators
        elements = self.elements(self.ev(first.iter))
        known = elements is not None and not others
        found: list[list[Value]] = []
        for element in elements if elements is not None else [self.fresh()]:
            self.assign(first.target, element)
            for other in others:
                self.ev(other.iter)
                self.assign(other.target, self.fresh())
            tests = [self.test(t) for t in first.ifs]
            if False in tests:
                continue
            known = known and None not in tests
            found.append([self.ev(part) for part in wanted])
        self.s.frames[-1].names = outer
        return found if known else None

    def elements(self, value: Value) -> list[Value] | None:
        """Return the elements of an iterable, None if they are not known."""
        if isinstance(value, Seq):
            return list(value.items)
        if isinstance(value, Dict):
            return [Const(key) for key in value.items]
        if isinstance(value, Part):
            return [Part(value.owner, f"{value.path}[]")]
        return None

    def assign(self, target: ast.expr, value: Value) -> None:
        """Bind a target to a value."""
        raise NotImplementedError

    def mutate(self, holder: ast.expr, value: Value) -> None:
        """Change a container in place: where the name is bound, which may be outside of the function."""
        frame = self.frame_of(holder.id) if isinstance(holder, ast.Name) else None
        if frame is not None and isinstance(holder, ast.Name):
            frame.bind(holder.id, value)
        else:
            self.assign(holder, value)

    # -- conditions -----------------------------------------------------------------------------

    def holds(self, value: Value) -> bool | None:
        """Tell whether the value is true on this path."""
        known = truth(value)
        if known is not None:
            return known
        key = key_of(value)
        return self.s.assumed.get(key) if key is not None else None

    def test(self, node: ast.expr) -> bool | None:
        """Tell whether a condition holds on this path."""
        return self.holds(self.ev(node))

    def assume(self, node: ast.expr, holds: bool) -> None:
        """Remember on this path that the condition holds, or does not."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.assume(node.operand, not holds)
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) == holds:
            for part in node.values:
                self.assume(part, holds)
        elif isinstance(node, ast.NamedExpr):
            self.assume(node.value, holds)
        elif self._repeatable(node) and (key := key_of(self.ev(node))) is not None:
            self.s.assumed[key] = holds
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.IsNot | ast.NotEq):
                self._assume_equal(node, not holds)

    def _repeatable(self, node: ast.expr) -> bool:
        """Tell whether evaluating the condition again has no effect and the same value."""
        found = self._conditions.get(node)
        if found is None:
            found = self._conditions[node] = not any(
                isinstance(n, ast.Await | ast.NamedExpr)
                or (isinstance(n, ast.Call) and last_name(n.func) not in _PURE)
                for n in ast.walk(node)
            )
        return found

    def _assume_equal(self, node: ast.Compare, equal: bool) -> None:
        keys = sorted(
            (repr(key_of(self.ev(node.left))), repr(key_of(self.ev(node.comparators[0]))))
        )
        if "None" not in keys and (key := key_of(self._memo(("same", *keys)))) is not None:
            self.s.assumed[key] = equal


def _text(value: Value | None) -> bool:
    return isinstance(value, Const) and isinstance(value.value, str)


def path_key(value: Value | None) -> Any:
    """Return what identifies a path: a text without its last slash, or the identity of something unknown."""
    if isinstance(value, Const):
        return str(value.value).rstrip("/") if isinstance(value.value, str) else None
    return key_of(value) if value is not None else None


def _small(value: Const) -> bool:
    if isinstance(value.value, int | float):
        return abs(value.value) < 1 << 32
    return isinstance(value.value, str) and len(value.value) < 500


def _number(value: Value) -> bool:
    return isinstance(value, Number) or (
        isinstance(value, Const)
        and isinstance(value.value, int | float)
        and not isinstance(value.value, bool)
    )


def _contains(item: Any, container: Value) -> bool | None:
    if isinstance(container, Dict):
        return item in container.items
    if isinstance(container, Seq) and all(isinstance(v, Const) for v in container.items):
        return any(isinstance(v, Const) and v.value == item for v in container.items)
    return None


def _drawn(value: Value, owner: Seq) -> Value:
    numbers = tuple(v.value for v in owner.items if isinstance(v, Const) and type(v.value) is int)
    if isinstance(value, Const) and type(value.value) is int and len(numbers) == len(owner.items):
        return Const(value.value, numbers)
    return value


_HANDLERS: dict[type[ast.AST], Callable[[Evaluator, Any], Value]] = {
    ast.Attribute: Evaluator._attribute,
    ast.Await: Evaluator._await,
    ast.BinOp: Evaluator._binary,
    ast.BoolOp: Evaluator._boolean,
    ast.Call: lambda e, n: e.call(n),
    ast.Compare: Evaluator._compare,
    ast.Constant: Evaluator._constant,
    ast.Dict: Evaluator._dict,
    ast.DictComp: Evaluator._dict_comprehension,
    ast.GeneratorExp: Evaluator._comprehension,
    ast.IfExp: Evaluator._conditional,
    ast.JoinedStr: Evaluator._joined,
    ast.Lambda: Evaluator._lambda,
    ast.List: Evaluator._sequence,
    ast.ListComp: Evaluator._comprehension,
    ast.Name: Evaluator._name,
    ast.NamedExpr: Evaluator._walrus,
    ast.Set: Evaluator._sequence,
    ast.SetComp: Evaluator._comprehension,
    ast.Subscript: Evaluator._subscript,
    ast.Tuple: Evaluator._sequence,
    ast.UnaryOp: Evaluator._unary,
}
