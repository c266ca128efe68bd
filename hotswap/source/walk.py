"""Run a program on abstract values: statements, branches, loops, and calls of the file's own functions."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hotswap.source.evaluate import Args, TooLongError, _last
from hotswap.source.models import PROMOTING, Models
from hotswap.source.names import HARMLESS, OBSERVES, imported
from hotswap.source.relevance import Relevance
from hotswap.source.state import Frame, State, Table, join, merge
from hotswap.source.typestate import Facts, Shape, opened
from hotswap.source.values import (
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
MOST_STEPS = 2500
"""Statements that one way into the program may take, over all of its paths."""
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
_RAISES = frozenset(
    {"raises", "assertRaises", "assertRaisesRegex", "assertWarns", "warns", "assertWarnsRegex"}
)


class Walker(Models):
    """Executes statements on every path."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.steps = 0
        self.executed: set[ast.AST] = set()
        self.callbacks: list[Func] = []
        self.matters: Relevance | None = None
        """Set before anything runs: what the program has that can matter."""
        self._stack: list[ast.AST] = []
        self._stored: dict[ast.stmt, list[ast.Name | ast.Attribute] | None] = {}

    # -- statements -----------------------------------------------------------------------------

    def block(self, nodes: Sequence[ast.stmt], state: State) -> list[State]:
        """Execute statements; return the states in which they end, on every path."""
        live, done = [state], list[State]()
        for node in nodes:
            after: list[State] = []
            for one in live:
                for end in self.statement(node, one):
                    (done if end.exit else after).append(end)
            live = merge(after, self.fresh)
            if not live:
                break
        return live + done

    def statement(self, node: ast.stmt, state: State) -> list[State]:
        """Execute one statement."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise TooLongError
        self.s = state
        handler = _STATEMENTS.get(type(node))
        if handler is None:
            return [state]
        if isinstance(node, _BLOCKS) and self._passes_by(node):
            return [state]
        return handler(self, node)

    def _passes_by(self, node: ast.stmt) -> bool:
        """Pass by a block that neither leaves nor does anything that matters; what it assigns is unknown."""
        if self.matters is None or self.matters.touches(node):
            return False
        if node not in self._stored:
            inside = list(ast.walk(node))
            self._stored[node] = (
                None
                if any(isinstance(n, _EXITS) for n in inside)
                else [
                    n
                    for n in inside
                    if isinstance(n, ast.Name | ast.Attribute) and isinstance(n.ctx, ast.Store)
                ]
            )
        stored = self._stored[node]
        for target in stored or ():
            self.assign(target, self.fresh())
        return stored is not None

    def _expression(self, node: ast.Expr) -> list[State]:
        if isinstance(node.value, ast.Constant):
            return [self.s]
        return [after for after, _ in self.outcomes(node.value)]

    def outcomes(self, node: ast.expr | None) -> list[tuple[State, Value]]:
        """Evaluate an expression; a call of the file's own functions can have several outcomes."""
        while isinstance(node, ast.Await):
            node = node.value
        if isinstance(node, ast.IfExp):
            return self._either(node)
        if not isinstance(node, ast.Call):
            value = self.ev(node)
            return [(self.s, value)]
        results = []
        for state in self.calls(node):
            returned, state.result = state.result, None
            known = Const(None) if returned is None else self._known_in(state, returned)
            results.append((state, known))
        return results

    def _either(self, node: ast.IfExp) -> list[tuple[State, Value]]:
        holds = self.test(node.test)
        if holds is not None:
            return self.outcomes(node.body if holds else node.orelse)
        other = self.s.copy()
        self.assume(node.test, True)
        first = self.outcomes(node.body)
        self.s = other
        self.assume(node.test, False)
        return first + self.outcomes(node.orelse)

    def _known_in(self, state: State, value: Value) -> Value:
        self.s = state
        return self.known(value)

    def _assign(self, node: ast.Assign) -> list[State]:
        ends = []
        for state, value in self.outcomes(node.value):
            self.s = state
            for target in node.targets:
                self.assign(target, value, node.value)
            ends.append(self.s)
        return ends

    def _annotated(self, node: ast.AnnAssign) -> list[State]:
        if node.value is None:
            return [self.s]
        ends = []
        for state, value in self.outcomes(node.value):
            self.s = state
            self.assign(node.target, value, node.value)
            ends.append(self.s)
        return ends

    def _augmented(self, node: ast.AugAssign) -> list[State]:
        operation = ast.BinOp(node.target, node.op, node.value)
        result = self.ev(ast.copy_location(operation, node))
        if isinstance(node.target, ast.Name | ast.Attribute):
            self.assign(node.target, result)
        return [self.s]

    def assign(self, target: ast.expr, value: Value, source: ast.expr | None = None) -> None:
        """Bind a name, an attribute, an element, or each of several targets."""
        if isinstance(target, ast.Name):
            frame = self.s.frames[-1]
            if target.id in frame.outer:
                frame = self.s.frames[frame.outer[target.id]]
            frame.bind(target.id, value)
        elif isinstance(target, ast.Attribute):
            self._assign_attribute(target, value)
        elif isinstance(target, ast.Subscript):
            self._assign_element(target, value)
        elif isinstance(target, ast.Tuple | ast.List):
            self._unpack(target.elts, value)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, self.fresh())

    def _assign_attribute(self, target: ast.Attribute, value: Value) -> None:
        owner = self.ev(target.value)
        if (
            isinstance(owner, Opaque)
            and target.attr in ("unet", "transformer")
            and isinstance(value, Obj)
        ):
            owner = self.become(owner, "pipeline") or owner
        if isinstance(owner, Obj):
            name = target.attr
            if self.facts(owner).kind == "pipeline" and name in ("unet", "transformer"):
                name = "denoiser"
            self.s.put((owner.oid, name), value)
        elif isinstance(owner, Opaque | Class):
            self.s.put((owner.oid, target.attr), value)

    def _assign_element(self, target: ast.Subscript, value: Value) -> None:
        owner = self.ev(target.value)
        index = self.ev(target.slice) if not isinstance(target.slice, ast.Slice) else None
        if isinstance(owner, Part) and owner.path.rpartition(".")[2] == "scaling":
            self.do_scale(owner.owner, target, "scaling", value)
        elif isinstance(owner, Dict) and isinstance(index, Const):
            self.assign(target.value, Dict({**owner.items, index.value: value}))
        elif isinstance(owner, Dict | Seq):
            self.assign(target.value, self.fresh())
        elif isinstance(owner, Opaque | Obj) and index is not None and (key := key_of(index)):
            name = repr(index.value) if isinstance(index, Const) else key
            self.s.heap[owner.oid, "[]", name] = value

    def _unpack(self, targets: list[ast.expr], value: Value) -> None:
        if isinstance(value, Seq) and len(value.items) == len(targets):
            for target, item in zip(targets, value.items, strict=True):
                self.assign(target, item)
        elif isinstance(value, Part) and "named_" in value.path:
            for target in targets[:-1]:
                self.assign(target, self.fresh())
            self.assign(targets[-1], value)
        else:
            for target in targets:
                self.assign(target, self.fresh())

    def _return(self, node: ast.Return) -> list[State]:
        ends = []
        for state, value in self.outcomes(node.value):
            state.exit, state.result = "return", value
            ends.append(state)
        return ends

    def _leave(self, node: ast.stmt) -> list[State]:
        names: dict[type[ast.stmt], Any] = {
            ast.Break: "break",
            ast.Continue: "continue",
            ast.Raise: "raise",
        }
        if isinstance(node, ast.Raise) and node.exc is not None:
            self.ev(node.exc)
        self.s.exit = names[type(node)]
        return [self.s]

    def _assert(self, node: ast.Assert) -> list[State]:
        self.ev(node.test)
        self.assume(node.test, True)
        return [self.s]

    def _if(self, node: ast.If) -> list[State]:
        holds = self.test(node.test)
        if holds is not None:
            return self.block(node.body if holds else node.orelse, self.s)
        other = self.s.copy()
        self.assume(node.test, True)
        ends = self.block(node.body, self.s)
        self.s = other
        self.assume(node.test, False)
        ends += self.block(node.orelse, self.s)
        return ends

    def _for(self, node: ast.For | ast.AsyncFor) -> list[State]:
        over = self.ev(node.iter)
        elements = self.elements(over)
        if elements is None:
            elements = [self.fresh(), self.fresh()]
        elif isinstance(over, Part):
            elements = elements[:1]
        return self._turns(node.body, node.orelse, elements[:8], node.target, bool(elements))

    def _while(self, node: ast.While) -> list[State]:
        holds = self.test(node.test)
        if holds is False:
            return self.block(node.orelse, self.s)
        return self._turns(node.body, node.orelse, [None, None], None, True)

    def _turns(
        self,
        body: list[ast.stmt],
        orelse: list[ast.stmt],
        elements: Sequence[Value | None],
        target: ast.expr | None,
        runs: bool,
    ) -> list[State]:
        live, ends, broken = [self.s], [], []
        turn = self.turn
        for number, element in enumerate(elements):
            self.turn = (*turn, body[0], number)
            after: list[State] = []
            for state in live:
                self.s = state
                if target is not None and element is not None:
                    self.assign(target, element)
                for end in self.block(body, self.s):
                    if end.exit in (None, "continue"):
                        end.exit = None
                        after.append(end)
                    elif end.exit == "break":
                        end.exit = None
                        broken.append(end)
                    else:
                        ends.append(end)
            live = merge(after, self.fresh)
        self.turn = turn
        finished: list[State] = []
        for state in live:
            finished += self.block(orelse, state)
        return merge(finished + broken, self.fresh) + ends

    def _with(self, node: ast.With | ast.AsyncWith) -> list[State]:
        grad, muted = self.s.grad, self.s.muted
        quiet = False
        for item in node.items:
            value = self.ev(item.context_expr)
            quiet = quiet or _last(item.context_expr) in _RAISES
            if isinstance(value, GradMode):
                self.s.grad = (*self.s.grad, value.mode)
            if item.optional_vars is not None:
                self.assign(item.optional_vars, value)
        if quiet:
            before = self.s.copy()
            self.s.muted += 1
            self.block(node.body, self.s)
            return [before]
        ends = self.block(node.body, self.s)
        for end in ends:
            end.grad, end.muted = grad, muted
        return ends

    def _try(self, node: ast.Try) -> list[State]:
        before = self.s.copy()
        ends = []
        for end in self.block(node.body, self.s):
            ends += [end] if end.exit else self.block(node.orelse, end)
        for handler in node.handlers:
            state = before.copy()
            state.muted += 1
            if handler.name:
                state.frames[-1].bind(handler.name, self.fresh())
            for end in self.block(handler.body, state):
                end.muted -= 1
                ends.append(end)
        finished: list[State] = []
        for end in merge(ends, self.fresh):
            exit_, result = end.exit, end.result
            end.exit = end.result = None
            for last in self.block(node.finalbody, end):
                if last.exit is None:
                    last.exit, last.result = exit_, result
                finished.append(last)
        return finished

    def _match(self, node: ast.Match) -> list[State]:
        self.ev(node.subject)
        ends = [self.s.copy()]
        for case in node.cases:
            state = self.s.copy()
            for part in ast.walk(case.pattern):
                name = getattr(part, "name", None) or getattr(part, "rest", None)
                if isinstance(name, str):
                    state.frames[-1].bind(name, self.fresh())
            ends += self.block(case.body, state)
        return ends

    def _import(self, node: ast.Import | ast.ImportFrom) -> list[State]:
        for name, qualified in imported(node):
            self.s.frames[-1].bind(name, Ref(qualified))
        return [self.s]

    def _global(self, node: ast.Global) -> list[State]:
        for name in node.names:
            self.s.frames[-1].outer[name] = 0
        return [self.s]

    def _nonlocal(self, node: ast.Nonlocal) -> list[State]:
        for name in node.names:
            self.s.frames[-1].outer[name] = max(self.s.frames[-1].parent, 0)
        return [self.s]

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[State]:
        self.s.frames[-1].bind(node.name, Func(node, None, len(self.s.frames) - 1))
        return [self.s]

    def _class(self, node: ast.ClassDef) -> list[State]:
        cls = Class(self.fresh().oid, node, tuple(self.ev(base) for base in node.bases))
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                self.s.put((cls.oid, child.name), Func(child, None, len(self.s.frames) - 1))
            elif isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Name):
                self.s.put((cls.oid, child.targets[0].id), self.ev(child.value))
            elif (
                isinstance(child, ast.AnnAssign)
                and isinstance(child.target, ast.Name)
                and child.value
            ):
                self.s.put((cls.oid, child.target.id), self.ev(child.value))
        self.s.frames[-1].bind(node.name, cls)
        return [self.s]

    def _delete(self, node: ast.Delete) -> list[State]:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.s.frames[-1].bind(target.id, Const(None))
        return [self.s]

    # -- calls ----------------------------------------------------------------------------------

    def calls(self, node: ast.Call) -> list[State]:
        """Evaluate a call; each outcome is a state with its ``result``."""
        func = node.func
        owner = self.ev(func.value) if isinstance(func, ast.Attribute) else None
        args = self.arguments(node)
        if isinstance(func, ast.Attribute) and owner is not None:
            return self.call_attribute(self.known(owner), func.attr, args)
        return self.invoke(self.ev(func), args)

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
        target = self.read_attribute(owner, name, args.node)
        if isinstance(target, Opaque | Method):
            return self.done(self.unknown_call(target, name, args))
        return self.invoke(target, args)

    def _call_on_object(self, owner: Obj, name: str, args: Args) -> list[State]:
        kind = self.facts(owner).kind
        target = self.read_attribute(owner, name, args.node)
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
        return isinstance(cls, Class) and any(_last(base) == "Module" for base in cls.node.bases)

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
        return self.done(self.unknown_call(func, _last(args.node), args))

    def _call_model(self, obj: Obj, args: Args) -> list[State]:
        if self.facts(obj).kind == "instance":
            for name in ("__call__", "forward"):
                target = self.read_attribute(obj, name, args.node)
                if isinstance(target, Func):
                    if self.facts(obj).compiled:
                        self.do_run(obj, args.node, grad=self.grad)
                    return self.inline(target, args)
        self.do_run(obj, args.node, grad=self.grad)
        return self.done(self.fresh())

    def call_ref(self, name: str, args: Args) -> list[State]:
        """Call something imported, by its qualified name."""
        last = name.rsplit(".", 1)[-1]
        in_peft = name.startswith("peft.") and last in _OF_PEFT
        special = _FUNCTIONS.get(last if in_peft else name)
        if special is not None:
            return special(self, args)
        owner = name.rpartition(".")[0]
        if last in ("from_pretrained", "from_single_file", "from_pipe", "from_config"):
            made = self.make(owner, args, method=last)
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
            elif isinstance(value, Func) and value.node not in self.executed:
                self.callbacks.append(value)
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
        init = self.read_attribute(obj, "__init__", args.node)
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

    def inline(self, func: Func, args: Args) -> list[State]:
        """Call a function of this file by executing its body."""
        node = func.node
        self.executed.add(node)
        if len(self._stack) >= DEEPEST or node in self._stack:
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
        self._stack.append(node)
        turn, self.turn = self.turn, (*self.turn, args.node)
        ends = self.block(node.body, self.s)
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

    def _inline_lambda(self, node: ast.Lambda, func: Func, args: Args) -> list[State]:
        depth = len(self.s.frames)
        self.s.frames.append(
            Frame(min(func.frame, depth - 1), Table(self.bind(node.args, func, args)))
        )
        self._stack.append(node)
        value = self.ev(node.body)
        self._stack.pop()
        del self.s.frames[depth:]
        return self.done(value)

    def _memo_key(self, node: ast.FunctionDef | ast.AsyncFunctionDef, args: Args) -> Any:
        if not any("cache" in _last(d) for d in node.decorator_list):
            return None
        return ("memo", node, tuple(key_of(v) for v in args.positional))

    def _decorated_grad(self, decorator: ast.expr) -> str | None:
        if isinstance(decorator, ast.Call) and _last(decorator) in ("no_grad", "inference_mode"):
            return _last(decorator)
        return _last(decorator) if _last(decorator) in ("no_grad", "inference_mode") else None

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
                    self.assign(holder, Seq((*owner.items, args.positional[0])))
                return Const(None)
            if name in ("extend", "insert", "pop", "remove", "clear", "sort", "reverse"):
                if isinstance(holder, ast.Name | ast.Attribute):
                    self.assign(holder, self.fresh())
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
                self.assign(holder, self.fresh())
        return self.fresh()


