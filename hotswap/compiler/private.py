"""Every use of a private torch name, one function each; PYTEST_DONT_REWRITE

On a torch that lacks one of them CannotObserveError is raised: nothing passes blind.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hotswap.errors import CannotObserveError

GuardHook = Callable[[bool], bool]


@contextmanager
def _observing(what: str) -> Iterator[None]:
    """Turn a missing private name into the error that says what cannot be seen without it."""
    try:
        yield
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        raise CannotObserveError(
            f"cannot observe {what}: torch {torch.__version__} has changed ({error}); "
            "use a torch version from the table in docs/compile-watch.md"
        ) from error


@_observing("cache hits")
def set_guard_hook(hook: GuardHook | None) -> GuardHook | None:
    """Install the function called after each guard evaluation of a compiled frame; return the old one.

    True: compiled code is about to run; False: cache miss. torch's guard collectives use the same hook.
    """
    from torch._C._dynamo.eval_frame import set_guard_complete_hook

    previous: GuardHook | None = set_guard_complete_hook(hook)  # type: ignore[arg-type]
    return previous


@_observing("compiles")
def compile_records() -> list[Any]:
    """torch's own records of the last compiles, oldest first (at most 64)."""
    from torch._dynamo.utils import CompilationMetrics, get_compilation_metrics

    for name in ("compile_id", "co_name", "recompile_reason", "fail_type", "is_forward"):
        CompilationMetrics.__dataclass_fields__[name]
    return list(get_compilation_metrics())


@_observing("resets")
def start_callbacks() -> list[Any]:
    """The live list of functions called when a compile starts; ``torch._dynamo.reset()`` empties it."""
    from torch._dynamo.callback import callback_handler

    callbacks: list[Any] = callback_handler.start_callbacks
    return callbacks


@_observing("the compiler stance")
def stance() -> str:
    """The name of the stance of ``torch.compiler.set_stance`` that is in force."""
    from torch._dynamo import eval_frame

    return eval_frame._stance.stance


@_observing("the recompile limit")
def recompile_limits() -> dict[str, int]:
    """How many variants of one code object torch compiles before it runs eagerly: the settings."""
    from torch._dynamo import config

    return {
        "recompile_limit": config.recompile_limit,
        "accumulated_recompile_limit": config.accumulated_recompile_limit,
    }


@_observing("calls of compiled code")
def set_call_hook(hook: Callable[[FrameType, bool], None] | None) -> None:
    """Have a function told of each call of a compiled or a disabled one; None takes it away.

    It is given the frame of torch's wrapper, which holds the function as ``fn``, and whether torch is
    to look for compiled code: not under ``force_eager``, nor in what is disabled.
    """
    from torch._dynamo import eval_frame

    plain = getattr(eval_frame._callback_from_stance, "_plain", eval_frame._callback_from_stance)
    if hook is None:
        eval_frame._callback_from_stance = plain
        return

    def told(callback: Any) -> Any:
        answer = plain(callback)
        frame = sys._getframe(1)
        if frame.f_code.co_name in ("compile_wrapper", "_fn"):
            hook(frame, answer is not None)
        return answer

    told._plain = plain  # type: ignore[attr-defined]
    eval_frame._callback_from_stance = told


def was_traced(module: nn.Module) -> bool | None:
    """Tell whether Dynamo has traced this very module: it marks each parameter it meets.

    The mark outlives ``torch._dynamo.reset()``. None for a module without parameters.
    """
    tensors = [*module.parameters(), *module.buffers()]
    return any(hasattr(t, "_dynamo_static_input_type") for t in tensors) if tensors else None


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a compiled frame: the module whose method it is, the frame's code and locals."""

    owner: nn.Module | None
    code: CodeType | None = None
    values: Callable[[], dict[str, Any]] = dict
    closure: dict[str, Any] = field(default_factory=dict)


_Place = tuple[str, int, str]
RESUME = "torch_dynamo_resume_in_"
_CALLS = ("_call_impl", "_wrapped_call_impl")
_WITH_HOOKS = ".<locals>.inner"  # of _call_impl
_WRAPS = ("_torchdynamo_orig_callable", "__wrapped__", "__func__", "func")


