"""What the interpreter is told about code outside of the program, looked up in the tables of APIs."""

from __future__ import annotations

import ast

from hotswap.lint.apis import classes, functions, python, steps
from hotswap.lint.apis.methods import CALLS, CHAINED, KINDS, METHODS, call
from hotswap.lint.interpreter.run import Run
from hotswap.lint.interpreter.values import Args, Const, Number, Obj, Part, Tensor, Value
from hotswap.lint.typestate import Kind

_FACTORIES = ("from_pretrained", "from_single_file", "from_pipe", "from_config")
_COMPILE_OPTIONS = {"mode", "fullgraph", "dynamic", "backend", "options", "disable"}
_INSIDE = ("modules", "named_modules", "children", "named_children", "items", "values")


class Apis:
    """The library that a run asks."""

    def function(self, run: Run, name: str, args: Args) -> Value | None:
        """Call something imported, by its qualified name."""
        owner, _, last = name.rpartition(".")
        table = functions.PEFT if name.startswith("peft.") else functions.FUNCTIONS
        effect = table.get(last if table is functions.PEFT else name) or python.FUNCTIONS.get(name)
        if effect is not None:
            return effect(run, args)
        if last in _FACTORIES:
            return classes.make(run, owner, args) or run.fresh()
        if last[:1].isupper() and (made := classes.make(run, name, args)) is not None:
            return made
        return Tensor() if name.startswith("torch.") and last in functions.TENSORS else None

    def make(self, run: Run, name: str, args: Args) -> Value | None:
        """Create an object of a class, by its qualified name."""
        return classes.make(run, name, args)

    def kind_with(self, name: str, args: Args) -> Kind | None:
        """Say what something unknown is if that method of it is called."""
        if name == "compile" and not args.positional and set(args.keywords) <= _COMPILE_OPTIONS:
            return "unknown"
        return KINDS.get(name)

    def method(self, run: Run, obj: Obj, name: str, args: Args) -> Value | None:
        """Call a method of a model."""
        if name in CHAINED:
            return obj
        effect = call if name in CALLS else METHODS.get(name)
        return effect(run, obj, args, name) if effect is not None else None

    def method_inside(self, run: Run, part: Part, args: Args) -> Value | None:
        """Call something inside a model."""
        inside, _, name = part.path.rpartition(".")
        if not inside or (inside in steps.INNER and name in METHODS and name != "compile"):
            return self.method(run, part.owner, name, args)
        if name == "compile":
            return steps.compile_value(run, Part(part.owner, inside), args.node, "in place")
        if name in ("set_scale", "unscale_layer"):
            value = args.get(1, "scale")
            value = value if isinstance(value, Tensor) else Number()
            steps.scale(run, part.owner, args.node, name, value)
            return Const(None)
        if name == "fill_":
            return Const(None)
        if name in _INSIDE:
            return Part(part.owner, f"{inside}.{name}")
        return Part(part.owner, inside) if name in CHAINED else None

    def call(self, run: Run, obj: Obj, node: ast.AST) -> None:
        """Call a model itself."""
        steps.call_model(run, obj, node, grad=run.grad)

    def set_item(self, run: Run, part: Part, node: ast.AST, value: Value) -> None:
        """Assign to an element of something inside a model."""
        if part.path.rpartition(".")[2] == "scaling":
            steps.scale(run, part.owner, node, "scaling", value)