_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
_EXITS = (
    ast.Return,
    ast.Raise,
    ast.Break,
    ast.Continue,
    ast.FunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
)
_COMPILE_OPTIONS = {"mode", "fullgraph", "dynamic", "backend", "options", "disable"}
_SELF_LIKE = frozenset({"to", "eval", "cuda", "half", "train", "bfloat16", "float", "cpu"})


def _torch_compile(w: Walker, args: Args) -> list[State]:
    model = args.get(0, "model")
    if model is None:
        return w.done(Partial(Ref("torch.compile"), (), args.keywords))
    disabled = args.get(None, "disable")
    if disabled is not None and w.holds(disabled) is not False:
        return w.done(model)
    backend = args.get(None, "backend")
    if isinstance(backend, Const) and backend.value == "torch_tensorrt":
        return w.done(w.fresh())
    return w.done(w.do_compile(model, args.node, "wrapper"))


def _dynamo_optimize(w: Walker, args: Args) -> list[State]:
    return w.done(Partial(Ref("torch.compile"), (), {}))


def _dynamo_reset(w: Walker, args: Args) -> list[State]:
    for key, facts in list(w.s.heap.items()):
        if isinstance(facts, Facts) and facts.compiled:
            left = tuple(d for d in facts.deferred if d.until != "run")
            w.s.put(key, replace(facts, ran=None, deferred=left))
    return w.done(Const(None))