def callee(frame: FrameType) -> tuple[nn.Module | None, CodeType | str]:
    """Say which module, or else which function, a frame is about to call; quick, for every call."""
    if frame.f_code.co_name != "compile_wrapper":
        return _receiver_in(frame), frame.f_code
    function, args = frame.f_locals.get("fn"), frame.f_locals.get("args")
    code = getattr(function, "__code__", None)
    if _is_wrap_inline(code):
        function = function.__wrapped__  # type: ignore[union-attr]
        while isinstance(function, partial):
            function = function.func
        code = getattr(function, "__code__", None)
    owner = getattr(function, "__self__", function)
    if isinstance(owner, nn.Module):
        return owner, code or type(owner).__name__
    if code is None:
        return None, type(function).__name__
    owner = args[0] if args else None  # a method that was compiled in its class
    return (owner if isinstance(owner, nn.Module) and _runs(owner, code) else None), code


def _receiver_in(frame: FrameType) -> nn.Module | None:
    """The module whose method a frame runs."""
    code, values = frame.f_code, frame.f_locals
    if "self" not in values and code.co_name.startswith(RESUME):
        before = code.co_name.removeprefix(RESUME).rpartition("_at_")[0]
        caller = frame.f_back
        while caller is not None and caller.f_code.co_name != before:
            caller = caller.f_back
        return _receiver_in(caller) if caller is not None else None
    name, _ = receiver(code)
    owner = values.get("self", values.get(name))
    if isinstance(owner, tuple):
        owner = next(iter(owner), None)
    if not isinstance(owner, nn.Module):
        return None
    return owner if "self" in values or _is_wrap_inline(code) or _runs(owner, code) else None


def _runs(owner: nn.Module, code: CodeType) -> bool:
    """Whether code belongs to a method of a module, which a function of modules does not."""
    place = _place(code)
    return place in _places(owner.__dict__.get("forward")) or place in _methods(type(owner))


_METHODS: WeakKeyDictionary[type, frozenset[_Place]] = WeakKeyDictionary()


def _methods(kind: type) -> frozenset[_Place]:
    if kind not in _METHODS:
        functions = (function for base in kind.__mro__ for function in vars(base).values())
        _METHODS[kind] = frozenset(place for function in functions for place in _places(function))
    return _METHODS[kind]


def _places(function: Any) -> Iterator[_Place]:
    """Where the code of a function stands, and of those that decorators made it of."""
    while function is not None:
        if isinstance(code := getattr(function, "__code__", None), CodeType):
            yield _place(code)
        wrapped = (getattr(function, name, None) for name in _WRAPS)
        function = next((inner for inner in wrapped if inner is not None), None)


def _place(code: CodeType) -> _Place:
    """Where code stands in its file, also that which torch made of it."""
    return code.co_filename, code.co_firstlineno, code.co_name


def _is_wrap_inline(code: Any) -> bool:
    """Whether it is the frame that torch puts around what it would not compile, such as nn.Sequential."""
    is_inner = getattr(code, "co_name", "") == "inner"
    return is_inner and code.co_filename.endswith("external_utils.py")


def receiver(code: CodeType) -> tuple[str, str]:
    """The name under which a method's code has its module, and how a guard reads it.

    In ``forward(*args)``, as decorators write it, the module is ``args[0]``.
    """
    if _is_wrap_inline(code):
        return "fn", "L['fn']"
    if not code.co_argcount and code.co_flags & inspect.CO_VARARGS:
        name = code.co_varnames[code.co_kwonlyargcount]
        return name, f"L['{name}'][0]"
    name = next((name for name in code.co_varnames if not name.startswith("__")), "self")
    return name, f"L['{name}']"


def state_of(owner: nn.Module, code: CodeType, closure: dict[str, Any]) -> dict[str, Any]:
    """What a module's compiled method knows before it is called with anything."""
    name, source = receiver(code)
    return {**closure, name: (owner,) if source.endswith("[0]") else owner}


