"""What the fixtures and the marker do; torch and peft are imported inside functions."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hotswap.reporting import PREFIX

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn

    from hotswap.compiler.watch import CompileLog
    from pytest_hotswap.subjects.base import Subject

DEFAULT_SUBJECT = "pytest_hotswap.subjects.reference:ReferenceSubject"

LOG: pytest.StashKey[CompileLog] = pytest.StashKey()
"""Where the fixture ``hotswap_compile_watch`` leaves its log for the report."""

_SUBJECT: pytest.StashKey[Any] = pytest.StashKey()


def resolve_subject(config: pytest.Config) -> Subject:
    """Build the configured deployment, once a session.

    Raises pytest.UsageError when neither a subject nor a base model is configured, or when the
    subject cannot be loaded or built.
    """
    if _SUBJECT not in config.stash:
        config.stash[_SUBJECT] = _build(config)
    subject: Subject = config.stash[_SUBJECT]
    return subject


def subject_class(config: pytest.Config) -> type[Subject]:
    """Load the class that ``--hotswap-subject`` names; hotswap's own where only a base is given."""
    name, folder = _setting(config, "subject")
    if not name and not _setting(config, "base")[0]:
        raise pytest.UsageError(
            "there is no deployment to test: give --hotswap-base PATH with --hotswap-adapters GLOB,"
            " or --hotswap-subject module:Class, or set hotswap_base or hotswap_subject"
            " in the ini file"
        )
    return load_class(name or DEFAULT_SUBJECT, folder)


def load_class(name: str, folder: Path) -> type[Any]:
    """Load ``module:Class`` or ``path/file.py:Class``, the path relative to ``folder``."""
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise pytest.UsageError(
            f"--hotswap-subject is {name!r}; write module:Class or path/file.py:Class"
        )
    try:
        module = _import_file(folder / where) if where.endswith(".py") else _import(where)
    except Exception as error:  # whatever the user's module raises
        raise pytest.UsageError(
            f"--hotswap-subject {name}: cannot import {where}: {type(error).__name__}: {error}"
        ) from error
    value = getattr(module, attribute, None)
    if not isinstance(value, type):
        found = "has no such name" if value is None else f"has {attribute} = {value!r}, not a class"
        raise pytest.UsageError(f"--hotswap-subject {name}: {where} {found}")
    return value


@contextmanager
def watched_setup(item: pytest.Item) -> Iterator[None]:
    """Watch the setup of a test; what it compiles is told apart from what the test does."""
    from hotswap.compiler.watch import watch_compiles

    _drop_trace_capture()
    with watch_compiles() as log:
        yield
    _record(
        item,
        setup_compiles=len(log.first_compiles) + len(log.recompiles),
        setup_compile_seconds=round(log.seconds, 6),
    )


@contextmanager
def watched_call(item: pytest.Item, *, max_recompiles: int = 0) -> Iterator[CompileLog]:
    """Watch the body of a marked test; fail it if it recompiled or nothing compiled ran.

    A body that fails or skips keeps its own outcome. The counts go to ``item.user_properties``.
    """
    __tracebackhide__ = True
    from hotswap.compiler.watch import watch_compiles

    with watch_compiles() as log, reported(item, log):
        yield log
    verdict = log.verdict(max_recompiles=max_recompiles, allow_first_compiles=True)
    if verdict.outcome != "passed":
        _add_section(item, log)
        pytest.fail(
            f"@pytest.mark.hotswap(max_recompiles={max_recompiles}) {verdict.outcome}: "
            + "; ".join(verdict.reasons),
            pytrace=False,  # the frames are the plugin's, not the test's
        )


@contextmanager
def observed_call(item: pytest.Item) -> Iterator[None]:
    """Report what the body of a test compiles, judging nothing: the log of its fixture, or one of our own."""
    from hotswap.compiler.watch import watch_compiles

    own = item.stash.get(LOG, None)
    with nullcontext(own) if own is not None else watch_compiles() as log, reported(item, log):
        yield