def _prepare(w: Walker, args: Args) -> list[State]:
    return w.done(w.do_prepare(args.get(0, "model"), args, "peft"))


def _hotswap_prepare(w: Walker, args: Args) -> list[State]:
    return w.done(w.do_prepare(args.get(0, "model"), args, "hotswap"))


def _hotswap_swap(w: Walker, args: Args) -> list[State]:
    return w.done(w.do_swap(args.get(0, "model"), args, "hotswap.swap", path=1, name=None))


def _hotswap_load(w: Walker, args: Args) -> list[State]:
    obj = w.wrap(args, args.get(0, "base_model"), path=2, name=99)
    w.do_prepare(obj, args, "hotswap")
    return w.done(obj)


def _swap(w: Walker, args: Args) -> list[State]:
    return w.done(w.do_swap(args.get(0, "model"), args, "hotswap_adapter", path=1, name=2))


def _swap_state_dict(w: Walker, args: Args) -> list[State]:
    api = "hotswap_adapter_from_state_dict"
    return w.done(w.do_swap(args.get(0, "model"), args, api, path=1, name=2))


def _get_peft_model(w: Walker, args: Args) -> list[State]:
    return w.done(w.wrap(args, args.get(0, "model"), path=1, name=2))


def _inject(w: Walker, args: Args) -> list[State]:
    obj = w.become(args.get(1, "model"), "module")
    if obj is None:
        return w.done(w.fresh())
    name = args.get(2, "adapter_name") or Const("default")
    text = name.value if isinstance(name, Const) else None
    w.do_add(obj, args, "inject_adapter_in_model", args.get(0, "peft_config"), text)
    return w.done(obj)


