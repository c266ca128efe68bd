"""What the calls of PEFT, diffusers, transformers, torch and hotswap do to a model."""

from __future__ import annotations

import ast
import json
import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from hotswap.lint.interpreter import typestate as ts
from hotswap.lint.interpreter.evaluate import Evaluator, path_key
from hotswap.lint.interpreter.methods import METHODS
from hotswap.lint.interpreter.names import made_by
from hotswap.lint.interpreter.objects import Args
from hotswap.lint.interpreter.state import State
from hotswap.lint.interpreter.typestate import (
    Adapter,
    By,
    Compiled,
    Deferred,
    Event,
    Facts,
    Prepared,
    Problem,
    Ran,
    Shape,
)
from hotswap.lint.interpreter.values import Const, Dict, Number, Obj, Part, Seq, Tensor, Value
from hotswap.lint.rules import VETO, rules_on

_RANK_IN_NAME = re.compile(
    r"(?:^|[^a-z])(?:lora_?)?(?:rank|r)[-_=]?(\d{1,4})(?![0-9a-z])", re.IGNORECASE
)
_USUAL_RANKS = frozenset({*(1 << n for n in range(11)), *range(8, 129, 8), 192, 320, 384, 768})
_RANK_KEYS = ("rank", "r", "lora_rank", "lora_r")
_INNER = ("base_model", "base_model.model", "model")
"""What a PeftModel forwards its attributes to: compiled, it counts as compiled itself."""
_LAYERS = re.compile(
    r"layer|block|^h\[|\.h\[|base_model|^model$|^model\.model|language_model|transformer"
)
_SELF = frozenset(
    {
        "to",
        "eval",
        "train",
        "cuda",
        "cpu",
        "half",
        "float",
        "bfloat16",
        "double",
        "requires_grad_",
        "type",
        "to_empty",
        "share_memory",
    }
)
_RUNS = frozenset({"forward", "generate", "__call__", "encode"})

_MADE_GOOD_BY = {
    "HSW202": ("load",),
    "HSW205": ("prepare", "enable"),
    "HSW208": ("load",),
    "HSW209": ("load",),
}
"""What, done earlier, makes up for what a rule misses."""
_SAID_BY = {"HSW216": "HSW206", "HSW210": "HSW212"}
"""Rules that have nothing to add where another one has spoken."""
Place: TypeAlias = tuple[str, ast.AST, tuple[Any, ...]]