@contextmanager
def reported(item: pytest.Item, log: CompileLog) -> Iterator[None]:
    """Put the counts of a log into the test's report, whatever happens."""
    _drop_trace_capture()
    failed = True
    try:
        yield
        failed = False
    finally:
        _record(item, **log.as_dict())
        if failed:
            _add_section(item, log)


class AdapterFactory:
    """Makes adapter folders for a base model; what is made depends on the arguments only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        model: nn.Module,
        *,
        rank: int = 4,
        alpha: float = 8,
        target_modules: str | Sequence[str] = "all-linear",
        seed: int = 0,
        name: str | None = None,
        **config: Any,
    ) -> Path:
        """Save a PEFT adapter with random weights for ``model``, which is left as it was.

        ``config`` goes to peft.LoraConfig. The folder's name is ``name``, or counts up.
        """
        import copy

        import torch
        from peft import LoraConfig, get_peft_model

        targets = target_modules if isinstance(target_modules, str) else list(target_modules)
        lora_alpha: Any = alpha  # PEFT says int, and divides
        lora = LoraConfig(r=rank, lora_alpha=lora_alpha, target_modules=targets, **config)
        adapted = get_peft_model(copy.deepcopy(model), lora)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_" in key:
                    values = torch.randn(weight.shape, generator=generator)
                    weight.copy_(values * (weight[0].numel() ** -0.5))
        folder = self.folder / (name or f"adapter-{len(list(self.folder.iterdir()))}")
        if folder.exists():
            raise FileExistsError(f"an adapter named {folder.name!r} was made already: {folder}")
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        return folder


def _build(config: pytest.Config) -> Subject:
    cls = subject_class(config)
    base, _ = _setting(config, "base")
    globs, folder = _setting(config, "adapters")
    backend, _ = _setting(config, "backend")
    given: dict[str, Any] = {}  # what is not configured stays the class's own
    if base:
        given["base"] = base
    if globs:
        given["adapters"] = [str(folder / glob) for glob in globs]
    if backend:
        given["backend"] = backend
    try:
        inspect.signature(cls).bind(**given)
    except TypeError as error:
        raise pytest.UsageError(
            f"{cls.__name__}({', '.join(f'{key}=…' for key in given)}) cannot be called: {error};"
            " let it take base, adapters and backend as keywords, as Subject does"
        ) from error
    return cls(**given)


def _setting(config: pytest.Config, name: str) -> tuple[Any, Path]:
    """The option or else the ini key, and the folder that its relative paths start from."""
    option = config.getoption(f"--hotswap-{name}")
    if option:
        return option, config.invocation_params.dir
    return config.getini(f"hotswap_{name}"), config.rootpath


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        folder = str(Path.cwd())  # as python -m does; pytest alone does not
        if folder in sys.path:
            raise
        sys.path.append(folder)
        importlib.invalidate_caches()
        return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    """Import a file under the name that pytest gives it, so that it is never there twice."""
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    if str(root) not in sys.path:
        sys.path.append(str(root))
    importlib.invalidate_caches()
    name = ".".join(parts)
    known = sys.modules.get(name)
    origin = getattr(known, "__file__", None) if known else _origin(name)
    if origin and Path(origin).resolve() == path:
        return importlib.import_module(name)
    # another module has this name
    unique = f"_hotswap_subject_{path.stem}_{zlib.crc32(bytes(path)):08x}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def _origin(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return None
    return spec.origin if spec else None


def _record(item: pytest.Item, **counts: float) -> None:
    named = {f"{PREFIX}{key}": value for key, value in counts.items()}
    kept = [(key, value) for key, value in item.user_properties if key not in named]
    item.user_properties[:] = [*kept, *named.items()]  # a rerun counts anew


def _add_section(item: pytest.Item, log: CompileLog) -> None:
    item.add_report_section("call", "hotswap", str(log))


def _drop_trace_capture() -> None:
    """Keep torch's structured trace out of the captured log: it is hundreds of lines a compile."""
    trace = logging.getLogger("torch.__trace")
    for handler in [h for h in trace.handlers if type(h).__module__ == "_pytest.logging"]:
        trace.removeHandler(handler)