def _lora_config(w: Walker, args: Args) -> list[State]:
    rank, alpha = args.get(None, "r"), args.get(None, "lora_alpha")
    if args.starred or args.get(None, "rank_pattern") or args.get(None, "alpha_pattern"):
        return w.done(Shape(origin=w.fresh().oid))
    return w.done(Shape(_whole(rank), _whole(alpha), w.fresh().oid))


def _whole(value: Value | None) -> int | None:
    """Return a whole number; peft's default of rank and alpha is 8."""
    if value is None:
        return 8
    return value.value if isinstance(value, Const) and type(value.value) is int else None


def _extreme(pick: Callable[..., Any]) -> Callable[[Walker, Args], list[State]]:
    def call(w: Walker, args: Args) -> list[State]:
        values = args.positional
        if len(values) == 1:
            inner = w.elements(values[0])
            values = inner if inner is not None else []
        numbers = [v.value for v in values if isinstance(v, Const) and type(v.value) is int]
        if not numbers or len(numbers) < len(values):
            return w.done(w.fresh())
        return w.done(Const(pick(numbers), tuple(numbers)))

    return call


def _enumerate(w: Walker, args: Args) -> list[State]:
    elements = w.elements(args.positional[0]) if args.positional else None
    start = args.get(1, "start")
    first = start.value if isinstance(start, Const) and type(start.value) is int else 0
    if elements is None:
        return w.done(Seq((Seq((Const(first), w.fresh())), Seq((Const(first + 1), w.fresh())))))
    return w.done(Seq(tuple(Seq((Const(first + i), e)) for i, e in enumerate(elements))))