class Models(Evaluator):
    """Follows what is done to models, and shows each step to the rules."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.entries: set[ast.AST] = set()
        """The functions that are called from outside, in an order that is not known."""
        self._done: dict[ast.AST, set[tuple[str, int]]] = defaultdict(set)
        self._found: dict[Place, tuple[int, Problem]] = {}
        self._vetoed: set[Place] = set()
        self.turn: tuple[Any, ...] = ()
        """Which calls and which turns of loops are running: what is compared between paths."""
        self.file_swaps = False
        self._swapping: set[int] = set()
        self.log: set[str] = set()
        """The kinds of events since it was last cleared."""

    @property
    def problems(self) -> dict[tuple[str, ast.AST], Problem]:
        """What was found, except where another path of the same turn, or another entry, makes it good."""
        kept = {
            (code, where): problem
            for (code, where, turn), (oid, problem) in self._found.items()
            if (code, where, turn) not in self._vetoed and not self._made_good(code, turn, oid)
        }
        return {
            (code, where): problem
            for (code, where), problem in kept.items()
            if (_SAID_BY.get(code), where) not in kept
        }

    def _made_good(self, code: str, turn: tuple[Any, ...], oid: int) -> bool:
        """Tell whether a function that may have been called before does what is missing here."""
        missing = _MADE_GOOD_BY.get(code, ())
        return bool(turn) and any(
            (kind, oid) in self._done[entry]
            for entry in self.entries - {turn[0]}
            for kind in missing
        )

    # -- events ---------------------------------------------------------------------------------

    def emit(self, obj: Obj, event: Event) -> None:
        """Show an event to the rules; the first that objects is reported, now or when it comes true."""
        self.log.add(event.kind)
        if self.turn:
            self._done[self.turn[0]].add((event.kind, obj.oid))
        if event.facts.intends_to_swap or event.kind in ("prepare", "enable", "swap"):
            self._swapping.add(obj.oid)
        elif event.kind in ("load", "toggle"):
            event = replace(
                event, swaps_elsewhere=obj.oid in self._swapping, file_swaps=self.file_swaps
            )
        told = False
        for rule in rules_on(event.kind):
            outcome = rule.check(event)
            if outcome is VETO:
                self._vetoed.add((rule.code, event.node, self.turn))
            elif isinstance(outcome, Problem) and not told and not self.s.muted:
                told = True
                where = outcome.where or event.node
                if outcome.until == "now":
                    self._found.setdefault((rule.code, where, self.turn), (obj.oid, outcome))
                else:
                    wait = Deferred(rule.code, where, outcome.until, outcome, self.turn)
                    facts = self.facts(obj)
                    self.put(obj, replace(facts, deferred=(*facts.deferred, wait)))

    def flush(self, obj: Obj, until: Literal["run", "compile"]) -> None:
        """Report what waited for the model to run or to be compiled."""
        facts = self.facts(obj)
        if facts.deferred:
            for wait in facts.deferred:
                if wait.until == until:
                    place = (wait.code, wait.where, wait.turn)
                    self._found.setdefault(place, (obj.oid, wait.problem))
            left = tuple(w for w in facts.deferred if w.until != until)
            self.put(obj, replace(facts, deferred=left))

    def finish(self, ends: list[State]) -> None:
        """Report what still waits for a run: the model is there to be run."""
        for end in ends:
            self.s = end
            for oid, facts in list(end.heap.items()):
                if isinstance(facts, Facts) and facts.deferred:
                    self.flush(Obj(oid), "run")

    # -- what is known of arguments -------------------------------------------------------------

    def shape_of(self, value: Value | None, node: ast.expr | None) -> Shape:
        """Return rank and alpha of the adapter that the value names, as far as the source shows them."""
        if isinstance(value, Shape):
            return value
        key = path_key(value) if value is not None else None
        saved = self.s.heap.get(("saved", key)) if key is not None else None
        if isinstance(saved, Shape):
            return saved
        if isinstance(node, ast.Subscript | ast.Attribute):
            owner = self.ev(node.value)
            ranks = [owner.items.get(k) for k in _RANK_KEYS] if isinstance(owner, Dict) else []
            for rank in ranks:
                if isinstance(rank, Const) and type(rank.value) is int:
                    return Shape(rank.value)
        if isinstance(value, Const) and isinstance(value.value, str):
            return self._shape_in_folder(value.value)
        return Shape(origin=key)

    def _shape_in_folder(self, path: str) -> Shape:
        for root in (self.folder, Path()):
            if root is None or "\0" in path or len(path) > 200:
                continue
            name = os.path.join(root, path, "adapter_config.json")
            if not os.path.isfile(name):
                continue
            try:
                config = json.loads(Path(name).read_text(encoding="utf-8"))
                ranks = [int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())]
                return Shape(max(ranks), config.get("lora_alpha"))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        found = [int(rank) for rank in _RANK_IN_NAME.findall(path)]
        return Shape(found[0]) if len(found) == 1 and found[0] in _USUAL_RANKS else Shape()

    def _preparation(self, args: Args, by: By, *, default: int | None) -> Prepared:
        target = args.get(None, "target_rank")
        if target is None and by != "peft" and by != "hotswap":
            target = args.get(0, "target_rank")
        check = args.get(None, "check_compiled")
        strict = check is None or (isinstance(check, Const) and check.value == "error")
        if args.starred and target is None:
            return Prepared(None, args.node, by, strict=False)
        how = Prepared(default, args.node, by, strict=strict and not args.starred)
        if target is None:
            return how
        if isinstance(target, Const) and type(target.value) is int:
            return replace(how, rank=target.value, drawn_from=target.drawn_from)
        return replace(how, rank=None)

    # -- steps ----------------------------------------------------------------------------------

    def do_compile(self, value: Value, node: ast.AST, how: ts.How) -> Value:
        """Compile a model, a part of one, or a function."""
        if isinstance(value, Part):
            if value.path == "forward":
                self._compiled(value.owner, node, "forward")
            elif value.path in _INNER:
                self._compiled(value.owner, node, "in place")
            elif _LAYERS.search(value.path):
                self._compiled(value.owner, node, "blocks")
            return value
        obj = self.become(value, "unknown")
        if obj is None:
            return value
        self._compiled(obj, node, how)
        return Obj(obj.oid, wrapped=True) if how == "wrapper" else obj

    def _compiled(self, obj: Obj, node: ast.AST, how: ts.How) -> None:
        facts = self.facts(obj)
        if facts.kind == "pipeline":
            return
        self.emit(obj, Event("compile", node, facts, "torch.compile", obj.wrapped))
        self.put(obj, ts.compiled(self.facts(obj), Compiled(node, how)))
        self.flush(obj, "compile")

    def do_run(self, obj: Obj, node: ast.AST, *, grad: str | None) -> None:
        """Call the model; a pipeline calls its denoiser."""
        facts = self.facts(obj)
        if facts.kind == "pipeline":
            for name in ("transformer", "transformer_2"):
                if name == "transformer" or (obj.oid, name) in self.s.heap:
                    self.do_run(self.component(obj, name), node, grad=None)
            return
        if facts.compiled is None:
            self.log.add("run")
            return
        self.emit(obj, Event("run", node, facts, "call", obj.wrapped, grad=grad))
        self.flush(obj, "run")
        facts = self.facts(obj)
        if facts.ran is None:
            self.put(obj, replace(facts, ran=Ran(node, grad)))

    def do_prepare(self, value: Value | None, args: Args, by: By) -> Value:
        """Prepare the adapters that are loaded: PEFT's function, or hotswap's."""
        obj = self.become(value, "unknown")
        if obj is None:
            return self.fresh()
        obj = self.denoiser(obj)
        facts = self.facts(obj)
        first = facts.adapters[0] if facts.adapters else None
        how = self._preparation(
            args, by, default=first.shape.rank if first and by == "peft" else None
        )
        api = "prepare_model_for_compiled_hotswap" if by == "peft" else "hotswap.prepare"
        self.emit(obj, Event("prepare", args.node, facts, api, obj.wrapped, prepared=how))
        facts = self.facts(obj)
        if not facts.adapters:
            unknown = Adapter(None, args.node)
            facts = replace(facts, adapters=(unknown,), open=True)
        self.put(obj, ts.prepared(facts, how))
        return self.fresh()

    def do_enable(self, obj: Obj, args: Args, api: str) -> Value:
        """Enable hot-swapping for the first load: diffusers and transformers."""
        by: By = "transformers" if api == "enable_peft_hotswap" else "diffusers"
        obj = self.denoiser(obj)
        facts = self.facts(obj)
        how = self._preparation(args, by, default=128)
        self.emit(obj, Event("enable", args.node, facts, api, obj.wrapped, prepared=how))
        if facts.compiled:  # what is wrong with that has been said here, not at the load
            how = replace(how, strict=False)
        self.put(obj, replace(self.facts(obj), enabled=how, auto_swap=by == "transformers"))
        return Const(None)

    def denoiser(self, obj: Obj) -> Obj:
        """Return the model that carries the adapters."""
        return self.component(obj, "transformer") if self.facts(obj).kind == "pipeline" else obj

    def do_load(self, obj: Obj, args: Args, api: str) -> Value:
        """Load an adapter: anew or, with ``hotswap``, in place of one."""
        pipeline = self.facts(obj).kind == "pipeline"
        if pipeline and (into := args.get(None, "load_into_transformer_2")) is not None:
            obj = self.component(obj, "transformer_2" if self.holds(into) else "transformer")
        obj = self.denoiser(obj)
        facts = self.facts(obj)
        index = 1 if api == "load_adapter" else None
        given = args.get(index, "adapter_name")
        name = given.value if isinstance(given, Const) and isinstance(given.value, str) else None
        named: bool | None = given is not None and given != Const(None)
        if given is not None and not isinstance(given, Const):
            named = True
        if given is None and args.starred:
            named = None
        hotswap = self._hotswap(args.get(None, "hotswap"), facts, name, named)
        if args.starred and args.get(None, "hotswap") is None:
            hotswap = None
        path = args.get(0, "pretrained_model_name_or_path_or_dict") or args.get(0, "peft_model_id")
        shape = self.shape_of(path, args.node.args[0] if args.node.args else None)
        if shape.rank is None and (weight := args.get(None, "weight_name")) is not None:
            shape = self.shape_of(weight, None)
        if name is None and named is False and hotswap is not True:
            name = (
                f"default_{len(facts.adapters)}"
                if facts.kind != "peft" and api != "load_adapter"
                else "default"
            )
        kind: Literal["swap", "load"] = "swap" if hotswap else "load"
        self.emit(
            obj,
            Event(kind, args.node, facts, api, obj.wrapped, name, named, hotswap, shape),
        )
        facts = self.facts(obj)
        if hotswap is True or (hotswap is None and facts.adapter(name)):
            self.put(obj, replace(facts, swapped=args.node))
        elif api == "load_adapter" and facts.kind == "peft" and facts.adapter(name):
            pass
        else:
            self.put(obj, ts.loaded(facts, Adapter(name, args.node, shape)))
        return self.fresh()

    def _hotswap(
        self, given: Value | None, facts: Facts, name: str | None, named: bool | None
    ) -> bool | None:
        if given is None or (isinstance(given, Const) and given.value == "auto"):
            if facts.auto_swap and not facts.open:
                if named and name is None:
                    return None
                return facts.adapter(name or "default") is not None
            return None if facts.open and facts.kind in ("transformers", "unknown") else False
        return self.holds(given)

    def do_swap(
        self, value: Value | None, args: Args, api: str, *, path: int, name: int | None
    ) -> Value:
        """Swap an adapter in place by a function: PEFT's, or hotswap's."""
        obj = self.become(value, "unknown")
        if obj is None:
            return self.fresh()
        obj = self.denoiser(obj)
        facts = self.facts(obj)
        given = args.get(name, "adapter_name")
        text = given.value if isinstance(given, Const) and isinstance(given.value, str) else None
        named: bool | None = given is not None or (None if args.starred else False)
        if api == "hotswap.swap" and given is None:
            text, named = "default", True
        node = args.node.args[path] if len(args.node.args) > path else None
        shape = self.shape_of(args.get(path, "model_name_or_path"), node)
        config = args.get(None, "config") or (
            args.get(3, "config") if "state_dict" in api else None
        )
        if isinstance(config, Shape):
            shape = config
        self.emit(obj, Event("swap", args.node, facts, api, obj.wrapped, text, named, True, shape))
        self.put(obj, replace(self.facts(obj), swapped=args.node))
        return self.fresh()

    def do_toggle(self, obj: Obj, args: Args, api: str) -> Value:
        """Change which adapters are active or loaded."""
        obj = self.denoiser(obj)
        facts = self.facts(obj)
        given = args.get(0, "adapter_names") or args.get(0, "adapter_name")
        names = _names(given)
        event = Event("toggle", args.node, facts, api, obj.wrapped, names=names)
        self.emit(obj, event)
        facts = self.facts(obj)
        if api.startswith("delete_adapter"):
            facts = ts.unloaded(facts, names) if names else replace(facts, open=True)
        elif api.startswith("set_adapter") and names:
            facts = replace(facts, active=names)
        self.put(obj, facts)
        return self.fresh()

    def do_scale(self, obj: Obj, node: ast.AST, api: str, value: Value | None) -> None:
        """Write a number into a layer's scaling."""
        text = "tensor" if isinstance(value, Tensor) else "float" if _is_number(value) else ""
        self.emit(obj, Event("scale", node, self.facts(obj), api, obj.wrapped, value=text))

    def do_merge(self, obj: Obj, node: ast.AST | None) -> None:
        """Merge the adapters into the weights, or, with None, take them out again."""
        obj = self.denoiser(obj)
        self.put(obj, replace(self.facts(obj), merged=node))

    def do_add(
        self, obj: Obj, args: Args, api: str, config: Value | None, name: str | None
    ) -> Value:
        """Add an adapter made from a config."""
        shape = config if isinstance(config, Shape) else Shape()
        facts = self.facts(obj)
        self.emit(obj, Event("load", args.node, facts, api, obj.wrapped, name, True, False, shape))
        self.put(obj, ts.loaded(self.facts(obj), Adapter(name, args.node, shape)))
        return Const(None)

    # -- constructors ---------------------------------------------------------------------------

    def make(self, name: str, args: Args) -> Value | None:
        """Create a model by its class, or return None if the class makes none."""
        kind = made_by(name)
        if kind is None:
            return None
        last = name.rsplit(".", 1)[-1]
        if kind == "peft" and not last.startswith("AutoPeft"):
            return self.wrap(args, args.get(0, "model"), path=1, name=2)
        obj = self.new(kind)
        if kind == "peft":
            shape = self.shape_of(args.get(0, "pretrained_model_name_or_path"), None)
            given = args.get(1, "adapter_name")
            self.put(
                obj,
                ts.loaded(self.facts(obj), Adapter(_str(given, "default"), args.node, shape)),
            )
        elif kind == "pipeline":
            self._assemble(obj, args)
            self.component(obj, "transformer")
        elif kind == "transformers":
            path = args.get(0, "pretrained_model_name_or_path")
            if isinstance(path, Const) and re.search(
                r"lora|adapter|peft", str(path.value), re.IGNORECASE
            ):
                self.put(obj, ts.opened(self.facts(obj)))
        self.log.add("create")
        return obj

    def _assemble(self, pipe: Obj, args: Args) -> None:
        source = args.get(0, "pipeline")
        for keyword in args.node.keywords:
            given = keyword.value
            if (
                keyword.arg is None
                and isinstance(given, ast.Attribute)
                and given.attr == "components"
            ):
                source = self.ev(given.value)
        if isinstance(source, Obj) and self.facts(source).kind == "pipeline":
            self.component(source, "transformer")
            for key, shared in list(self.s.heap.items()):
                if isinstance(key, tuple) and len(key) == 2 and key[0] == source.oid:
                    self.s.put((pipe.oid, key[1]), shared)
        for name, value in args.keywords.items():
            part = (
                self.become(value, "component")
                if name in ("unet", "transformer", "transformer_2")
                else None
            )
            if part is not None:
                self.s.put((pipe.oid, "denoiser" if name != "transformer_2" else name), part)

    def wrap(self, args: Args, base: Value | None, *, path: int, name: int) -> Value:
        """Put a PEFT model with a first adapter around a base model."""
        below = self.facts(base) if isinstance(base, Obj) else Facts()
        obj = self.new("peft")
        key = next((k for k in ("peft_config", "config") if k in args.keywords), "model_id")
        shape = self.shape_of(
            args.get(path, key), args.node.args[path] if len(args.node.args) > path else None
        )
        facts = self.facts(obj)
        if below.compiled:
            how: ts.How = "in place" if isinstance(base, Obj) and base.wrapped else "blocks"
            facts = replace(facts, compiled=replace(below.compiled, how=how), ran=below.ran)
            self.put(obj, facts)
            self.emit(
                obj,
                Event("load", args.node, facts, "PeftModel", False, "default", True, False, shape),
            )
            facts = self.facts(obj)
        given = args.get(name, "adapter_name")
        text = _str(given, "default") if not args.starred else None
        self.put(obj, ts.loaded(facts, Adapter(text, args.node, shape)))
        self.log.add("create")
        return obj

    # -- methods --------------------------------------------------------------------------------

    def method(self, obj: Obj, name: str, args: Args) -> Value | None:
        """Call a method of a model by its name; None if it does nothing that matters."""
        if name in _SELF:
            return obj
        handler = METHODS.get(name)
        if handler is not None:
            return handler(self, obj, args, name)
        if name in _RUNS:
            pure = name in ("generate", "encode") or self.facts(obj).kind == "pipeline"
            self.do_run(obj, args.node, grad=None if pure else self.grad)
            return self.fresh()
        return None

    @property
    def grad(self) -> str | None:
        """The gradient mode on this path."""
        return self.s.grad[-1] if self.s.grad else None

    def part_method(self, part: Part, args: Args) -> Value | None:
        """Call a method of something inside a model."""
        inside, _, name = part.path.rpartition(".")
        if not inside:
            return self.method(part.owner, name, args)
        if name == "compile":
            return self.do_compile(Part(part.owner, inside), args.node, "in place")
        if name in ("set_scale", "unscale_layer"):
            value = args.get(1, "scale")
            self.do_scale(
                part.owner, args.node, name, value if isinstance(value, Tensor) else Number()
            )
            return Const(None)
        if name == "fill_":
            return Const(None)
        if inside in _INNER and name in METHODS:
            return self.method(part.owner, name, args)
        if name in ("modules", "named_modules", "children", "named_children", "items", "values"):
            return Part(part.owner, f"{inside}.{name}")
        return Part(part.owner, inside) if name in _SELF else None


def _names(value: Value | None) -> tuple[str | None, ...] | None:
    if isinstance(value, Const) and isinstance(value.value, str):
        return (value.value,)
    if isinstance(value, Seq) and all(isinstance(v, Const) for v in value.items):
        return tuple(v.value for v in value.items if isinstance(v, Const))
    return None


def _str(value: Value | None, default: str) -> str | None:
    if value is None:
        return default
    return value.value if isinstance(value, Const) and isinstance(value.value, str) else None


def _is_number(value: Value | None) -> bool:
    return isinstance(value, Number) or (
        isinstance(value, Const)
        and isinstance(value.value, int | float)
        and not isinstance(value.value, bool)
    )