def called_from(frame: FrameType) -> Call | None:
    """Describe what a frame is about to call; the compiled frame itself is not on Python's stack yet.

    None where only torch knows: inside code that it compiled.
    """
    values = frame.f_locals
    name = frame.f_code.co_qualname.removesuffix(_WITH_HOOKS).rpartition(".")[2]
    target = values.get({"_call_impl": "self", "compile_wrapper": "fn"}.get(name, ""))
    if target is None:
        return None
    return call_of(target, values.get("args", ()), values.get("kwargs", {}))


def call_of(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Describe the call of a module or function as Dynamo sees it: its innermost frame's locals."""
    method, owner = target, None
    first: tuple[Any, ...] = ()
    inner = getattr(target, "_compiled_call_impl", None) or getattr(target, "forward", target)
    while inner is not None:
        method = inner
        if (holder := getattr(method, "__self__", None)) is not None:
            owner, first = holder, (holder,)
        inner = getattr(method, "_torchdynamo_orig_callable", None)
        if isinstance(method, partial):
            args, kwargs, first = (*method.args, *args), method.keywords | kwargs, ()
            inner = method.func
        elif isinstance(owner, nn.Module) and getattr(method, "__name__", "") in _CALLS:
            inner = owner.forward
    function = getattr(method, "__func__", method)
    code = getattr(function, "__code__", None)
    bound = (*first, *args)
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True) if code else ()
    closure = {name: cell.cell_contents for name, cell in cells}
    if owner is None and _is_wrap_inline(code):
        owner = closure["fn"]

    def values() -> dict[str, Any]:
        arguments = inspect.signature(function, follow_wrapped=False).bind(*bound, **kwargs)
        arguments.apply_defaults()
        return {**arguments.arguments, **closure}

    return Call(owner if isinstance(owner, nn.Module) else None, code, values, closure)


def compiling(frame: FrameType | None) -> tuple[FrameType, Call, list[Any]] | None:
    """Find what torch compiles on the stack of a start callback: caller, call, variants there are."""
    while frame is not None and not _compiles(frame.f_code):
        frame = frame.f_back
    if frame is None:
        return None
    inside, caller = frame.f_locals, _out_of_file(frame)
    with _observing("what is compiled"):
        code: CodeType = inside["code"]
        values = dict(inside["frame"].f_locals)
        entries = inside.get("cache_entries_for_reasons", inside.get("cache_entries"))
    owner, _ = callee(caller)
    known = variants(code) if entries is None else list(entries)
    return caller, Call(owner, code, lambda: values), known


def _compiles(code: CodeType) -> bool:
    return code.co_name == "_compile" and "_dynamo" in code.co_filename


def _out_of_file(frame: FrameType) -> FrameType:
    """The frame that called into the file of this one."""
    caller = frame
    while caller.f_back is not None and caller.f_code.co_filename == frame.f_code.co_filename:
        caller = caller.f_back
    return caller


def compiling_elsewhere() -> dict[int, FrameType]:
    """The other threads that compile, or wait to: the frame that called what is compiled, by thread."""
    found = {}
    for thread, top in sys._current_frames().items():
        frame: FrameType | None = top if thread != threading.get_ident() else None
        inside = None
        while frame is not None and not _compiles(frame.f_code):
            if frame.f_code.co_filename.endswith("convert_frame.py"):
                inside = inside or frame
            frame = frame.f_back
        if (begun := frame or inside) is not None:
            found[thread] = _out_of_file(begun)
    return found


@_observing("graphs")
def holds_graph(codes: Iterable[CodeType]) -> bool:
    """Whether compiled code of one of these calls a graph, at once or after its graph breaks."""
    seen: set[CodeType] = set()
    left = list(codes)
    while left:
        code = left.pop()
        if code in seen:
            continue
        seen.add(code)
        for variant in variants(code):
            if any(name.startswith("__compiled_fn") for name in variant.code.co_names):
                return True
            left += continuations(variant)
    return False