def _range(w: Walker, args: Args) -> list[State]:
    ends = [v.value for v in args.positional if isinstance(v, Const) and type(v.value) is int]
    if len(ends) == len(args.positional) and ends:
        return w.done(Seq(tuple(Const(i) for i in range(*ends)[:8])))
    if len(args.positional) == 1:
        return w.done(Seq((Const(0), Const(1))))
    return w.done(w.fresh())


def _zip(w: Walker, args: Args) -> list[State]:
    columns = [w.elements(v) for v in args.positional]
    known = [c for c in columns if c is not None]
    length = min((len(c) for c in known), default=2)
    rows = [
        Seq(tuple(c[i] if c is not None else w.fresh() for c in columns)) for i in range(length)
    ]
    return w.done(Seq(tuple(rows)))


def _sequence(w: Walker, args: Args) -> list[State]:
    elements = w.elements(args.positional[0]) if args.positional else []
    return w.done(Seq(tuple(elements)) if elements is not None else w.fresh())


def _dict(w: Walker, args: Args) -> list[State]:
    base = args.positional[0] if args.positional else Dict({})
    if not isinstance(base, Dict) or args.starred:
        return w.done(w.fresh())
    return w.done(Dict({**base.items, **args.keywords}))


def _float(w: Walker, args: Args) -> list[State]:
    return w.done(Number())


