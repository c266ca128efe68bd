"""Call what is named: functions and classes of the file, models, libraries, and the unknown."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hotswap.lint.apis import FUNCTIONS, OF_PEFT
from hotswap.lint.interpreter.methods import PROMOTING
from hotswap.lint.interpreter.models import Models
from hotswap.lint.interpreter.names import HARMLESS, OBSERVES
from hotswap.lint.interpreter.objects import Args, last_name
from hotswap.lint.interpreter.state import Frame, State, Table, join, merge
from hotswap.lint.interpreter.typestate import opened
from hotswap.lint.interpreter.values import (
    Class,
    Const,
    Dict,
    Func,
    GradMode,
    Method,
    Number,
    Obj,
    Opaque,
    Part,
    Partial,
    Ref,
    Seq,
    Tensor,
    Value,
    key_of,
)

DEEPEST = 8
_GRAD = {
    "torch.no_grad": "no_grad",
    "torch.inference_mode": "inference_mode",
    "torch.enable_grad": "grad",
    "torch.autograd.no_grad": "no_grad",
    "torch.autograd.inference_mode": "inference_mode",
}
_TENSORS = frozenset(
    {
        "tensor",
        "as_tensor",
        "full",
        "full_like",
        "zeros",
        "ones",
        "zeros_like",
        "ones_like",
        "scalar_tensor",
        "empty",
        "from_numpy",
    }
)
_CALLS_ITS_ARGUMENT = frozenset(
    {"to_thread", "submit", "run_in_executor", "run_sync", "run_in_threadpool"}
)
_COMPILE_OPTIONS = {"mode", "fullgraph", "dynamic", "backend", "options", "disable"}
_SELF_LIKE = frozenset({"to", "eval", "cuda", "half", "train", "bfloat16", "float", "cpu"})


class Caller(Models):
    """Evaluates calls; those of the file's own functions by executing their bodies."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.executed: set[ast.AST] = set()
        self._stack: list[tuple[ast.AST, Value | None]] = []
        """The functions that are running, each with what ``self`` is."""
        self._nested: list[list[Func]] = []

    def block(self, nodes: Sequence[ast.stmt], state: State) -> list[State]:
        """Execute statements; return the states in which they end, on every path."""
        raise NotImplementedError

    def calls(self, node: ast.Call) -> list[State]:
        """Evaluate a call; each outcome is a state with its ``result``."""
        func = node.func
        if isinstance(func, ast.Attribute) and last_name(func.value) == "super":
            inherited = self._inherited(func.attr)
            if inherited is not None:
                return self.inline(inherited, self.arguments(node))
        owner = self.ev(func.value) if isinstance(func, ast.Attribute) else None
        args = self.arguments(node)
        if isinstance(func, ast.Attribute) and owner is not None:
            return self.call_attribute(self.known(owner), func.attr, args)
        return self.invoke(self.ev(func), args)

    def _inherited(self, name: str) -> Func | None:
        """Return the method that ``super().name`` stands for in the method that is running."""
        if not self._stack:
            return None
        node, owner = self._stack[-1]
        cls = self.s.heap.get((owner.oid, "__class__")) if isinstance(owner, Obj) else owner
        line = list(_line_of(cls)) if isinstance(cls, Class) else []
        defines = [i for i, c in enumerate(line) if node in c.node.body]
        for base in line[defines[0] + 1 :] if defines else ():
            found = self.s.heap.get((base.oid, name))
            if isinstance(found, Func) and owner is not None:
                return Func(found.node, owner, found.frame)
        return None

    def arguments(self, node: ast.Call) -> Args:
        """Evaluate the arguments of a call."""
        positional: list[Value] = []
        keywords: dict[str, Value] = {}
        starred = False
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                value = self.ev(arg.value)
                starred = starred or not isinstance(value, Seq)
                positional += value.items if isinstance(value, Seq) else ()
            else:
                positional.append(self.ev(arg))
        for keyword in node.keywords:
            value = self.ev(keyword.value)
            if keyword.arg is not None:
                keywords[keyword.arg] = value
            elif isinstance(value, Dict):
                keywords |= {str(k): v for k, v in value.items.items()}
            else:
                starred = True
        return Args(node, positional, keywords, starred)

    def done(self, value: Value | None) -> list[State]:
        """Return the current state with the result of a call."""
        self.s.result = value
        return [self.s]

    def invoke_one(self, func: Value, args: Args) -> Value:
        outcomes = self.invoke(func, args)
        self.s = join(outcomes, self.fresh)
        result, self.s.result = self.s.result, None
        return result if result is not None else Const(None)

    def call_attribute(self, owner: Value, name: str, args: Args) -> list[State]:
        """Call ``owner.name(...)``."""
        if isinstance(owner, Ref):
            return self.call_ref(f"{owner.name}.{name}", args)
        if isinstance(owner, Class) and name in (
            "from_pretrained",
            "from_single_file",
            "from_pipe",
        ):
            made = self._inherited_make(owner, args)
            if made is not None:
                return self.done(made)
        if isinstance(owner, Opaque):
            kind = PROMOTING.get(name)
            if name == "compile" and not args.positional and set(args.keywords) <= _COMPILE_OPTIONS:
                kind = "unknown"
            found = self.become(owner, kind) if kind else None
            owner = found if found is not None else owner
        if isinstance(owner, Obj):
            return self._call_on_object(owner, name, args)
        if isinstance(owner, Part):
            made = self.part_method(Part(owner.owner, f"{owner.path}.{name}"), args)
            return self.done(made if made is not None else self.fresh())
        if isinstance(owner, Seq | Dict | Const | Number | Tensor):
            return self.done(self._container_method(owner, name, args))
        target = self.read_attribute(owner, name)
        if isinstance(target, Opaque | Method):
            return self.done(self.unknown_call(target, name, args))
        return self.invoke(target, args)

    def _call_on_object(self, owner: Obj, name: str, args: Args) -> list[State]:
        kind = self.facts(owner).kind
        target = self.read_attribute(owner, name)
        if isinstance(target, Func):
            return self.invoke(target, args)
        if kind != "instance":
            result = self.method(owner, name, args)
            return self.done(result if result is not None else self.fresh())
        if name in ("compile", *PROMOTING) or (name in _SELF_LIKE and self._is_module(owner)):
            result = self.method(owner, name, args)
            if result is not None:
                return self.done(result)
        if isinstance(target, Opaque):
            return self.done(self.unknown_call(target, name, args))
        return self.invoke(target, args)

    def _is_module(self, owner: Obj) -> bool:
        cls = self.s.heap.get((owner.oid, "__class__"))
        return isinstance(cls, Class) and any(
            last_name(base) == "Module" for base in cls.node.bases
        )

    def _inherited_make(self, cls: Class, args: Args) -> Value | None:
        for base in cls.bases:
            if isinstance(base, Ref) and (made := self.make(base.name, args)) is not None:
                if isinstance(made, Obj):
                    self.s.put((made.oid, "__class__"), cls)
                return made
        return None

    def invoke(self, func: Value, args: Args) -> list[State]:
        """Call a value."""
        func = self.known(func)
        if isinstance(func, Ref):
            return self.call_ref(func.name, args)
        if isinstance(func, Func):
            return self.inline(func, args)
        if isinstance(func, Class):
            return self.instantiate(func, args)
        if isinstance(func, Obj):
            return self._call_model(func, args)
        if isinstance(func, Part):
            result = self.part_method(func, args)
            return self.done(result if result is not None else self.fresh())
        if isinstance(func, Partial):
            merged = Args(
                args.node,
                [*func.args, *args.positional],
                {**func.keywords, **args.keywords},
                args.starred,
            )
            return self.invoke(func.func, merged)
        return self.done(self.unknown_call(func, last_name(args.node), args))

    def _call_model(self, obj: Obj, args: Args) -> list[State]:
        if self.facts(obj).kind == "instance":
            for name in ("__call__", "forward"):
                target = self.read_attribute(obj, name)
                if isinstance(target, Func):
                    if self.facts(obj).compiled:
                        self.do_run(obj, args.node, grad=self.grad)
                    return self.inline(target, args)
        self.do_run(obj, args.node, grad=self.grad)
        return self.done(self.fresh())

    def call_ref(self, name: str, args: Args) -> list[State]:
        """Call something imported, by its qualified name."""
        last = name.rsplit(".", 1)[-1]
        in_peft = name.startswith("peft.") and last in OF_PEFT
        special = FUNCTIONS.get(last if in_peft else name)
        if special is not None:
            return special(self, args)
        owner = name.rpartition(".")[0]
        if last in ("from_pretrained", "from_single_file", "from_pipe", "from_config"):
            made = self.make(owner, args)
            return self.done(made if made is not None else self.fresh())
        if last[:1].isupper() and (made := self.make(name, args)) is not None:
            return self.done(made)
        if name in _GRAD:
            return self.done(GradMode(_GRAD[name]))
        if name.startswith("torch.") and last in _TENSORS:
            return self.done(Tensor())
        return self.done(self.unknown_call(Ref(name), last, args))

    def unknown_call(self, func: Value, name: str, args: Args) -> Value:
        """Call something that is not in this file: it may do anything to the models it is given."""
        harmless = isinstance(func, Ref) and func.name.split(".")[0] in HARMLESS
        harmless = harmless or bool(OBSERVES.match(name))
        for value in args.all():
            if name in _CALLS_ITS_ARGUMENT or name == "Thread":
                self._call_argument(value, args, name)
            if not harmless:
                self.reveal(value)
        return self.fresh()

    def _call_argument(self, value: Value, args: Args, name: str) -> None:
        target = args.get(None, "target") if name == "Thread" else value
        if not isinstance(target, Func | Part | Partial | Obj) or (
            name != "Thread" and value is not target
        ):
            return
        rest = [v for v in args.positional if v is not value]
        if name == "run_in_executor":
            rest = rest[1:]
        if name == "Thread":
            given = args.get(None, "args")
            rest = list(given.items) if isinstance(given, Seq) else []
        keywords = {} if name == "Thread" else args.keywords
        self.invoke_one(target, Args(args.node, rest, keywords, False))

    def reveal(self, value: Value) -> None:
        """Hand a value to unknown code: a model's history is unknown from here on."""
        value = self.known(value)
        if isinstance(value, Obj):
            self.put(value, opened(self.facts(value)))
            if self.facts(value).kind == "pipeline":
                self.reveal(self.component(value, "transformer"))
        elif isinstance(value, Seq):
            for item in value.items:
                self.reveal(item)
        elif isinstance(value, Dict):
            for item in value.items.values():
                self.reveal(item)

    def instantiate(self, cls: Class, args: Args) -> list[State]:
        """Create an instance of a class of this file."""
        made = self._inherited_make(cls, args)
        if isinstance(made, Obj):
            return self.done(made)
        obj = self.new("instance")
        self.s.put((obj.oid, "__class__"), cls)
        init = self.read_attribute(obj, "__init__")
        if not isinstance(init, Func):
            for key, value in args.keywords.items():
                self.s.put((obj.oid, key), value)
            return self.done(obj)
        ends = self.inline(init, args)
        for end in ends:
            end.result = obj
        return ends

    def leave_all(self) -> None:
        """Forget which functions are running, after an analysis was given up."""
        self._stack.clear()
        self._nested.clear()

    def inline(self, func: Func, args: Args) -> list[State]:
        """Call a function of this file by executing its body."""
        node = func.node
        self.executed.add(node)
        if len(self._stack) >= DEEPEST or any(node is n for n, _ in self._stack):
            for value in args.all():
                self.reveal(value)
            return self.done(self.fresh())
        if isinstance(node, ast.Lambda):
            return self._inline_lambda(node, func, args)
        memo = self._memo_key(node, args)
        if memo is not None and memo in self.s.heap:
            return self.done(self.s.heap[memo])
        grad = self.s.grad
        for decorator in node.decorator_list:
            if (mode := self._decorated_grad(decorator)) is not None:
                self.s.grad = (*self.s.grad, mode)
        depth = len(self.s.frames)
        self.s.frames.append(
            Frame(min(func.frame, depth - 1), Table(self.bind(node.args, func, args)))
        )
        self._stack.append((node, func.owner))
        turn, self.turn = self.turn, (*self.turn, args.node)
        self._nested.append([])
        ends = self.block(_entered(node), self.s)
        self._call_later(self._nested.pop(), ends)
        self.turn = turn
        self._stack.pop()
        returned = []
        for end in ends:
            if end.exit == "raise":
                continue
            del end.frames[depth:]
            end.exit = None
            end.grad = grad
            if memo is not None and end.result is not None:
                end.put(memo, end.result)
            returned.append(end)
        if not returned:  # it raises on every path: what follows is not reached
            last = ends[0]
            del last.frames[depth:]
            last.exit, last.result, last.grad = "raise", None, grad
            returned = [last]
        self.s = returned[0]
        return merge(returned, self.fresh)

    def _call_later(self, nested: list[Func], ends: list[State]) -> None:
        """Run the functions that a function defined and did not call: somebody calls them afterwards."""
        for func in nested:
            if func.node in self.executed or not self.may_matter(func.node):
                continue
            for end in [end for end in ends if end.exit != "raise"]:
                state = end.copy()
                state.exit = state.result = None
                self.finish(self.call_from_outside(func, self.call_from_outside(func, [state])))

    def call_from_outside(self, func: Func, paths: list[State]) -> list[State]:
        """Call a function with unknown arguments on every path."""
        call = ast.copy_location(ast.Call(ast.Name("entry"), [], []), func.node)
        ends = []
        for state in paths:
            self.s = state
            state.grad = ()
            ends += self.inline(func, Args(call, [], {}, starred=True))
        for end in ends:
            end.exit = end.result = None
        return merge(ends, self.fresh)

    def may_matter(self, node: ast.AST) -> bool:
        """Tell whether anything in the node's lines can matter."""
        raise NotImplementedError

    def _inline_lambda(self, node: ast.Lambda, func: Func, args: Args) -> list[State]:
        depth = len(self.s.frames)
        self.s.frames.append(
            Frame(min(func.frame, depth - 1), Table(self.bind(node.args, func, args)))
        )
        self._stack.append((node, func.owner))
        value = self.ev(node.body)
        self._stack.pop()
        del self.s.frames[depth:]
        return self.done(value)

    def _memo_key(self, node: ast.FunctionDef | ast.AsyncFunctionDef, args: Args) -> Any:
        if not any("cache" in last_name(d) for d in node.decorator_list):
            return None
        return ("memo", node, tuple(key_of(v) for v in args.positional))

    def _decorated_grad(self, decorator: ast.expr) -> str | None:
        if isinstance(decorator, ast.Call) and last_name(decorator) in (
            "no_grad",
            "inference_mode",
        ):
            return last_name(decorator)
        return (
            last_name(decorator) if last_name(decorator) in ("no_grad", "inference_mode") else None
        )

    def bind(self, spec: ast.arguments, func: Func, args: Args) -> dict[str, Value]:
        """Bind a function's parameters."""
        names = [a.arg for a in (*spec.posonlyargs, *spec.args)]
        values = list(args.positional)
        if func.owner is not None:
            values.insert(0, func.owner)
        bound: dict[str, Value] = dict(zip(names, values, strict=False))
        if spec.vararg:
            rest = values[len(names) :]
            bound[spec.vararg.arg] = self.fresh() if args.starred else Seq(tuple(rest))
        extra: dict[Any, Value] = {}
        allowed = {*names, *(a.arg for a in spec.kwonlyargs)}
        for name, value in args.keywords.items():
            (bound if name in allowed else extra)[name] = value
        if spec.kwarg:
            bound[spec.kwarg.arg] = self.fresh() if args.starred else Dict(extra)
        defaults = dict(zip(reversed(names), reversed(spec.defaults), strict=False))
        for parameter, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
            if default is not None:
                defaults[parameter.arg] = default
        annotations = {
            a.arg: a.annotation for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)
        }
        for name in sorted(allowed - bound.keys()):
            default = defaults.get(name)
            given = default is not None and not args.starred
            bound[name] = self.ev(default) if given else self._unknown_of(annotations.get(name))
        return bound

    def _unknown_of(self, annotation: ast.expr | None) -> Value:
        is_float = isinstance(annotation, ast.Name) and annotation.id == "float"
        return Number() if is_float else self.fresh()

    def _container_method(self, owner: Value, name: str, args: Args) -> Value:
        func = args.node.func
        holder = func.value if isinstance(func, ast.Attribute) else None
        if isinstance(owner, Seq):
            if name == "append" and args.positional and holder is not None:
                if isinstance(holder, ast.Name | ast.Attribute):
                    self.mutate(holder, Seq((*owner.items, args.positional[0])))
                return Const(None)
            if name in ("extend", "insert", "pop", "remove", "clear", "sort", "reverse"):
                if isinstance(holder, ast.Name | ast.Attribute):
                    self.mutate(holder, self.fresh())
                return self.fresh()
        if isinstance(owner, Dict):
            if name == "values":
                return Seq(tuple(owner.items.values()))
            if name == "keys":
                return Seq(tuple(Const(key) for key in owner.items))
            if name == "items":
                return Seq(tuple(Seq((Const(k), v)) for k, v in owner.items.items()))
            if name == "get" and args.positional and isinstance(args.positional[0], Const):
                default = args.positional[1] if len(args.positional) > 1 else Const(None)
                return owner.items.get(args.positional[0].value, default)
            if name in ("update", "pop", "setdefault", "clear") and isinstance(
                holder, ast.Name | ast.Attribute
            ):
                self.mutate(holder, self.fresh())
        return self.fresh()


def _entered(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    """Return what a function does; a context manager only enters: what follows its yield comes later."""
    if any(last_name(d) in ("contextmanager", "asynccontextmanager") for d in node.decorator_list):
        for index, statement in enumerate(node.body):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Yield):
                entered = ast.copy_location(ast.Return(statement.value.value), statement)
                return [*node.body[:index], entered]
    return node.body


def _line_of(cls: Class) -> Iterator[Class]:
    yield cls
    for base in cls.bases:
        if isinstance(base, Class):
            yield from _line_of(base)