@_observing("graph breaks")
def continuations(variant: Any) -> list[CodeType]:
    """The code that goes on after each graph break of a variant."""
    outer = variant.guard_manager.global_scope or {}
    return resumed(variant.code, outer.get("G", outer))


def resumed(code: CodeType, names: dict[str, Any]) -> list[CodeType]:
    """The code that goes on after each graph break of compiled code, of the globals that it runs in."""
    functions = (names.get(name) for name in code.co_names if name.startswith("__resume_at"))
    return [_resumes(function) for function in functions if function is not None]


def _resumes(function: Any) -> CodeType:
    """The code that a function is made of; a factory, as there is for closures, makes it of a cell's."""
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    made = (content for content in cells if isinstance(content, CodeType))
    code: CodeType = next(made, function.__code__)
    return code


@_observing("compiled variants")
def variants(code: CodeType) -> list[Any]:
    """The compiled variants of a code object, most recently used first."""
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

    return list(_debug_get_cache_entry_list(code))


_RELATIONAL = ("ALIASING", "OVERLAPPING", "SYMBOLIC_SHAPE")
"""Kinds of guards that remember what they saw: asking one alone would change its answer."""


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard of a variant: what it reads (``L['self'].training``), its text, its check."""

    source: str
    text: str
    check: Callable[[Any], bool]


@_observing("guards")
def guards(variant: Any) -> list[Guard]:
    """List the guards that read one value each; relations between values are not among them."""
    root = getattr(variant.guard_manager, "root", None)
    return [
        Guard(manager.get_source(), part, leaf)
        for manager in (_managers(root) if root is not None else ())  # None: it was invalidated
        for leaf in manager.get_leaf_guards()
        if not any(kind in type(leaf).__name__ for kind in _RELATIONAL)
        if (parts := leaf.verbose_code_parts()) and (part := parts[0])
    ]


def _managers(root: Any) -> Iterator[Any]:
    yield root
    children = list(root.get_child_managers())
    if hasattr(root, "get_key_value_managers"):
        children += [one for pair in root.get_key_value_managers().values() for one in pair]
    for child in children:
        if child is not None:
            yield from _managers(child)


@_observing("guards")
def scope(variant: Any, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The globals and locals in which a guard's source can be evaluated."""
    manager = variant.guard_manager
    outer = dict(manager.global_scope or {})
    return outer, {"L": values, "G": outer.get("G", outer), **(manager.closure_vars or {})}


def first_failure(variant: Any, values: dict[str, Any]) -> str | None:
    """torch's own text of the first guard that fails for these locals; None where all hold."""
    with _observing("guards"):
        manager = variant.guard_manager
        if getattr(manager, "root", None) is None:
            return str(getattr(manager, "invalidation_reason", "the variant was invalidated"))
        found = manager.check_verbose(values)
        if found.result:
            return None
        parts = list(found.verbose_code_parts)
    if len(parts) == 1:
        return str(parts[0])
    outer, inner = scope(variant, values)
    for part in parts:
        with suppress(Exception):  # it cannot be evaluated alone
            if not eval(part, outer, inner):  # noqa: S307 (torch's own text, as torch does)
                return str(part)
    return "; ".join(map(str, parts)) or "a guard failed"


@_observing("dispatch keys")
def tensor_keys(tensor: Tensor) -> str:
    """The dispatch keys of a tensor in the present mode, as guards spell them."""
    c = torch._C
    keys = c._dispatch_keys(tensor) | c._dispatch_tls_local_include_set()
    return str(keys - c._dispatch_tls_local_exclude_set())


@_observing("packages")
def package_functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """AOTInductor's functions: to write an exported program as a ``.pt2`` file, and to load one."""
    return torch._inductor.aoti_compile_and_package, torch._inductor.aoti_load_package


@_observing("programs")
def dtype_of_program(number: int) -> torch.dtype:
    """The dtype that a saved program means by a number."""
    from torch._export.serde import schema, serialize

    return serialize.deserialize_scalar_type(schema.ScalarType(number))