def _bool(w: Walker, args: Args) -> list[State]:
    value = args.positional[0] if args.positional else Const(False)
    holds = w.holds(value)
    return w.done(Const(holds) if holds is not None else value)


def _length(w: Walker, args: Args) -> list[State]:
    elements = w.elements(args.positional[0]) if args.positional else None
    if elements is not None and not isinstance(args.positional[0], Part):
        return w.done(Const(len(elements)))
    key = key_of(args.positional[0]) if args.positional else None
    return w.done(w._memo(("len", key)) if key is not None else w.fresh())


def _getattr(w: Walker, args: Args) -> list[State]:
    name = args.get(1, "name")
    if isinstance(name, Const) and isinstance(name.value, str):
        return w.done(w.read_attribute(args.positional[0], name.value, args.node))
    return w.done(w.fresh())


def _setattr(w: Walker, args: Args) -> list[State]:
    if len(args.node.args) == 3 and isinstance(name := args.positional[1], Const):
        target = ast.copy_location(
            ast.Attribute(args.node.args[0], str(name.value), ast.Store()), args.node
        )
        w.assign(target, args.positional[2])
    return w.done(Const(None))


def _hasattr(w: Walker, args: Args) -> list[State]:
    keys = tuple(key_of(v) for v in args.positional)
    if len(args.positional) == 2 and None not in keys:
        owner, name = args.positional
        if isinstance(owner, Obj) and isinstance(name, Const):
            if name.value == "_orig_mod" and not w.facts(owner).open:
                return w.done(Const(owner.wrapped))
            if w.facts(owner).kind == "instance" and (owner.oid, name.value) in w.s.heap:
                return w.done(Const(True))
        return w.done(w._memo(("hasattr", *keys)))
    return w.done(w.fresh())


def _join_path(w: Walker, args: Args) -> list[State]:
    return w.done(w.joined_path(args.positional) if args.positional else w.fresh())


def _partial(w: Walker, args: Args) -> list[State]:
    if not args.positional:
        return w.done(w.fresh())
    func, *rest = args.positional
    return w.done(Partial(func, tuple(rest), args.keywords))


def _super(w: Walker, args: Args) -> list[State]:
    return w.done(w.fresh())


def _pipeline(w: Walker, args: Args) -> list[State]:
    model = args.get(1, "model")
    return w.done(model if isinstance(model, Obj) else w.fresh())


def _same(w: Walker, args: Args) -> list[State]:
    return w.done(args.positional[0] if args.positional else w.fresh())


def _copy(w: Walker, args: Args) -> list[State]:
    value = args.positional[0] if args.positional else None
    if isinstance(value, Obj):
        twin = w.new("unknown")
        w.put(twin, replace(w.facts(value), deferred=()))
        return w.done(twin)
    return w.done(value if value is not None else w.fresh())


_FUNCTIONS: dict[str, Callable[[Walker, Args], list[State]]] = {
    "LoraConfig": _lora_config,
    "bool": _bool,
    "copy.deepcopy": _copy,
    "dict": _dict,
    "enumerate": _enumerate,
    "float": _float,
    "functools.partial": _partial,
    "get_peft_model": _get_peft_model,
    "getattr": _getattr,
    "hasattr": _hasattr,
    "hotswap.load": _hotswap_load,
    "hotswap.prepare": _hotswap_prepare,
    "hotswap.swap": _hotswap_swap,
    "hotswap_adapter": _swap,
    "hotswap_adapter_from_state_dict": _swap_state_dict,
    "len": _length,
    "os.path.join": _join_path,
    "pathlib.Path": _join_path,
    "str": _same,
    "list": _sequence,
    "max": _extreme(max),
    "min": _extreme(min),
    "prepare_model_for_compiled_hotswap": _prepare,
    "range": _range,
    "setattr": _setattr,
    "sorted": _sequence,
    "torch._dynamo.optimize": _dynamo_optimize,
    "torch._dynamo.reset": _dynamo_reset,
    "torch.compile": _torch_compile,
    "torch.compiler.reset": _dynamo_reset,
    "tqdm": _same,
    "tqdm.auto.tqdm": _same,
    "tqdm.tqdm": _same,
    "transformers.pipeline": _pipeline,
    "tuple": _sequence,
    "zip": _zip,
}
_OF_PEFT = frozenset(
    {
        "LoraConfig", "get_peft_model", "hotswap_adapter", "hotswap_adapter_from_state_dict",
        "prepare_model_for_compiled_hotswap",
    }
)  # fmt: skip
_STATEMENTS: dict[type[ast.AST], Callable[[Walker, Any], list[State]]] = {
    ast.AnnAssign: Walker._annotated,
    ast.Assert: Walker._assert,
    ast.Assign: Walker._assign,
    ast.AsyncFor: Walker._for,
    ast.AsyncFunctionDef: Walker._function,
    ast.AsyncWith: Walker._with,
    ast.AugAssign: Walker._augmented,
    ast.Break: Walker._leave,
    ast.ClassDef: Walker._class,
    ast.Continue: Walker._leave,
    ast.Delete: Walker._delete,
    ast.Expr: Walker._expression,
    ast.For: Walker._for,
    ast.FunctionDef: Walker._function,
    ast.Global: Walker._global,
    ast.If: Walker._if,
    ast.Import: Walker._import,
    ast.ImportFrom: Walker._import,
    ast.Match: Walker._match,
    ast.Nonlocal: Walker._nonlocal,
    ast.Raise: Walker._leave,
    ast.Return: Walker._return,
    ast.Try: Walker._try,
    ast.TryStar: Walker._try,
    ast.While: Walker._while,
    ast.With: Walker._with,
}
